"""What onnxruntime.transformers makes of an export: fused attention, packed or not, norms with a skip, a GELU with its bias."""

from __future__ import annotations

import logging
import tempfile
import warnings
from functools import cache
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from inarch.frontends.canonicalize import discover_canonical

from tests.exporters import plans
from tests.exporters.cases import CASES
from tests.exporters.check import compiled_and_wrong, feeds_of, wrong_sites
from tests.exporters.export import How
from tests.exporters.inputs import HEADS, WIDTH
from tests.exporters.pairs import exported

SOURCE = How(dynamo=False, opset=14)
DYNAMO = How(dynamo=True, opset=18)
HEAVY = pytest.mark.heavy

BERT = {"EmbedLayerNormalization", "SkipLayerNormalization", "BiasGelu"}


@cache
def fused(name: str, how: How, family: str, level: int, separate: bool, approximate: bool) -> ir.Model:
    """A model after ORT's own optimizer."""
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    options = FusionOptions(family)
    options.use_multi_head_attention = separate
    options.enable_gelu_approximation = approximate
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("ignore")
            ir.save(exported(name, how), Path(folder, "model.onnx"))
            result = optimize_model(
                str(Path(folder, "model.onnx")),
                model_type=family,
                num_heads=HEADS,
                hidden_size=WIDTH,
                opt_level=level,
                optimization_options=options,
            )
            result.save_model_to_file(str(Path(folder, "fused.onnx")))
            return ir.from_proto(onnx.load(Path(folder, "fused.onnx")))
    finally:
        logging.disable(disabled)


@pytest.mark.parametrize(
    ("name", "how", "family", "level", "separate", "approximate", "operators"),
    [
        pytest.param("bert-eager", SOURCE, "bert", 0, False, False, BERT | {"Attention"}, id="bert-packed"),
        pytest.param("bert-eager", SOURCE, "bert", 0, True, False, BERT | {"MultiHeadAttention"}, id="bert-separate"),
        pytest.param("bert-eager", SOURCE, "bert", 1, False, False, BERT | {"Attention"}, id="bert-packed-1", marks=HEAVY),
        pytest.param("bert-eager", SOURCE, "bert", 2, False, False, BERT | {"Attention"}, id="bert-packed-2"),
        pytest.param(
            "bert-eager", SOURCE, "bert", 2, True, False, BERT | {"MultiHeadAttention"}, id="bert-separate-2", marks=HEAVY
        ),
        pytest.param("bert-eager", SOURCE, "bert", 0, False, True, {"FastGelu", "Attention"}, id="bert-fast-gelu"),
        pytest.param("roberta-eager", SOURCE, "bert", 1, False, False, {"BiasGelu", "Attention"}, id="roberta-packed"),
        pytest.param("roberta-eager", SOURCE, "bert", 0, True, False, {"MultiHeadAttention"}, id="roberta-separate", marks=HEAVY),
        pytest.param("bert-sdpa", SOURCE, "bert", 1, False, False, {"SkipLayerNormalization", "BiasGelu"}, id="bert-sdpa"),
        pytest.param("bert-eager", DYNAMO, "bert", 2, False, False, {"SkipLayerNormalization"}, id="bert-dynamo", marks=HEAVY),
        pytest.param("vit-eager", SOURCE, "vit", 1, False, False, {"SkipLayerNormalization", "BiasGelu"}, id="vit"),
        pytest.param("vit-eager", SOURCE, "vit", 2, True, False, {"SkipLayerNormalization"}, id="vit-2", marks=HEAVY),
        pytest.param("clip-eager", SOURCE, "clip", 0, False, False, {"Attention", "QuickGelu"}, id="clip", marks=HEAVY),
        pytest.param("gpt2-eager", SOURCE, "gpt2", 0, False, False, {"SkipLayerNormalization"}, id="gpt2", marks=HEAVY),
    ],
)
def test_fused(name: str, how: How, family: str, level: int, separate: bool, approximate: bool, operators: set[str]) -> None:
    model = fused(name, how, family, level, separate, approximate)
    assert operators <= {node.op_type for node in model.graph if node.domain == "com.microsoft"}
    found = discover_canonical(model)
    assert not wrong_sites(CASES[name], found.table)
    feeds = feeds_of(CASES[name], model)
    assert len(feeds) >= 2
    for make in (plans.handwritten, plans.inner, plans.nothing_left):
        _, wrong = compiled_and_wrong(model, found, make(found.table), feeds)
        assert not wrong, make.__name__
