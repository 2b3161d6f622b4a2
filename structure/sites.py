"""Sites: the MSAs and FFNs of a model as data, without the graph they were found in.

Words (design): a *site* is one MSA or FFN; it has hidden *axes*; a *unit* is one index on an axis; a *member* says where
an axis lies in a parameter. A member's axis is a product of *factors*, outermost first, e.g. the rows of a grouped-query
W_q are ``(("head", 8), ("group", 4), ("qk", 64))``: unit ``(h, j)`` of axis ``qk`` is then the four rows
``(h, 0..3, j)``, and unit ``h`` of axis ``head`` is 256 rows. Rotary embedding adds a factor ``("pair", 2)``.

Factors named in :data:`AXIS_FACTORS` span the axes; any other factor (``group``, ``pair``) is carried along whole.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Literal

import numpy as np

from inarch.structure.errors import BindingError
from inarch.structure.units import Indices

Kind = Literal["ffn", "msa"]

AXIS_FACTORS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"hidden": ("hidden",), "head": ("head",), "qk": ("head", "qk"), "vo": ("head", "vo"), "vo2": ("head", "vo2")}
)
"""Axis name -> the factors whose product is the axis. ``vo2`` is the second value axis of BiMultiHeadAttention."""


@dataclass(frozen=True)
class Member:
    """Where a site's hidden axis lies in one parameter.

    Attributes:
        role: what the parameter is to its site: ``up up_bias gate gate_bias down`` for an FFN, ``q q_bias k k_bias v v_bias
            o`` for an MSA (``v2 v2_bias o2`` for a second value path), and ``rider:...`` for constants that run along an axis
            (position-bias tables, per-unit scales).
        param: name of the parameter; one parameter may hold several members (packed q, k, v).
        axis: the axis of the parameter, as it is stored, on which the units lie.
        start: first index of this member on that axis; it occupies ``start .. start + size``.
        shape: shape of the parameter as it is stored.
        factors: ``(name, size)`` outermost first; their product is this member's size on the axis.
        transposed: True where the parameter is stored [out, in] (torch.nn.Linear), False for [in, out], for a matrix.
        runs: ``(start, length)`` pieces of the parameter's axis, in order, where the member is not one piece (q, k and v
            interleaved head by head in one matrix); empty where it is.
    """

    role: str
    param: str
    axis: int
    start: int
    shape: tuple[int, ...]
    factors: tuple[tuple[str, int], ...]
    transposed: bool = False
    runs: tuple[tuple[int, int], ...] = ()

    @property
    def positions(self) -> Indices:
        """Positions that the member occupies on its parameter's axis, in member order, shape [size]."""
        runs = self.runs or ((self.start, self.size),)
        return np.concatenate([np.arange(start, start + length, dtype=np.int64) for start, length in runs])

    @property
    def size(self) -> int:
        """Indices that the member occupies on its parameter's axis."""
        return math.prod(size for _, size in self.factors)

    @property
    def is_matrix(self) -> bool:
        """True for weight vectors, which can be shared; False for biases and riders, which stay each site's own."""
        return self.role in MATRIX_ROLES

    @property
    def is_bias(self) -> bool:
        """True for what is set to zero where a unit is pruned, though it is no weight vector."""
        return self.role.split(":")[0].endswith("_bias")

    @property
    def width(self) -> int:
        """Numbers per index of the axis: the weight vector's length for a matrix, 1 for a vector."""
        return math.prod(n for i, n in enumerate(self.shape) if i != self.axis)

    def has(self, axis: str) -> bool:
        """Whether the units of ``axis`` have an index in this member."""
        names = {name for name, _ in self.factors}
        return all(factor in names for factor in AXIS_FACTORS[axis])

    def relative(self, axis: str) -> Indices:
        """Positions of every unit of ``axis`` within this member.

        Returns:
            Shape [units, positions per unit], int64; position k of the member lies at ``positions[k]`` of its parameter's axis.
        """
        wanted = AXIS_FACTORS[axis]
        names = [name for name, _ in self.factors]
        order = [names.index(f) for f in wanted] + [i for i, n in enumerate(names) if n not in wanted]
        grid = np.arange(self.size, dtype=np.int64).reshape([size for _, size in self.factors]).transpose(order)
        units = math.prod(dict(self.factors)[f] for f in wanted)
        return grid.reshape(units, -1)

    def index(self, axis: str) -> Indices:
        """Positions of every unit of ``axis`` on the parameter's stored axis: :meth:`relative` placed there."""
        return self.positions[self.relative(axis)]


MATRIX_ROLES = frozenset({"up", "gate", "down", "q", "k", "v", "o", "v2", "o2"})


