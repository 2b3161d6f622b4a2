"""FFNs that are made of 1x1 convolutions: what a Linear computes, in another layout. They are not followed, and that is said."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from inarch.structure.arguments import int_attr
from inarch.structure.kinds import NONLINEAR, is_residual
from inarch.structure.sites import Rejection

_BETWEEN = NONLINEAR | {"Add", "Sub", "Mul", "Div", "Cast", "Identity", "Dropout", "BatchNormalization"}
"""Operators that leave every channel where it is."""

_MOST = 16
"""Nodes between two convolutions; a GELU is six."""


def convolved(graph: ir.Graph) -> Iterator[Rejection]:
    """Two 1x1 convolutions with an activation between them, whose result is added to what they read."""
    for sink in graph:
        source = _source(sink) if _pointwise(sink) else None
        if source is not None and is_residual(_data(source), sink.outputs[0]):
            nodes = tuple(str(node.name or node.outputs[0].name) for node in (source, sink))
            params = tuple(str(node.inputs[1].name) for node in (source, sink) if node.inputs[1] is not None)
            reason = "it is made of 1x1 convolutions, which are not followed: export it with Linear layers"
            yield Rejection("", reason, nodes, params)


def _pointwise(node: ir.Node) -> bool:
    if node.op_type != "Conv" or node.domain not in ("", "ai.onnx") or len(node.inputs) < 2 or int_attr(node, "group", 1) != 1:
        return False
    weight = node.inputs[1]
    return weight is not None and weight.shape is not None and all(size == 1 for size in list(weight.shape)[2:])


def _source(sink: ir.Node) -> ir.Node | None:
    """The one convolution that a sink's input is made of, with an activation on the way."""
    found: set[ir.Node] = set()
    todo, seen, active = [_data(sink)], set[ir.Node](), False
    while todo:
        node = todo.pop().producer()
        if node is None or node in seen or node in found:
            continue
        if _pointwise(node):
            found.add(node)
            continue
        seen.add(node)
        if node.op_type == "Constant":
            continue
        if node.op_type not in _BETWEEN or len(seen) > _MOST:
            return None
        active = active or node.op_type in NONLINEAR
        todo.extend(value for value in node.inputs if value is not None)
    return found.pop() if active and len(found) == 1 else None


def _data(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None  # no convolution is without its input
    return value
