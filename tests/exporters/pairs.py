"""Which model is exported how, and in which of the two parts of the suite."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import onnx_ir as ir

from inarch.structure.discover import Discovery

from tests.exporters.cases import CASES
from tests.exporters.export import How, export

Pair = tuple[str, How]

TORCHSCRIPT = tuple(How(dynamo=False, opset=opset) for opset in (13, 14, 17))
DYNAMO = tuple(How(dynamo=True, opset=opset, optimize=optimize) for opset in (18, 20, 23) for optimize in (True, False))

HEAVY = {f"{name}-sdpa" for name in ("roberta", "distilbert", "gpt2", "albert", "dinov2", "clip")} | {"swin-eager"}
"""Models that differ little from others, or take long."""

LIGHT = {
    *((name, "torchscript-17") for name in CASES if name not in HEAVY),
    *((name, "torchscript-13") for name in ("bert-eager", "timm-eager")),
    ("detr", "dynamo-20"),
    ("detr", "dynamo-plain-18"),
    ("bert-sdpa", "dynamo-23"),
    ("chunked", "dynamo-plain-18"),
}
"""What runs always; everything else is heavy."""

NOT_EXPORTED = {
    # scaled_dot_product_attention, which nn.MultiheadAttention without weights calls too, has no TorchScript form at opset 13
    *(
        (name, "torchscript-13")
        for name in CASES
        if name.endswith(("-sdpa", "-plain", "-sequence-first", "chunked")) or "layers" in name
    ),
}
"""What torch itself refuses."""

REFUSED = {
    # Attention-23 with a mask [B, H, 1, T], which the standard broadcasts and ONNX Runtime 1.32 does not
    (name, how)
    for name in ("multihead-plain", "multihead-sequence-first", "torch-layers-post", "torch-layers-pre", "chunked")
    for how in ("dynamo-23", "dynamo-plain-23")
}
"""Files that torch writes and ONNX Runtime runs on none of the shapes."""


def pairs() -> Iterator[tuple[Pair, bool]]:
    """Every model with every exporter that takes it, and whether that is heavy."""
    for name in CASES:
        for how in (*TORCHSCRIPT, *DYNAMO):
            if (name, str(how)) not in NOT_EXPORTED:
                yield (name, how), (name, str(how)) not in LIGHT


@cache
def exported(name: str, how: How) -> ir.Model:
    """A case's file, made once."""
    return export(CASES[name], how)


@cache
def found(name: str, how: How) -> Discovery:
    """What is in it."""
    from inarch.frontends.canonicalize import discover_canonical

    return discover_canonical(exported(name, how))
