"""Coupling: which axes of which values are the same axis, seen through every operator that has a rule.

Every axis of a value is a product of *factors*. A rule unites factors (the columns of a MatMul and of the Add behind it) or
splits them (the Reshape of 768 into 12 x 64 splits one factor into two, everywhere at once). An operator without a rule freezes
every factor it touches, with its name as the reason. Constants, masks and tables are not united: what no projection made is
a *rider*, sliced where it meets a hidden axis, so that one rotary table does not couple all the layers that read it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir
from networkx.utils import UnionFind

from inarch.structure.arguments import data_inputs
from inarch.structure.constants import constant
from inarch.structure.dims import ONE, Dim
from inarch.structure.errors import ModelError
from inarch.structure.nodes import every_graph, every_node, graphs_in
from inarch.structure.shapes import Shapes
from inarch.structure.views import View, view_of

ENUMERATED = "its indices are picked one by one"
"""Reason of a factor that stands for named parts (the halves of a rotary pair, q/k/v of a packed matrix)."""


@dataclass(eq=False)
class Projection:
    """A matrix product of an activation with a 2-D weight.

    Attributes:
        node: MatMul, FusedMatMul or Gemm.
        x: the activation.
        weight: the value read as weight, and the parameter view behind it.
        transposed: True where the node reads the weight as [N, K].
        k: factors of the contracted axis, or None where no projection made ``x``.
        n: factors of the output axis.
    """

    node: ir.Node
    x: ir.Value
    weight: ir.Value
    view: View
    transposed: bool
    k: list[int] | None
    n: list[int]

    @property
    def k_axis(self) -> int:
        """Axis of the view that is contracted."""
        return 1 if self.transposed else 0


@dataclass
class Contraction:
    """A product of two activations: the score product, or the product of probabilities and values.

    Attributes:
        node: MatMul, Einsum or a fused attention operator.
        left: index of the left operand among the node's inputs.
        right: index of the right operand.
        factors: the factors that are summed over.
    """

    node: ir.Node
    left: int
    right: int
    factors: list[int] = field(default_factory=list)


Rule = Callable[["Coupling", ir.Node], None]


class Coupling:
    """The factors of a graph.

    ``order`` gives every node's place in the graph as it was read, ``projection_of`` the projection that a node is.

    Args:
        graph: the main graph; it is not changed.
        rules: operator type -> rule, for nodes that read at least one projected value.
        sources: operator types whose results count as made by a projection although no rule knows them (convolutions ...).
    """

    def __init__(self, graph: ir.Graph, rules: Mapping[str, Rule], sources: frozenset[str]) -> None:
        self.graph = graph
        self.order = {node: i for i, node in enumerate(graph)}
        self.shapes = Shapes(graph)
        self.projections: list[Projection] = []
        self.projection_of: dict[ir.Node, Projection] = {}
        self.contractions: dict[ir.Node, Contraction] = {}
        self.projected: set[ir.Value] = set()
        self.opaque_weights: dict[ir.Node, str] = {}
        self._sets = UnionFind()
        self._size: list[Dim] = []
        self._children: dict[int, list[int]] = {}
        self._frozen: dict[int, str] = {}
        self._axes: dict[ir.Value, tuple[list[int], ...] | None] = {}
        self._started = _PRODUCTS | frozenset(sources)
        self.captured = _captured(graph)
        outputs = set(graph.outputs)
        for node in graph:
            hot = any(v in self.projected for v in data_inputs(node) if v is not None)
            rule = rules.get(node.op_type) if node.domain in ("", "ai.onnx", "com.microsoft") else None
            heavy = node.op_type in sources and not self.aside(node)
            if not hot and not heavy and not (rule is not None and node.op_type in _PRODUCTS):
                continue
            if rule is None:
                self.freeze_node(node, f"{_operator(node)} has no coupling rule")
            else:
                self._apply(rule, node)
            if node.op_type in ("Shape", "Size"):
                # Sizes are no numbers of the model: what is computed from them keeps its original value.
                continue
            if hot or heavy or (self.projections and self.projections[-1].node is node) or node in self.opaque_weights:
                self.projected.update(v for v in node.outputs)
            for value in node.outputs:
                if value in outputs and value in self.projected:
                    self.freeze_value(value, f"it is the graph output {value.name}")
                if value in self.captured and value in self.projected:
                    self.freeze_value(value, "a subgraph captures it")

    def aside(self, node: ir.Node) -> bool:
        """Whether a node has graphs inside that only compute sizes or tables: no products, and nothing that a projection made."""
        graphs = graphs_in(node)
        return bool(graphs) and all(
            inner.op_type not in self._started and not any(v in self.projected for v in inner.inputs)
            for graph in graphs
            for inner in every_node(graph)
        )

    def _apply(self, rule: Rule, node: ir.Node) -> None:
        try:
            rule(self, node)
        except (IndexError, ZeroDivisionError, _ContradictionError) as error:  # rules take ranks at their word
            message = f"the shapes around this {_operator(node)} contradict each other"
            hint = "clear the shapes that it records (value_info) and run onnx.shape_inference, or export the model again"
            raise ModelError(message, where=str(node.name or node.outputs[0].name), hint=hint) from error

    # --- factors -------------------------------------------------------------------------------------------------------

    def new(self, size: Dim) -> list[int]:
        """A fresh factor of a size, as a list; an axis of 1 has no factor."""
        if size == ONE:
            return []
        self._size.append(size)
        return [len(self._size) - 1]

    def leaves(self, factors: Iterable[int]) -> list[int]:
        """The factors as they are now split, each as the representative of its set."""
        result: list[int] = []
        for factor in factors:
            root = int(self._sets[factor])
            children = self._children.get(root)
            if children is None:
                result.append(root)
            else:
                result.extend(self.leaves(children))
        return result

    def size(self, factor: int) -> Dim:
        """Size of a factor."""
        return self._size[factor]

    def frozen(self, factor: int) -> str | None:
        """Why a (leaf) factor cannot change, or None."""
        return self._frozen.get(int(self._sets[factor]))

    def axes(self, value: ir.Value) -> tuple[list[int], ...] | None:
        """Factors of each axis of a value; None where its rank is unknown."""
        if value not in self._axes:
            shape = self.shapes.shape(value)
            self._axes[value] = None if shape is None else tuple(self.new(d) for d in shape)
        return self._axes[value]

    def freeze(self, factors: Iterable[int], reason: str) -> None:
        """Mark factors as unchangeable; the first reason stays."""
        for leaf in self.leaves(factors):
            self._frozen.setdefault(leaf, reason)

    def freeze_value(self, value: ir.Value | None, reason: str) -> None:
        """Freeze every axis of a value."""
        axes = self.axes(value) if value is not None else None
        for factors in axes or ():
            self.freeze(factors, reason)

    def freeze_node(self, node: ir.Node, reason: str) -> None:
        """Freeze every axis of everything that a node reads and writes."""
        for value in node.inputs:
            if value is not None and value in self.projected:
                self.freeze_value(value, reason)
        for value in node.outputs:
            self.freeze_value(value, reason)

    def unite(self, a: Sequence[int], b: Sequence[int], reason: str = "its parts do not line up") -> None:
        """Make two factor lists the same axis, splitting factors where one list is finer; freeze what does not line up."""
        left, right = self._meet(self.leaves(a), self.leaves(b), last=True)
        if left or right:
            left, right = self._meet(left, right, last=False)
            self.freeze(left, reason)
            self.freeze(right, reason)

    def _meet(self, left: list[int], right: list[int], *, last: bool) -> tuple[list[int], list[int]]:
        at = -1 if last else 0
        while left and right:
            x, y = left[at], right[at]
            if x == y:
                del left[at], right[at]
                continue
            size_x, size_y = self._size[x], self._size[y]
            if size_x == size_y:
                self._union(x, y)
                del left[at], right[at]
            elif (rest := size_x.over(size_y)) is not None:
                self._split(x, rest, size_y, last=last)
            elif (rest := size_y.over(size_x)) is not None:
                self._split(y, rest, size_x, last=last)
            else:
                break
            left, right = self.leaves(left), self.leaves(right)
        return left, right

    def _split(self, factor: int, rest: Dim, piece: Dim, *, last: bool) -> None:
        parts = self.new(rest) + self.new(piece) if last else self.new(piece) + self.new(rest)
        self._children[factor] = parts
        if factor in self._frozen:
            self.freeze(parts, self._frozen[factor])

    def _union(self, a: int, b: int) -> None:
        reason = self._frozen.get(a) or self._frozen.get(b)
        self._sets.union(a, b)
        if reason is not None:
            self._frozen[int(self._sets[a])] = reason

    # --- what rules are made of ----------------------------------------------------------------------------------------

    def join(self, a: ir.Value, axis_a: int, b: ir.Value, axis_b: int) -> None:
        """Unite one axis of each of two values."""
        axes_a, axes_b = self.axes(a), self.axes(b)
        if axes_a is None or axes_b is None:
            self.freeze_value(a, f"the rank of {b.name} is unknown")
            self.freeze_value(b, f"the rank of {a.name} is unknown")
            return
        self.unite(axes_a[axis_a], axes_b[axis_b])

    def rank(self, value: ir.Value | None) -> int | None:
        """Rank of a value or None."""
        shape = self.shapes.shape(value) if value is not None else None
        return None if shape is None else len(shape)

    def project(self, node: ir.Node, transposed: bool) -> bool:
        """Register ``node`` as a projection if its second input is a 2-D weight, and its first is no table of the graph's own.

        A constant batch of sequences is none: exporters fold the zeros that a decoder starts from where the batch is fixed.
        """
        x, weight = node.inputs[0], node.inputs[1]
        if x is None or weight is None or weight in self.projected or (constant(x) is not None and (self.rank(x) or 0) < 3):
            return False
        shape = self.shapes.shape(weight)
        if shape is None or len(shape) != 2 or any(d.value is None for d in shape):
            return False
        if shape[1 if transposed else 0] == ONE:
            # An outer product (positions x inverse frequencies of a rotary table) projects nothing.
            return False
        view = view_of(weight, self.shapes)
        if view is None:
            reason = opaque_reason(weight)
            if reason is not None:
                self.opaque_weights[node] = reason
            return False
        rows, columns = reversed(shape) if transposed else shape
        for value, size in ((x, rows), (node.outputs[0], columns)):
            known = self.shapes.shape(value)
            if known and known[-1].value is not None and known[-1] != size:
                raise _ContradictionError
        out, axes = node.outputs[0], self.axes(node.outputs[0])
        if axes is None:
            self.opaque_weights[node] = f"the shape of its input {x.name} is unknown"
        if axes is None or len(axes) < 2:
            return False
        k: list[int] | None = None
        if x in self.projected:
            x_axes = self.axes(x)
            if x_axes is None:
                return False
            k = x_axes[-1]
            for i in range(len(axes) - 1):
                self.join(x, i, out, i)
        projection = Projection(node, x, weight, view, transposed, k, axes[-1])
        self.projections.append(projection)
        self.projection_of[node] = projection
        return True


class _ContradictionError(Exception):
    """Two values that an operator holds together have shapes that cannot be."""


def same_axes(c: Coupling, a: ir.Value, b: ir.Value) -> None:
    """Unite two values of one rank axis by axis."""
    rank = c.rank(a)
    if rank is None or c.rank(b) != rank:
        c.freeze_value(a, f"the rank of {b.name} is unknown")
        c.freeze_value(b, f"the rank of {a.name} is unknown")
        return
    for i in range(rank):
        c.join(a, i, b, i)


_PRODUCTS = frozenset({"MatMul", "FusedMatMul", "Gemm"})


def _operator(node: ir.Node) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type


def _captured(graph: ir.Graph) -> set[ir.Value]:
    """Values of the graph that a subgraph of one of its nodes reads."""
    found: set[ir.Value] = set()
    for inner in every_graph(graph):
        found.update(inner.outputs)
        for node in inner:
            found.update(v for v in node.inputs if v is not None)
    return found


def opaque_reason(weight: ir.Value, limit: int = 64) -> str | None:
    """Why a weight that is no view of a parameter cannot be changed; None for an activation.

    It is computed from constants (DequantizeLinear, Mul ...), or it is the default of a graph input, which a caller may replace.
    """
    stack, seen, made_by = [weight], set[ir.Value](), ""
    while stack and len(seen) < limit:
        value = stack.pop()
        if value in seen or constant(value) is not None:
            continue
        seen.add(value)
        node = value.producer()
        if node is None:
            if not value.is_initializer():
                return None
            return f"its weight {value.name} is the default of a graph input, which a caller may replace"
        if not made_by or node.op_type == "DequantizeLinear":
            made_by = node.op_type
        stack.extend(v for v in node.inputs if v is not None)
    if stack or not made_by:
        return None
    return f"quantised weight ({made_by})" if made_by == "DequantizeLinear" else f"its weight is computed by {made_by}"
