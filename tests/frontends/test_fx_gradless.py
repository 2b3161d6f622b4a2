"""Modules whose attention torch takes apart without gradients alone."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
import transformers

from inarch.frontends.fx import from_torch
from inarch.structure.discover import discover


def test_a_t5_is_read() -> None:
    config = transformers.T5Config(vocab_size=40, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
    model = transformers.T5EncoderModel(config).eval()
    table = discover(from_torch(model, (torch.ones(2, 5, dtype=torch.int64),))).table
    assert [site.kind for site in table.sites] == ["msa", "ffn"]
