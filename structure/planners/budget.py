"""Spending a budget: what may be pruned from each site, what it costs, and the greedy choice among all sites.

A :class:`Draft` is one site on its way to a plan. It only ever moves between states that the lowering stores as they are
planned: one count of units a head, and ``heads * units a head`` a multiple of the cost table's width. H heads, P units a
head.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from inarch.structure.legalise import in_head_common
from inarch.structure.planners.weights import unit_axes
from inarch.structure.sites import Site
from inarch.structure.units import Indices


@dataclass(frozen=True)
class Rules:
    """What the lowering can store, and how much of a site must stay.

    Attributes:
        multiple: widths (heads times units a head) are multiples of this.
        segment: units in the smallest shared segment.
        minimum: smallest kept fraction of any axis, so that no layer vanishes by accident.
    """

    multiple: int
    segment: int
    minimum: float


@dataclass(frozen=True)
class Move:
    """One step of pruning at one site.

    Attributes:
        heads: heads that go.
        kept: axis -> units a head that stay.
        saving: parameters that the plan no longer counts.
        cost: what is lost: relative energy times parameters.
        depth: fraction of the axis that is gone half-way through the move.
    """

    heads: tuple[int, ...]
    kept: Mapping[str, int]
    saving: int
    cost: float
    depth: float


class Draft:
    """What of a site stays, unit by unit.

    Args:
        site: the site.
        energies: axis -> [H, P], see :func:`inarch.structure.planners.weights.energies`.
        rules: what can be stored.
        whole: whether heads may be removed.
        inside: whether units inside heads may be removed; always true for an FFN.
    """

    def __init__(
        self,
        site: Site,
        energies: Mapping[str, npt.NDArray[np.float64]],
        rules: Rules,
        *,
        whole: bool = True,
        inside: bool = True,
    ) -> None:
        self.site = site
        self.rules = rules
        self.axes = unit_axes(site)
        self.live = np.ones(site.heads, bool)
        self.locked_heads = np.zeros(site.heads, bool)
        self.kept = {name: site.axes[name].per_head for name in self.axes}
        self.floor = dict.fromkeys(self.axes, 1)
        self.vectors = {name: site.unit_parameters(name)[0] for name in self.axes}
        self.unit = {name: sum(site.unit_parameters(name)) for name in self.axes}
        self.riders = _head_riders(site)
        self.inside = inside or site.kind == "ffn"
        self.whole = whole and site.kind == "msa" and "head" not in site.frozen
        self.energies = {name: np.asarray(energies[name], np.float64) for name in self.axes}
        self.order: dict[str, Indices] = {}
        self._sorted: dict[str, npt.NDArray[np.float64]] = {}
        for name in self.axes:
            self._rank(name, np.zeros_like(self.energies[name], bool))

    def _rank(self, axis: str, locked: npt.NDArray[np.bool_]) -> None:
        """Order the units of each head from the first to go to the last, locked ones [H, P] at the end."""
        energy = self.energies[axis]
        # Axes that a table over all heads runs along must lose the same units in every head.
        ranked = np.broadcast_to(energy.mean(axis=0), energy.shape) if in_head_common(self.site, axis) else energy
        self.order[axis] = np.lexsort((ranked, locked), axis=1).astype(np.int64)
        self._sorted[axis] = np.take_along_axis(energy, self.order[axis], axis=1) * self.vectors[axis]

    def lock_units(self, axis: str, units: Indices) -> None:
        """Keep these units (flat numbers, the same count in every head) for good."""
        size = self.site.axes[axis]
        mask = np.zeros(size.size, bool)
        mask[units] = True
        locked = mask.reshape(size.heads, size.per_head)
        self.floor[axis] = max(1, int(locked.sum(axis=1).max()))
        self._rank(axis, locked)

    def lock_heads(self, heads: Indices) -> None:
        """Keep these heads, with everything in them, for good; units inside this site's heads stay too."""
        self.locked_heads[heads] = True
        self.inside = False

    def keep(self, axis: str) -> Indices:
        """Flat numbers of the units of ``axis`` that stay, ascending."""
        per_head = self.site.axes[axis].per_head
        heads = np.flatnonzero(self.live)
        inside = self.order[axis][heads, per_head - self.kept[axis] :]
        return np.sort((heads[:, None] * per_head + inside).reshape(-1))

    def moves(self) -> Iterator[Move]:
        """The next legal step on each way of pruning this site."""
        if self.inside:
            for axis in self.axes:
                move = self._inside_move(axis)
                if move is not None:
                    yield move
        if self.whole:
            move = self._head_move()
            if move is not None:
                yield move

    def apply(self, move: Move) -> None:
        """Take a step that :meth:`moves` offered in the present state."""
        self.live[list(move.heads)] = False
        self.kept.update(move.kept)

    def _legal(self, heads: int, kept: Mapping[str, int]) -> bool:
        return all(
            heads * count % self.rules.multiple == 0 and heads * count >= self.rules.minimum * self.site.axes[name].size
            for name, count in kept.items()
        )

    def _inside_move(self, axis: str) -> Move | None:
        size = self.site.axes[axis]
        if size.frozen is not None:
            return None
        heads, now = int(self.live.sum()), self.kept[axis]
        for count in range(now - 1, self.floor[axis] - 1, -1):
            if self._legal(heads, {axis: count}):
                gone = self._sorted[axis][self.live, size.per_head - now : size.per_head - count]
                saving = (now - count) * heads * self.unit[axis]
                return Move((), {axis: count}, saving, float(gone.sum()), 1 - heads * (now + count) / (2 * size.size))
        return None

    def _head_move(self) -> Move | None:
        heads = int(self.live.sum())
        free = np.flatnonzero(self.live & ~self.locked_heads)
        weight = np.zeros(self.site.heads)
        for name in self.axes:
            weight += self._sorted[name][:, self.site.axes[name].per_head - self.kept[name] :].sum(axis=1)
        weakest = free[np.argsort(weight[free], kind="stable")]
        for left in range(heads - 1, max(heads - len(free), 1) - 1, -1):
            if self._legal(left, self.kept):
                gone = weakest[: heads - left]
                each = self.riders + sum(self.kept[name] * self.unit[name] for name in self.axes)
                depth = 1 - (heads + left) / (2 * self.site.heads)
                return Move(tuple(int(h) for h in gone), {}, each * len(gone), float(weight[gone].sum()), depth)
        return None


