"""What a model's arithmetic can be held to: the type of its weights, and how many products follow each other."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

_PRODUCTS = frozenset(
    {"MatMul", "Gemm", "Conv", "Einsum", "Attention", "MultiHeadAttention", "GroupQueryAttention", "FusedMatMul", "MatMulInteger"}
)


@dataclass(frozen=True)
class Precision:
    """How exact a model can be.

    Attributes:
        name: of the type that most of its weights are stored in.
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


def precision_of(model: ir.Model) -> Precision:
    """The precision in which most of a model's floating-point bytes are stored."""
    sizes = dict.fromkeys(_PRECISIONS, 0)
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype in sizes:
            sizes[value.const_value.dtype] += value.const_value.nbytes
    for node in model.graph:
        if node.op_type == "Constant" and "value" in node.attributes:
            tensor = node.attributes["value"].as_tensor()
            if tensor.dtype in sizes:
                sizes[tensor.dtype] += tensor.nbytes
    best = max(sizes, key=lambda dtype: sizes[dtype])
    return _PRECISIONS[best if sizes[best] else ir.DataType.FLOAT]


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
