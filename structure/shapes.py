"""Symbolic shapes of every value of a graph, and the contents of the small integer values that shapes are computed from.

The exporters compute reshape targets in the graph (Shape, Gather, Mul, Concat ...). To know which axis of a Reshape is the
head axis, those targets are followed symbolically: an entry is a :class:`~inarch.structure.dims.Dim`. An operator that is not
known here falls back to the shape recorded in the model; where there is none the value has no shape, and what reads it freezes.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from inarch.structure.constants import constant, constant_ints
from inarch.structure.contents import MOST, is_real, kept
from inarch.structure.dims import Dim, Shape, dim, opaque
from inarch.structure.shape_rules import DOMAINS, SHAPE_RULES, UNARY


class Shapes:
    """Shapes and integer contents of all values of a graph, subgraphs excluded.

    Args:
        graph: the graph; it is not changed.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._shape: dict[ir.Value, Shape | None] = {}
        self._content: dict[ir.Value, tuple[Dim, ...]] = {}
        self._real: set[ir.Value] = set()
        for value in (*graph.inputs, *graph.initializers.values()):
            self._shape[value] = self._declared(value)
        self._named = {symbol for value in graph.inputs for size in self._shape[value] or () for symbol in size.syms}
        for node in graph:
            self._visit(node)

    def shape(self, value: ir.Value) -> Shape | None:
        """The shape, or None where it cannot be known."""
        if value not in self._shape:
            self._shape[value] = self._declared(value)
        return self._shape[value]

    def content(self, value: ir.Value | None) -> tuple[Dim, ...] | None:
        """Entries of a small integer value, flattened, or None."""
        if value is None:
            return None
        if value not in self._content:
            ints = constant_ints(value)
            if ints is None or len(ints) > MOST:
                return None
            self._content[value] = tuple(dim(n) for n in ints)
        return self._content[value]

    def ints(self, value: ir.Value | None) -> list[int] | None:
        """Content where every entry is known."""
        content = self.content(value)
        if content is None or any(d.value is None for d in content):
            return None
        return [d.coef for d in content]

    def real(self, value: ir.Value | None) -> bool:
        """Whether a content is whole numbers in floating point: their quotients need not be whole."""
        return value in self._real

    @staticmethod
    def _declared(value: ir.Value) -> Shape | None:
        tensor = constant(value)
        declared: Iterable[object] | None = tensor.shape if tensor is not None else value.shape
        if declared is None:
            return None
        dims: list[Dim] = []
        for i, size in enumerate(declared):
            if isinstance(size, int):
                dims.append(dim(size))
            else:
                name = getattr(size, "value", None)
                dims.append(Dim(1, (str(name),)) if name is not None else opaque("dim", value.name, i))
        return tuple(dims)

    def _visit(self, node: ir.Node) -> None:
        rule = SHAPE_RULES.get(node.op_type)
        outputs: list[Shape | None] = [None] * len(node.outputs)
        content: tuple[Dim, ...] | None = None
        if (rule is not None or node.op_type == "If") and node.domain in DOMAINS:
            try:
                outputs, content = rule(self, node) if rule is not None else self._branches(node)
            except (IndexError, KeyError, ValueError, TypeError, ZeroDivisionError):
                # A node that breaks its operator's own rules is ORT's to refuse; here its shape is merely unknown.
                outputs = []
        elif node.domain in DOMAINS and node.op_type in UNARY:
            first = self.shape(node.inputs[0]) if node.inputs and node.inputs[0] is not None else None
            outputs = [first] + [None] * (len(node.outputs) - 1)
            content = kept(self, node)
        for i, value in enumerate(node.outputs):
            mine = outputs[i] if i < len(outputs) else None
            self._shape[value] = self._merge(mine, self._declared(value))
        if content is not None and len(content) <= MOST:
            self._content[node.outputs[0]] = content
            if is_real(self, node):
                self._real.add(node.outputs[0])

    def _branches(self, node: ir.Node) -> tuple[list[Shape | None], tuple[Dim, ...] | None]:
        """An If's: those of the branch that a known condition takes, else what both branches agree on."""
        shapes: list[list[Shape | None]] = []
        contents: list[tuple[Dim, ...] | None] = []
        for name in ("then_branch", "else_branch"):
            branch = node.attributes[name].as_graph()
            for inner in branch:
                self._visit(inner)
            shapes.append([self.shape(value) for value in branch.outputs])
            contents.append(self.content(branch.outputs[0]))
        test = self.ints(node.inputs[0])
        if test is not None and len(test) == 1:
            taken = 0 if test[0] else 1
            return shapes[taken], contents[taken]
        return [a if a == b else None for a, b in zip(*shapes, strict=True)], contents[0] if contents[0] == contents[1] else None

    def _merge(self, mine: Shape | None, declared: Shape | None) -> Shape | None:
        """Prefer what was computed; take a recorded integer, or size of an input, where the computed size is an unknown."""
        if mine is None or declared is None or len(mine) != len(declared):
            return mine if mine is not None else declared
        return tuple(
            d if m.value is None and (d.value is not None or self._better(d, m)) else m
            for m, d in zip(mine, declared, strict=True)
        )

    def _better(self, declared: Dim, mine: Dim) -> bool:
        """Whether a recorded size is one of the graph's inputs and the computed one is made of something else."""
        return self._named.issuperset(declared.syms) and not self._named.issuperset(mine.syms)

    def note(self, value: ir.Value, content: tuple[Dim, ...]) -> None:
        """Remember the content of a value."""
        self._content[value] = content

    def need(self, value: ir.Value | None) -> Shape:
        """The shape of a value that a rule cannot do without.

        Raises:
            ValueError: there is none.
        """
        shape = self.shape(value) if value is not None else None
        if shape is None:
            raise ValueError("shape unknown")
        return shape
