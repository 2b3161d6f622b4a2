"""bf16 models on a CPU: ORT has no bf16 products there, so both sides are widened to fp32 and compared as such.

Every bf16 number is an fp32 number, so widening changes no weight; only what the graph itself would round to bf16 on the way is
no longer rounded, in both models alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from inarch.structure.nodes import every_node

_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype"})


def needs_widening(model: ir.Model, providers: Sequence[str]) -> bool:
    """Whether a model holds bf16 weights and only the CPU is there to run it."""
    if any(provider != "CPUExecutionProvider" for provider in providers):
        return False
    weights = (value.dtype for graph in model.graphs() for value in graph.initializers.values())
    attributes = (attribute for node in every_node(model.graph) for attribute in node.attributes.values())
    return ir.DataType.BFLOAT16 in weights or any(_is_narrow(attribute) for attribute in attributes)


def widen(model: ir.Model) -> ir.Model:
    """A copy of a model with fp32 for bf16 everywhere: inputs, outputs, weights, constants and casts. Tensors stay lazy."""
    copy = model.clone()
    for graph in copy.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype == ir.DataType.BFLOAT16:
                value.const_value = _wide(value.const_value)
    for value in [*copy.graph.inputs, *copy.graph.initializers.values()]:
        _retype(value)
    for node in every_node(copy.graph):
        for name, attribute in list(node.attributes.items()):
            if _is_narrow(attribute):
                node.attributes[name] = ir.AttrTensor(name, _wide(attribute.as_tensor()))
            elif name in _TYPE_ATTRIBUTES and node.attributes.get_int(name, 0) == ir.DataType.BFLOAT16:
                node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
        for output in node.outputs:
            _retype(output)
            output.const_value = None
    return copy


def _is_narrow(attribute: ir.Attr) -> bool:
    if attribute.is_ref() or attribute.type != ir.AttributeType.TENSOR:
        return False
    return attribute.as_tensor().dtype == ir.DataType.BFLOAT16


def _retype(value: ir.Value) -> None:
    if value.dtype == ir.DataType.BFLOAT16:
        value.type = ir.TensorType(ir.DataType.FLOAT)


def _wide(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    def compute() -> ir.TensorProtocol:
        return ir.Tensor(tensor.numpy().astype(np.float32), name=tensor.name)

    return ir.LazyTensor(compute, ir.DataType.FLOAT, ir.Shape(tensor.shape.numpy()), name=tensor.name)
