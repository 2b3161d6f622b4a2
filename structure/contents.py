"""The small whole numbers that shapes are computed from: what an operator makes of its operands' entries.

An entry is a :class:`~inarch.structure.dims.Dim`. Exporters take sizes through floating point, too: there a quotient that need
not be whole is unknown.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

import onnx_ir as ir

from inarch.structure.arguments import Known, int_attr
from inarch.structure.constants import constant, whole_numbers
from inarch.structure.dims import Dim, add, dim, floor_div, opaque
from inarch.structure.nodes import graphs_in

MOST = 64
"""Entries of a value whose content is followed."""

Content = tuple[Dim, ...]

_WHOLE: dict[str, Callable[[int, int], int]] = {"Mod": operator.mod, "Max": max, "Min": min}
"""Operators that are computed where both numbers are known, and not where one is negative."""

_COMPARED: dict[str, Callable[[int, int], bool]] = {
    "Greater": operator.gt,
    "GreaterOrEqual": operator.ge,
    "Less": operator.lt,
    "LessOrEqual": operator.le,
}


def combined(s: Known, node: ir.Node) -> Content | None:
    """The content of an elementwise operator's result, at most one axis of it."""
    if node.op_type == "Where":
        return _where(*(s.content(v) for v in node.inputs))
    pairs = _pairs(s, node)
    if pairs is None:
        return None
    if node.op_type == "Div" and any(s.real(v) for v in node.inputs):
        return _whole_quotients(pairs)
    return _arithmetic(node.op_type, pairs)


def kept(s: Known, node: ir.Node) -> Content | None:
    """The content of what changes the type of whole numbers at most, or their sign."""
    if node.op_type not in ("Cast", "CastLike", "Identity", "Floor", "Ceil", "Abs"):
        return None
    content = s.content(node.inputs[0])
    kind = _cast_to(node)
    if kind is not None and content is None:
        whole = whole_numbers(node.inputs[0])
        content = tuple(dim(n) for n in whole) if whole is not None else None
    if content is None and (node.op_type == "Floor" or (kind is not None and kind.is_integer())):
        content = _cut_quotients(s, node.inputs[0])
    if content is None:
        return None
    if node.op_type == "Abs":
        return tuple(opaque("abs", size) if size.value is None else dim(abs(size.value)) for size in content)
    if kind == ir.DataType.BOOL:
        return tuple(dim(int(size.coef != 0)) for size in content) if all(size.value is not None for size in content) else None
    return content


def is_real(s: Known, node: ir.Node) -> bool:
    """Whether the content that a node makes is in floating point."""
    kind = _cast_to(node)
    if kind is not None:
        return kind.is_floating_point()
    sources = [*node.inputs, *(value for graph in graphs_in(node) for value in graph.outputs)]
    return node.op_type not in ("Shape", "Size", "Equal", *_COMPARED) and any(s.real(value) for value in sources)


def number(s: Known, value: ir.Value | None) -> float | None:
    """A scalar that is known; one in floating point keeps its type."""
    content, tensor = s.content(value), constant(value)
    if content is not None:
        return content[0].value if len(content) == 1 else None
    if tensor is None or tensor.size != 1:
        return None
    scalar: float = tensor.numpy().reshape(-1)[0]
    return scalar


def _cast_to(node: ir.Node) -> ir.DataType | None:
    """What a node casts to, floating point where that cannot be seen, which promises least; None of what casts nothing."""
    if node.op_type == "Cast":
        return ir.DataType(int_attr(node, "to", ir.DataType.FLOAT))
    if node.op_type == "CastLike":
        like = node.inputs[1]
        return like.dtype if like is not None and like.dtype is not None else ir.DataType.FLOAT
    return None


def _pairs(s: Known, node: ir.Node) -> list[tuple[Dim, Dim]] | None:
    """The entries of two operands, side by side as they are broadcast."""
    operands = [s.content(v) for v in node.inputs]
    if len(operands) != 2:
        return None
    a, b = operands
    if a is None or b is None or (len(a) != len(b) and 1 not in (len(a), len(b))):
        return None
    size = max(len(a), len(b))
    return list(zip(a * (size // len(a)), b * (size // len(b)), strict=True)) if a and b else []


def _where(test: Content | None, yes: Content | None, no: Content | None) -> Content | None:
    if test is None or yes is None or no is None or any(t.value is None for t in test):
        return None
    size = max(len(test), len(yes), len(no))
    rows = zip(test * (size // len(test)), yes * (size // len(yes)), no * (size // len(no)), strict=True)
    return tuple(y if t.coef else n for t, y, n in rows)


def _whole_quotients(pairs: Sequence[tuple[Dim, Dim]]) -> Content | None:
    """Of numbers in floating point: those that are whole whatever the sizes are."""
    exact = [a.over(b) for a, b in pairs]
    return tuple(size for size in exact if size is not None) if None not in exact else None


def _cut_quotients(s: Known, value: ir.Value | None) -> Content | None:
    """Of a quotient in floating point: what is left of it without its fraction."""
    node = value.producer() if value is not None else None
    if value is None or node is None or node.op_type != "Div" or len(s.need(value)) > 1:
        return None
    pairs = _pairs(s, node)
    if pairs is None or any(size.coef < 0 for pair in pairs for size in pair):
        return None
    return tuple(floor_div(a, b) for a, b in pairs)


def _arithmetic(op: str, pairs: Sequence[tuple[Dim, Dim]]) -> Content | None:
    if op == "Add":
        return tuple(add(a, b) for a, b in pairs)
    if op == "Mul":
        return tuple(a * b for a, b in pairs)
    if op == "Div":
        return tuple(floor_div(a, b) for a, b in pairs)
    if op == "Sub":
        return tuple(
            dim(a.value - b.value) if a.value is not None and b.value is not None else dim(0) if a == b else opaque("sub", a, b)
            for a, b in pairs
        )
    if op in _WHOLE:
        results = [_whole(op, a, b) for a, b in pairs]
        return tuple(size for size in results if size is not None) if None not in results else None
    if op == "Equal" or op in _COMPARED:
        tests = [_equal(a, b) if op == "Equal" else _compared(op, a, b) for a, b in pairs]
        if None not in tests:
            return tuple(dim(int(bool(test))) for test in tests)
    return None


def _whole(op: str, a: Dim, b: Dim) -> Dim | None:
    if a.value is None or b.value is None:
        return opaque(op.lower(), a, b)
    return dim(_WHOLE[op](a.value, b.value)) if a.value >= 0 and b.value > 0 else None


def _compared(op: str, a: Dim, b: Dim) -> bool | None:
    """Which is larger, where both are known."""
    return None if a.value is None or b.value is None else _COMPARED[op](a.value, b.value)


def _equal(a: Dim, b: Dim) -> bool | None:
    """Whether two entries are equal, or None; a size is never negative, so it is never torch's -1 for "as it is"."""
    if a == b or (a.value is not None and b.value is not None):
        return a == b
    negative = [d.value is not None and d.value < 0 for d in (a, b)]
    return False if negative[0] != negative[1] else None
