"""A model that optimum exported."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

import inarch

pytest.importorskip("optimum.exporters.onnx", reason="optimum is not installed: pip install optimum-onnx")


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A small BERT with random weights, saved as transformers saves it and exported as optimum exports it."""
    import torch
    from optimum.exporters.onnx import main_export
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 256}
    source, target = tmp_path / "source", tmp_path / "exported"
    BertModel(BertConfig(vocab_size=120, max_position_embeddings=64, **sizes)).save_pretrained(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main_export(str(source), output=target, task="feature-extraction", library_name="transformers", do_validation=False)
    return target / "model.onnx"


def test_a_plan_compiles_onto_an_export_of_optimum(exported: Path, tmp_path: Path) -> None:
    table = inarch.discover(exported).table
    assert [site.kind for site in table.sites] == ["msa", "ffn"] * 3
    plan = inarch.make_plan(exported, keep=0.7, method="similarity")
    result = inarch.compile(exported, plan, tmp_path / "compiled.onnx")
    assert result.lowered.stored < 0.75 * result.lowered.parameters
    assert inarch.verify(exported, plan, tmp_path / "compiled.onnx").ok