@dataclass(frozen=True)
class Axis:
    """A hidden axis of a site.

    Attributes:
        name: ``hidden``, ``head``, ``qk``, ``vo`` or ``vo2``.
        heads: how many heads the units are arranged in (1 for ``hidden``); key/value heads where heads are grouped.
        per_head: units in one head (1 for ``head``).
        frozen: why the axis cannot be changed, or None.
    """

    name: str
    heads: int
    per_head: int
    frozen: str | None = None

    @property
    def size(self) -> int:
        """Units on the axis; unit ``h * per_head + j`` is unit j of head h."""
        return self.heads * self.per_head


@dataclass(frozen=True)
class Site:
    """One MSA or FFN.

    Attributes:
        name: unique, from the parameters' common prefix where there is one.
        kind: ``ffn`` or ``msa``.
        members: role -> member, in a fixed order.
        sizes: factor name -> size; always ``{"hidden": n}`` or at least ``{"head": h, "qk": n, "vo": m}``.
        frozen: factor name -> why it cannot change. A frozen ``head`` forbids removing heads and splitting them into
            groups; a frozen ``qk`` forbids removing or splitting units inside heads.
        form: the form it was found in: ``decomposed``, ``Attention``, ``MultiHeadAttention`` ...
        calls: how many call-sites use these weights.
        uniform: factor names whose kept units must be the same in every head (rotary embedding: its table runs over all heads).
        ordered: factor names that something computed runs along (a bias over heads, gathered from a table as inputs want it):
            units may go, but not change places.
    """

    name: str
    kind: Kind
    members: Mapping[str, Member]
    sizes: Mapping[str, int]
    frozen: Mapping[str, str] = field(default_factory=dict)
    form: str = "decomposed"
    calls: int = 1
    uniform: frozenset[str] = frozenset()
    ordered: frozenset[str] = frozenset()

    @property
    def heads(self) -> int:
        """Heads of an MSA (key/value heads where they are grouped); 1 for an FFN."""
        return self.sizes.get("head", 1)

    @cached_property
    def axes(self) -> Mapping[str, Axis]:
        """Axis name -> axis, in a fixed order."""
        axes: dict[str, Axis] = {}
        for name, factors in AXIS_FACTORS.items():
            if factors[-1] not in self.sizes:
                continue
            per_head = 1 if name == "head" else self.sizes[factors[-1]]
            axes[name] = Axis(name, self.heads, per_head, self.frozen.get(factors[-1]))
        return axes

    def on(self, axis: str) -> tuple[Member, ...]:
        """Members in which the units of ``axis`` have indices."""
        return tuple(member for member in self.members.values() if member.has(axis))

    def unit_parameters(self, axis: str) -> tuple[int, int]:
        """Parameters of one unit of ``axis``: (its weight vectors, its biases and riders)."""
        vectors = own = 0
        size = self.axes[axis].size
        for member in self.on(axis):
            cost = member.size // size * member.width
            if member.is_matrix:
                vectors += cost
            else:
                own += cost
        return vectors, own

    @property
    def parameters(self) -> int:
        """Parameters of the site: its weight vectors, hidden biases and riders (not its output bias or norms)."""
        return sum(member.size * member.width for member in self.members.values())


@dataclass(frozen=True)
class Rejection:
    """Something that looks like a site and cannot be compiled.

    Attributes:
        name: a site-like name.
        reason: why, in one sentence.
        nodes: names of the nodes concerned.
        params: names of the parameters concerned.
    """

    name: str
    reason: str
    nodes: tuple[str, ...] = ()
    params: tuple[str, ...] = ()


@dataclass(frozen=True)
class SiteTable:
    """All sites of a model in model order, and what is around them.

    Attributes:
        sites: in the order of the model's graph.
        rejected: what looks like a site and is not compilable, with the reason.
        parameters: all numbers in the model's floating-point parameters that anything reads, a tied one counted once.
        bytes: the same in bytes.
        held: parameters of sites that something which is no site reads, too: they stay whole, whatever a plan does.
    """

    sites: tuple[Site, ...]
    rejected: tuple[Rejection, ...]
    parameters: int
    bytes: int
    held: frozenset[str] = frozenset()

    @cached_property
    def by_name(self) -> Mapping[str, Site]:
        """Site name -> site."""
        return {site.name: site for site in self.sites}

    def __getitem__(self, name: str) -> Site:
        try:
            return self.by_name[name]
        except KeyError:
            raise BindingError(f"the model has no site {name!r}", hint="inarch inspect lists its sites") from None

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the ordered sites' kinds, sizes and heads; neither names nor dtype take part."""
        return fingerprint(self.sites)


def fingerprint(sites: Sequence[Site]) -> str:
    """sha256 (hex) over the ordered sites' kinds, sizes and heads, so that one plan fits every export of a model."""
    rows = [[site.kind, sorted((f, n) for f, n in site.sizes.items())] for site in sites]
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()