def _head_riders(site: Site) -> int:
    """Parameters that run over heads and over no unit axis (a position-bias table's column), for one head."""
    return sum(
        member.size // site.heads * member.width
        for member in site.members.values()
        if member.has("head") and not any(member.has(name) for name in unit_axes(site))
    )


Key = Callable[[Move], float]


def spend(drafts: Sequence[Draft], saving: float, key: Key) -> int:
    """Prune, cheapest move first, until ``saving`` parameters are gone or nothing is left to prune.

    A move that would overshoot is passed over while a smaller one fits; at the end the one that lands nearest is taken, if
    it lands nearer than stopping does. Deterministic: equal keys go in the drafts' order. O(moves * log sites).

    Args:
        drafts: changed in place.
        saving: parameters to save; ``math.inf`` prunes as far as the rules allow.
        key: the smaller, the earlier.

    Returns:
        The parameters saved.
    """
    saved = 0
    version = [0] * len(drafts)
    heap: list[tuple[float, int, int, int, Move]] = []

    def offer(number: int) -> None:
        for way, move in enumerate(drafts[number].moves()):
            heapq.heappush(heap, (key(move), number, way, version[number], move))

    for number in range(len(drafts)):
        offer(number)
    passed: list[tuple[int, int, Move]] = []
    while heap and saved < saving:
        _, number, _, seen, move = heapq.heappop(heap)
        if seen != version[number]:
            continue
        if saved + move.saving > saving:
            passed.append((number, seen, move))
            continue
        drafts[number].apply(move)
        saved += move.saving
        version[number] += 1
        offer(number)
    fresh = [(move.saving, number, move) for number, seen, move in passed if seen == version[number]]
    if fresh and not math.isinf(saving):
        gain, number, move = min(fresh, key=lambda item: (item[0], item[1]))
        if saved + gain - saving < saving - saved:
            drafts[number].apply(move)
            saved += gain
    return saved
