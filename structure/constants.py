"""Constants of a graph: initializers and Constant nodes alike."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

_SMALL = 4096


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer or of a Constant node, without reading a large one's data; None for anything else."""
    if value is None or value.is_graph_input():
        return None
    if value.const_value is not None:
        return value.const_value
    node = value.producer()
    if node is None or node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    for name, attr in node.attributes.items():
        if name == "value":
            return tensor_in(attr)
        if name == "value_int":
            return ir.tensor(np.array(attr.as_int(), np.int64))
        if name == "value_ints":
            return ir.tensor(np.array(attr.as_ints(), np.int64))
        if name == "value_float":
            return ir.tensor(np.array(attr.as_float(), np.float32))
        if name == "value_floats":
            return ir.tensor(np.array(attr.as_floats(), np.float32))
    return None


def tensor_in(attribute: ir.Attr) -> ir.TensorProtocol:
    """The tensor that an attribute is known to hold: ``as_tensor()`` checks that against a runtime protocol, which takes Python
    before 3.12 most of the time of an analysis."""
    tensor: ir.TensorProtocol = attribute.value
    return tensor


def whole_numbers(value: ir.Value | None) -> list[int] | None:
    """The numbers of a small constant floating-point tensor that are all whole (sizes on their way to a Cast), or None."""
    tensor = constant(value)
    if tensor is None or not tensor.dtype.is_floating_point() or tensor.size > 8:
        return None
    numbers = np.asarray(tensor.numpy(), np.float64).reshape(-1)
    return [int(n) for n in numbers] if bool((np.isfinite(numbers) & (numbers == np.round(numbers))).all()) else None


def constant_ints(value: ir.Value | None) -> list[int] | None:
    """The numbers of a small constant integer tensor, flattened, or None."""
    tensor = constant(value)
    if tensor is None or tensor.dtype not in (ir.DataType.INT64, ir.DataType.INT32) or tensor.size > _SMALL:
        return None
    return [int(n) for n in tensor.numpy().reshape(-1)]
