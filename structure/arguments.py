"""What operators are told: axes, bounds, sizes and targets, whether an opset writes them as attributes or as inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import onnx_ir as ir

from inarch.structure.dims import Dim, Shape, opaque, product


class Known(Protocol):
    """Shapes and integer contents, as far as they are known."""

    def shape(self, value: ir.Value) -> Shape | None:
        """The shape, or None."""

    def content(self, value: ir.Value | None) -> tuple[Dim, ...] | None:
        """Entries of a small integer value, flattened, or None."""

    def ints(self, value: ir.Value | None) -> list[int] | None:
        """Content where every entry is known."""

    def real(self, value: ir.Value | None) -> bool:
        """Whether it is whole numbers in floating point: their quotients need not be whole."""

    def need(self, value: ir.Value | None) -> Shape:
        """The shape; raises ValueError where there is none."""

    def note(self, value: ir.Value, content: tuple[Dim, ...]) -> None:
        """Remember the content of a value."""


def axes_of(shapes: Known, node: ir.Node, position: int = 1) -> list[int] | None:
    """The ``axes`` of an operator that takes them as attribute (older opsets) or as input ``position``; None where absent."""
    attr = node.attributes.get("axes")
    if attr is not None:
        return [int(a) for a in attr.as_ints()]
    if len(node.inputs) > position and node.inputs[position] is not None:
        axes = shapes.ints(node.inputs[position])
        if axes is None:
            raise ValueError("axes are not constant")
        return axes
    return None


def int_attr(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute or its default."""
    attr = node.attributes.get(name)
    return default if attr is None else int(attr.as_int())


def slice_parts(s: Known, node: ir.Node) -> tuple[list[int | None], list[int | None], list[int], list[int]]:
    """Starts, ends, axes and steps of a Slice; a start or end that is not constant is None.

    Raises:
        ValueError: axes or steps are not constant.
    """
    if "starts" in node.attributes:
        starts: list[int | None] = [int(i) for i in node.attributes["starts"].as_ints()]
        ends: list[int | None] = [int(i) for i in node.attributes["ends"].as_ints()]
        listed = node.attributes.get("axes")
        axes = [int(i) for i in listed.as_ints()] if listed is not None else list(range(len(starts)))
        return starts, ends, axes, [1] * len(starts)
    first, last = s.content(node.inputs[1]), s.content(node.inputs[2])
    count = s.need(node.inputs[1])[0].value
    if count is None:
        raise ValueError("slice of unknown rank")
    starts = [d.value for d in first] if first is not None else [None] * count
    ends = [d.value for d in last] if last is not None else [None] * count
    axes = list(range(count))
    steps = [1] * count
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        found = s.ints(node.inputs[3])
        if found is None:
            raise ValueError("slice axes are not constant")
        axes = found
    if len(node.inputs) > 4 and node.inputs[4] is not None:
        found = s.ints(node.inputs[4])
        if found is None:
            raise ValueError("slice steps are not constant")
        steps = found
    return starts, ends, axes, steps


def split_sizes(s: Known, node: ir.Node) -> list[int] | None:
    """Sizes of the pieces of a Split on a known axis, or None."""
    shape = s.need(node.inputs[0])
    axis = int_attr(node, "axis", 0) % len(shape)
    attr = node.attributes.get("split")
    if attr is not None:
        return [int(i) for i in attr.as_ints()]
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        return s.ints(node.inputs[1])
    total, count = shape[axis].value, len(node.outputs)
    if total is None:
        return None
    piece = -(-total // count)
    return [min(piece, total - i * piece) for i in range(count)]


def reshape_target(s: Known, node: ir.Node) -> Shape | None:
    """The output shape of a Reshape, symbolically; unknown sizes where only the rank is known, None where that is not either."""
    given, target = s.shape(node.inputs[0]) if node.inputs[0] is not None else None, s.content(node.inputs[1])
    if target is None:
        length = s.need(node.inputs[1])[0].value
        return tuple(opaque("reshape", node.outputs[0].name, i) for i in range(length)) if length is not None else None
    allow_zero = int_attr(node, "allowzero", 0)
    # Of an operand of unknown shape only what the target says is known.
    shape = given if given is not None else tuple(opaque("reshape", node.outputs[0].name, i) for i in range(len(target)))
    dims = [shape[i] if d.value == 0 and not allow_zero else d for i, d in enumerate(target)]
    if any(d.value == -1 for d in dims):
        total, rest = product(shape), product(d for d in dims if d.value != -1)
        missing = total.over(rest) if given is not None else None
        if missing is None:
            missing = opaque("infer", total, rest)
        dims = [missing if d.value == -1 else d for d in dims]
    return tuple(dims)


def permutation(node: ir.Node, rank: int) -> list[int]:
    """``perm`` of a Transpose; reversed axes where it is absent."""
    attr = node.attributes.get("perm")
    return [int(i) for i in attr.as_ints()] if attr is not None else list(range(rank))[::-1]


def einsum_terms(node: ir.Node) -> tuple[list[str], str]:
    """Operand labels and result labels of an Einsum without ellipsis.

    Raises:
        ValueError: an ellipsis or an implicit result.
    """
    equation = node.attributes["equation"].as_string().replace(" ", "")
    if "." in equation or "->" not in equation:
        raise ValueError("einsum form not known")
    left, result = equation.split("->")
    return left.split(","), result


def data_inputs(node: ir.Node) -> Sequence[ir.Value | None]:
    """The inputs whose numbers a node reads: of the second input of CastLike it reads the type alone."""
    return node.inputs[:1] if node.op_type == "CastLike" and node.domain in ("", "ai.onnx") else node.inputs
