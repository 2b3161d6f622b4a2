"""The models need torch and transformers, which are optional; one small model is set up for all that trains."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from inarch.learning.workshop import Workshop

NEEDED = ("torch", "transformers", "onnxscript", "onnxruntime", "accelerate", "safetensors", "matplotlib")

collect_ignore_glob = ["test_*.py"] if any(importlib.util.find_spec(name) is None for name in NEEDED) else []


@pytest.fixture(scope="session")
def small_presets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """``small`` and ``small-glip`` can be had by name; what they are followed to is shared by all test processes."""
    from tests.learning import outlines, tiny

    with tiny.presets(), outlines.shared(tmp_path_factory):
        yield


@pytest.fixture(scope="session")
def shop(small_presets: None) -> Workshop:
    """The small MDETR, its sites and scenes; following it takes seconds, so it is done once."""
    import torch

    from inarch.learning.workshop import workshop

    from tests.learning import tiny

    torch.set_num_threads(1)
    return workshop(tiny.CONFIG)


@pytest.fixture(scope="session")
def glip_shop(small_presets: None) -> Workshop:
    """The same for the small GLIP, on images of 64 pixels, as GLIPs have them."""
    from inarch.learning.workshop import workshop

    from tests.learning import tiny

    return workshop(tiny.config(model="small-glip"))
