"""How far the right answers of a model lie apart: what rounding does to it, found by rounding its weights otherwise.

A product in floating point is the exact product of weights that are off by about their last bit (the backward error of a sum;
Higham, *Accuracy and Stability of Numerical Algorithms*, 2002, chapter 3). So the last bits of the weights are changed at random:
a model whose outputs move far then, as one with steep softmaxes does, rounds as coarsely in any other order of its sums.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def shaken(model: ir.Model, eps: float, seed: int) -> ir.Model:
    """A copy of a model whose matrices are off by up to one rounding, up or down at random.

    Args:
        model: the model; it is not changed.
        eps: relative size of a rounding.
        seed: of what they are off by.
    """
    copy = model.clone()
    rng = np.random.default_rng(seed)
    for value in copy.graph.initializers.values():
        if value.const_value is not None:
            value.const_value = _shaken(value.const_value, eps, rng, cast=_is_cast(value))
            value.dtype = value.const_value.dtype
    for node in copy.graph:
        if node.op_type == "Constant" and "value" in node.attributes:
            tensor = _shaken(node.attributes["value"].as_tensor(), eps, rng, cast=_is_cast(node.outputs[0]))
            node.attributes.add(ir.AttrTensor("value", tensor))
            node.outputs[0].dtype = tensor.dtype
    return copy


def _is_cast(value: ir.Value) -> bool:
    """Whether it is cast before anything else is done with it."""
    return bool(value.uses()) and all(node.op_type == "Cast" for node, _ in value.uses())


def _shaken(tensor: ir.TensorProtocol, eps: float, rng: np.random.Generator, *, cast: bool) -> ir.TensorProtocol:
    """A matrix with other last bits; where a narrow one is cast anyway, as fp32, which has room for them."""
    if len(tensor.shape) < 2 or not tensor.dtype.is_floating_point():
        return tensor
    array = tensor.numpy()
    if cast and tensor.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        array = array.astype(np.float32)
    off = 2 * rng.random(array.shape, np.float32) - 1
    changed = (array + array * off * eps).astype(array.dtype)
    return ir.tensor(changed, ir.DataType.from_numpy(array.dtype), name=tensor.name)
