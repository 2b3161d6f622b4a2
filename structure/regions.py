"""Regions: where a site lies in the graph, call by call. Passes rewrite regions; nothing else needs them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from inarch.structure.constants import constant
from inarch.structure.coupling import Coupling, Projection
from inarch.structure.dims import ONE, Dim

Layout = tuple[tuple[tuple[str | None, Dim], ...], ...]
"""For each axis of a value its factors, outermost first: (factor name of the site or None, size)."""

ELEMENTWISE = frozenset(
    """Add Sub Mul Div Pow Mod Min Max Mean Sum And Or Xor Equal Greater GreaterOrEqual Less LessOrEqual Where PRelu BiasGelu
    FastGelu""".split()
)
"""Operators whose side inputs are aligned with the output by broadcasting."""

FUSED = frozenset({"Attention", "MultiHeadAttention"})
"""Operators that hold the score product, the softmax and the value product."""


@dataclass(frozen=True, eq=False)
class Rider:
    """A side input of a region that no projection made and that runs along one of the site's factors.

    Attributes:
        node: the node that reads it.
        position: index among the node's inputs.
        layout: its own axes in terms of the site's factors.
        role: the member that it is, or None where it is no parameter (a rotary table computed in the graph).
    """

    node: ir.Node
    position: int
    layout: Layout
    role: str | None


@dataclass(eq=False)
class Region:
    """One call-site of a site.

    Attributes:
        nodes: its nodes in graph order, projections included.
        projections: role -> projection, sources first.
        sinks: the roles whose contracted axis is hidden (``down``; ``o``, ``o2``).
        names: representative of a leaf factor -> its name at this site.
        riders: side inputs that run along the site's factors; biases are among them.
        coupling: the analysis that the region was found in.
    """

    nodes: list[ir.Node]
    projections: dict[str, Projection]
    sinks: frozenset[str]
    names: dict[int, str]
    coupling: Coupling
    riders: list[Rider] = field(default_factory=list)

    def layout(self, value: ir.Value) -> Layout | None:
        """Axes of a value in terms of the site's factors, or None where its rank is unknown."""
        axes = self.coupling.axes(value)
        if axes is None:
            return None
        return tuple(self.name_factors(factors) for factors in axes)

    def name_factors(self, factors: Iterable[int]) -> tuple[tuple[str | None, Dim], ...]:
        """Leaf factors with their names at this site."""
        leaves = self.coupling.leaves(factors)
        return tuple((self.names.get(leaf), self.coupling.size(leaf)) for leaf in leaves)

    def side_layout(self, node: ir.Node, position: int) -> Layout | None:
        """Layout of a side input of an elementwise node, read off the output that it is broadcast against."""
        value = node.inputs[position]
        shape = self.coupling.shapes.shape(value) if value is not None else None
        out = self.layout(node.outputs[0])
        if shape is None or out is None or len(shape) > len(out):
            return None
        shift = len(out) - len(shape)
        return tuple(() if size == ONE else out[shift + i] for i, size in enumerate(shape))

    def is_constant(self, node: ir.Node, position: int) -> bool:
        """Whether an input is an initializer or a Constant."""
        return constant(node.inputs[position]) is not None


def carries(layout: Layout | None, names: Iterable[str]) -> bool:
    """Whether any axis has one of the named factors."""
    wanted = set(names)
    return layout is not None and any(name in wanted for axis in layout for name, _ in axis)


def sizes_of(layout: Layout) -> Mapping[str, int]:
    """Factor name -> size, for the named factors of a layout."""
    return {name: size.coef for axis in layout for name, size in axis if name is not None}
