"""Normalisations that a graph spells out, which squares in fp16 would ruin: a number over 255 has a square that fp16 cannot hold.

What is kept in fp32 is marked with ``*``; ONNX Runtime fuses this form, and reads the constant of the sum from it::

    x -- Cast -- ReduceMean* -- Sub* -- Pow* -- ReduceMean* -- Add* -- Sqrt* -- Div* -- Cast -- Mul -- Add
    x -- Cast -- Pow* -- ReduceMean* -- Add* -- Sqrt* -- Div* -- Cast -- Mul
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

_ON_THE_WAY = frozenset({"Add", "Sqrt", "Reciprocal", "Pow", "Max", "Clip"})


@dataclass(frozen=True, eq=False)
class Norm:
    """One normalisation.

    Attributes:
        source: what is normalised.
        core: its nodes, from the mean to the quotient.
        affine: those that scale and shift the quotient.
    """

    source: ir.Value
    core: tuple[ir.Node, ...]
    affine: tuple[ir.Node, ...]


def norms(nodes: list[ir.Node]) -> Iterator[Norm]:
    """The normalisations among some nodes, in their order."""
    for node in nodes:
        if node.op_type == "ReduceMean" and node.domain == "" and node.inputs[0] is not None:
            square = node.inputs[0].producer()
            found = _norm(square, node) if square is not None and _is_square(square) else None
            if found is not None:
                yield found


def _is_square(node: ir.Node) -> bool:
    if node.op_type == "Mul":
        return node.inputs[0] is node.inputs[1]
    exponent = node.inputs[1].const_value if node.op_type == "Pow" and node.inputs[1] is not None else None
    if node.op_type == "Pow" and exponent is None and node.inputs[1] is not None:
        maker = node.inputs[1].producer()
        attribute = maker.attributes.get("value") if maker is not None and maker.op_type == "Constant" else None
        exponent = attribute.as_tensor() if attribute is not None else None
    return exponent is not None and exponent.size == 1 and float(exponent.numpy().item()) == 2.0


def _norm(square: ir.Node, mean: ir.Node) -> Norm | None:
    """The normalisation that this mean of squares belongs to."""
    core = [square, mean]
    node = mean
    while True:
        users = [user for user, _ in node.outputs[0].uses()]
        if len(users) != 1:
            return None
        (node,) = users
        core.append(node)
        if node.op_type in ("Div", "Mul"):
            break
        if node.op_type not in _ON_THE_WAY:
            return None
    source = square.inputs[0]
    assert source is not None
    centred = {source, *(value for value in node.inputs if value is not None)}
    for value in centred:  # an exporter may have centred twice
        sub = value.producer()
        if sub is not None and sub.op_type == "Sub" and sub not in core:
            means = [v.producer() for v in sub.inputs if v is not None]
            average = next((m for m in means if m is not None and m.op_type == "ReduceMean"), None)
            if average is not None and average.inputs[0] is sub.inputs[0] and sub.inputs[0] is not None:
                core += [sub, average] if average not in core else [sub]
                source = sub.inputs[0]
    return Norm(source, tuple(core), tuple(_affine(node)))


def _affine(node: ir.Node) -> Iterator[ir.Node]:
    for op_type in ("Mul", "Add"):
        users = [user for user, _ in node.outputs[0].uses()]
        if len(users) != 1 or users[0].op_type != op_type:
            return
        (node,) = users
        yield node
