"""What a lowering decides: which units are stored, in which order, and which blocks of them are stored once.

A site is stored as *groups* of heads (an FFN has one group). In a group every axis is a row of *blocks*; a block holds the
same number of units of every head of its group, and is either private or one reader's view of a *segment*, a block of
weight vectors that several sites read and the file holds once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from inarch.structure.units import Indices


@dataclass(frozen=True, eq=False)
class ResolvedAxis:
    """The plan on one unit axis (``hidden``, ``qk``, ``vo``, ``vo2``).

    Head decisions are folded in, and sharing chains are followed to the root.

    Attributes:
        pruned: [units] bool; also True for every unit of a pruned head.
        root_site: [units] int; index into ``ResolvedPlan.names`` of the site that owns the unit's value; the own site where
            private.
        root_unit: [units] int; the unit on the same axis of the root site.
    """

    pruned: npt.NDArray[np.bool_]
    root_site: npt.NDArray[np.int64]
    root_unit: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ResolvedPlan:
    """A plan bound to a model's sites.

    Attributes:
        names: names of all the model's sites, in model order (planned or not).
        axes: site name -> axis name -> resolved axis; every site and every unit axis of the model is present.
    """

    names: tuple[str, ...]
    axes: Mapping[str, Mapping[str, ResolvedAxis]]


@dataclass(frozen=True, eq=False)
class Block:
    """Units that one site stores together, in one group of its heads.

    Attributes:
        units: [heads in the group, units a head] flat unit numbers on the site's axis, in stored order. A unit that the plan
            prunes may be among them: it is stored as zeros.
        segment: id of the shared segment, or None for private units.
    """

    units: Indices
    segment: str | None = None

    @property
    def per_head(self) -> int:
        """Units a head."""
        return int(self.units.shape[1])


@dataclass(frozen=True, eq=False)
class Group:
    """Heads of one site that are stored alike.

    Attributes:
        heads: head numbers in stored order; (0,) for an FFN.
        blocks: axis name -> its blocks in stored order; no block is empty, and an MSA has at least one on every axis.
    """

    heads: tuple[int, ...]
    blocks: Mapping[str, tuple[Block, ...]]


@dataclass(frozen=True, eq=False)
class LoweredSite:
    """How a site is stored.

    Attributes:
        name: the site.
        groups: its groups; empty where nothing is left, and the site becomes its output bias.
        touched: False where the site is stored exactly as it was (nothing pruned, nothing shared).
    """

    name: str
    groups: tuple[Group, ...]
    touched: bool

    @property
    def shared(self) -> bool:
        """Whether any block is a shared segment."""
        return any(b.segment for g in self.groups for blocks in g.blocks.values() for b in blocks)


@dataclass(frozen=True, eq=False)
class Segment:
    """Weight vectors stored once and read by several sites.

    Attributes:
        id: unique, deterministic.
        axis: the axis it lies on.
        width: units in it.
        readers: site name -> flat unit numbers on that site's axis, in stored order, shape [width]. At least two readers. The
            k-th unit of every reader has the same root.
    """

    id: str
    axis: str
    width: int
    readers: Mapping[str, Indices]


@dataclass(frozen=True)
class Legalised:
    """Bytes that legalising cost, for one reason at one site.

    Attributes:
        site: site name.
        axis: axis name.
        reason: one of ``head-counts`` ``multiple`` ``segment-size`` ``segment-limit`` ``pairing`` ``heads-differ`` ``zero-unit``
            ``rotary`` ``frozen`` ``form`` ``tied`` (numbers that the dense model ties and the plan makes the site hold alone).
        units: how many units are stored that the plan did not count.
        parameters: how many numbers that is.
        base: the site whose weight vectors these units store once more, its own name where it keeps what others read; None
            where they are pruned units kept as zeros, or riders.
    """

    site: str
    axis: str
    reason: str
    units: int
    parameters: int
    base: str | None = None


@dataclass(frozen=True, eq=False)
class LoweredPlan:
    """What will be stored, and why.

    Attributes:
        sites: every site of the model, in model order.
        segments: the shared segments, in the order of their first reader.
        legalised: what the plan's counts do not include, by site and reason.
        parameters: numbers in the dense model.
        planned: numbers that the plan counts.
        stored: numbers that the compiled file holds.
    """

    sites: tuple[LoweredSite, ...]
    segments: tuple[Segment, ...]
    legalised: tuple[Legalised, ...]
    parameters: int
    planned: int
    stored: int


class StoredWeights(Protocol):
    """Reads members after the plan has been applied by values; what passes store is cut out of this and nothing else."""

    def stored(self, site: str, role: str, positions: Indices, *, relative: bool = True) -> npt.NDArray[Any]:
        """Part of a member in its parameter's own layout, with ``len(positions)`` entries on the member's axis."""

    def origins(self, site: str, role: str) -> Indices:
        """Where each position of a member gets its value from; equal numbers are equal values, -1 is zero. Shape [size]."""

    def identity(self, site: str, role: str) -> Indices:
        """:meth:`origins` of the parameter's whole axis where no plan touches it. Shape [length of the axis]."""

    def check(self, site: str, role: str) -> None:
        """Refuse now what :meth:`stored` would refuse later (NaN in a changed weight)."""
