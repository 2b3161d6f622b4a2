"""What a model's arithmetic can be held to: the type of its weights, and how many products follow each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from inarch.structure.views import VIEWS

_PRODUCTS = frozenset(
    {"MatMul", "Gemm", "Conv", "Einsum", "Attention", "MultiHeadAttention", "GroupQueryAttention", "FusedMatMul", "MatMulInteger"}
)


@dataclass(frozen=True)
class Precision:
    """How exact a model can be.

    Attributes:
        name: of the type.
        eps: rounding of that type.
        cap: relative error that is never exceeded by rounding alone, as this project defines equivalence.
    """

    name: str
    eps: float
    cap: float


_PRECISIONS = {
    ir.DataType.DOUBLE: Precision("fp64", 2.0**-52, 1e-12),
    ir.DataType.FLOAT: Precision("fp32", 2.0**-23, 1e-5),
    ir.DataType.FLOAT16: Precision("fp16", 2.0**-10, 1e-2),
    ir.DataType.BFLOAT16: Precision("bf16", 2.0**-7, 5e-2),
}


NARROW = {kind: kind.name.lower() for kind in ir.DataType if kind.name in ("INT8", "UINT8", "INT4", "UINT4", "INT2", "UINT2")}
"""Types that weights are quantised to, and what they are called."""


def precision_of(model: ir.Model) -> Precision:
    """The precision that a model computes in: that of most of the weights of its products, as these read them.

    A weight that is stored in half precision and cast before its product is a weight in single precision.
    """
    products, others = dict.fromkeys(_PRECISIONS, 0), dict.fromkeys(_PRECISIONS, 0)
    for value, tensor in _weights(model):
        for is_product, kind in set(_reads(value, tensor.dtype)):
            if kind in _PRECISIONS:
                (products if is_product else others)[kind] += tensor.size
    sizes = products if any(products.values()) else others
    best = max(sizes, key=lambda dtype: sizes[dtype])
    return _PRECISIONS[best if sizes[best] else ir.DataType.FLOAT]


def stored_in(model: ir.Model) -> str:
    """The type that most bytes of a model's weights are stored in: fp32, fp16, int8 ..."""
    names = {kind: precision.name for kind, precision in _PRECISIONS.items()} | NARROW
    sizes = dict.fromkeys(names.values(), 0)
    for _, tensor in _weights(model):
        if tensor.dtype in names:
            sizes[names[tensor.dtype]] += tensor.nbytes
    best = max(sizes, key=lambda name: sizes[name])
    return best if sizes[best] else "fp32"


def _reads(value: ir.Value, kind: ir.DataType) -> Iterator[tuple[bool, ir.DataType]]:
    """Whether it is a product that reads a weight, and as which type; for every reader."""
    for node, place in value.uses():
        if place == 0 and node.op_type == "Cast":
            yield from _reads(node.outputs[0], ir.DataType(node.attributes["to"].as_int()))
        elif place == 0 and node.op_type == "DequantizeLinear":
            scale = node.inputs[1].const_value if node.inputs[1] is not None else None
            yield from _reads(node.outputs[0], ir.DataType.FLOAT if scale is None else scale.dtype)
        elif place == 0 and node.op_type in VIEWS:
            for output in node.outputs:
                yield from _reads(output, kind)
        else:
            yield node.op_type in _PRODUCTS, kind


def _weights(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            yield value, value.const_value
    for node in model.graph:
        if node.op_type == "Constant" and "value" in node.attributes:
            yield node.outputs[0], node.attributes["value"].as_tensor()


def depth(model: ir.Model) -> int:
    """Products (MatMul, Gemm, Conv, Attention ...) on the longest path through the main graph; at least 1. O(#nodes)."""
    reached: dict[ir.Value, int] = {}
    deepest = 1
    for node in model.graph:
        before = max((reached.get(value, 0) for value in node.inputs if value is not None), default=0)
        here = before + (node.op_type in _PRODUCTS)
        deepest = max(deepest, here)
        for output in node.outputs:
            reached[output] = here
    return deepest
