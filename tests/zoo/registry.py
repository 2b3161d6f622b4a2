"""The forms of the zoo by name, and what their builders have in common."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from tests.zoo.blocks import Blocks, draw_style
from tests.zoo.graph import GraphWriter
from tests.zoo.model import Inputs, MakeInputs, ZooModel

Builder = Callable[[np.random.Generator], ZooModel]

FORMS: dict[str, Builder] = {}
"""Forms with sites that can be compiled, by name."""

NEGATIVE: dict[str, Builder] = {}
"""Forms that hold something that looks like a site and is none (beside a real site or two), by name."""

VOCABULARY = 40


def form(name: str, *, negative: bool = False) -> Callable[[Builder], Builder]:
    """Register a builder under ``name``; the name may be taken once."""

    def register(builder: Builder) -> Builder:
        if name in FORMS or name in NEGATIVE:
            raise ValueError(f"the form {name!r} is registered twice")
        (NEGATIVE if negative else FORMS)[name] = builder
        return builder

    return register


def build(name: str, seed: int = 0) -> ZooModel:
    """The model of a form for a seed; the same seed gives the same model."""
    builder = FORMS.get(name) or NEGATIVE[name]
    return builder(np.random.default_rng([zlib.crc32(name.encode()), seed]))


def pick(rng: np.random.Generator, *options: Any) -> Any:
    """One of the options."""
    return options[int(rng.integers(len(options)))]


def writer(rng: np.random.Generator, low: int = 11, high: int = 22, **fixed: Any) -> GraphWriter:
    """A graph writer with a random opset in ``low..high`` and random spellings; keyword arguments fix them."""
    options: dict[str, Any] = {
        "opset": int(rng.choice([v for v in (11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23) if low <= v <= high])),
        "weights": "constant" if rng.random() < 0.1 else "initializer",
        "constants": pick(rng, "initializer", "constant"),
        "linear": str(rng.choice(["matmul", "transpose", "gemm", "gemm0"], p=[0.55, 0.15, 0.2, 0.1])),
        "bias_first": bool(rng.random() < 0.3),
    }
    return GraphWriter(rng, **(options | fixed))


def blocks(g: GraphWriter, **fixed: Any) -> Blocks:
    """Blocks on a writer with a random style; keyword arguments fix fields of the style."""
    return Blocks(g, draw_style(g.rng, **fixed))


def norm_kind(g: GraphWriter) -> str:
    """LayerNormalization where the opset has it, else decomposed; sometimes decomposed anyway."""
    return "op" if g.opset >= 17 and g.rng.random() < 0.7 else "decomposed"


def done(
    name: str,
    b: Blocks,
    outputs: Mapping[str, ir.Value],
    make_inputs: MakeInputs,
    *,
    infer: bool = True,
    ranks: Mapping[str, int] | None = None,
    cases: int = 3,
    loose: frozenset[str] = frozenset(),
    runnable: bool = True,
    **notes: Any,
) -> ZooModel:
    """Close the graph and say what was drawn."""
    g = b.g
    drawn = {"opset": g.opset, "linear": g.linear_style, "weights": g.weights, "constants": g.constants, "style": b.style} | notes
    model = g.finish(outputs, infer=infer, ranks=ranks, metadata={"form": name})
    return ZooModel(model, name, tuple(b.sites.values()), make_inputs, cases, drawn, loose, runnable)


# ---- inputs -----------------------------------------------------------------------------------------------------------
SIZES = ((2, 7), (1, 4), (3, 5))
"""(batch, sequence) of each case."""


def masks(rng: np.random.Generator, batch: int, length: int, *, whole: bool = False) -> np.ndarray[Any, Any]:
    """Right-padded int64 masks [batch, length], 1 = token; with ``whole`` the last row has no token at all."""
    kept = rng.integers(1, length + 1, batch)
    kept[0] = length
    if whole:
        kept[-1] = 0
    return (np.arange(length)[None] < kept[:, None]).astype(np.int64)


def text_inputs(*, mask: bool = True, whole: bool = False) -> MakeInputs:
    """input_ids (and attention_mask); in the last case a row is masked entirely where ``whole``."""

    def make(rng: np.random.Generator, case: int) -> Inputs:
        batch, length = SIZES[case]
        given: Inputs = {"input_ids": rng.integers(0, VOCABULARY, (batch, length))}
        if mask:
            given["attention_mask"] = masks(rng, batch, length, whole=whole and case == len(SIZES) - 1)
        return given

    return make


def feature_inputs(name: str, width: int) -> MakeInputs:
    """One float input [B,S,width]."""

    def make(rng: np.random.Generator, case: int) -> Inputs:
        return {name: rng.standard_normal((*SIZES[case], width)).astype(np.float32)}

    return make


def embed(b: Blocks, prefix: str, width: int, *, mask: bool = True) -> tuple[ir.Value, ir.Value | None]:
    """Token ids to [B,S,E]; also the mask input, int64 [B,S]."""
    g = b.g
    ids = g.input("input_ids", ir.DataType.INT64, ["batch", "sequence"])
    given = g.input("attention_mask", ir.DataType.INT64, ["batch", "sequence"]) if mask else None
    table = g.normal(f"{prefix}.embeddings.word_embeddings.weight", (VOCABULARY, width), 1.0)
    return g.op("Gather", table, ids, axis=0), given
