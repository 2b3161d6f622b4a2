"""Make one site's private units storable: one count a head, widths in multiples, no empty axis.

Every function here only adds pruned units, which are then stored as zeros, and says why.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from inarch.structure.cost import Limits
from inarch.structure.demand import Bools, Demand, unit_axes
from inarch.structure.sites import AXIS_FACTORS, Site
from inarch.structure.units import Indices


def in_head_common(site: Site, axis: str) -> bool:
    """Whether all heads of a group must keep the same in-head indices of this axis.

    So it is where discovery says it, and where a member runs over in-head indices without heads (a rotary table).
    """
    factor = AXIS_FACTORS[axis][-1]
    if site.kind == "ffn":
        return False
    names = ({name for name, _ in member.factors} for member in site.members.values())
    return factor in site.uniform or any(factor in n and "head" not in n for n in names)


def rounded_down(count: int, heads: int, total: int, limits: Limits) -> int:
    """Units a head of a shared segment, brought down so that ``heads * count`` is a multiple; the rest is stored privately.

    Where that gives up too much of ``total`` units, half the multiple is tried, and so on.
    """
    multiple = limits.multiple
    while multiple > 1:
        down = count - count % (multiple // math.gcd(multiple, heads))
        lost = (count - down) * heads
        if lost < limits.multiple or lost <= limits.rounding * total:
            return down
        multiple //= 2
    return count


def rounded_up(count: int, heads: int, room: int, total: int, limits: Limits) -> int:
    """Units a head of a private block, brought up so that ``heads * count`` is a multiple, with at most ``room`` units a head."""
    multiple = limits.multiple
    while multiple > 1:
        step = multiple // math.gcd(multiple, heads)
        up = -(-count // step) * step
        added = (up - count) * heads
        if up <= room and (added < limits.multiple or added <= limits.rounding * total):
            return up
        multiple //= 2
    return count


@dataclass(eq=False)
class PrivateUnits:
    """The private block of one group of heads on one axis.

    Attributes:
        units: [heads, units a head] flat unit numbers, ascending in every head; no units a head where there is no block.
        added: reason -> pruned units among them.
    """

    units: Indices
    added: Counter[str] = field(default_factory=Counter)


def private_units(
    site: Site, axis: str, heads: Sequence[int], want: Bools, taken: Bools, alive: Bools, limits: Limits
) -> PrivateUnits:
    """The private block of a group of heads on one axis.

    Args:
        site: the site.
        axis: name of the axis.
        heads: the group's heads, in stored order.
        want: [units of the axis] what has to be stored.
        taken: [units of the axis] what the group stores in shared segments; the same count in every head.
        alive: [heads of the site] which heads are alive.
        limits: what to round to.
    """
    size = site.axes[axis].per_head
    order = np.asarray(heads, np.int64)
    wanted = want.reshape(-1, size)[order]
    shared = taken.reshape(-1, size)[order]
    keep = wanted & ~shared
    free = ~wanted & ~shared
    added: Counter[str] = Counter()
    before = int(keep.sum())
    if site.axes[axis].frozen is not None:
        keep = ~shared
        added["frozen"] = int(keep.sum()) - before
    else:
        if in_head_common(site, axis):
            keep = np.broadcast_to(keep.any(axis=0), keep.shape).copy()
            added["rotary"] = int(keep.sum()) - before
        counts = keep.sum(axis=1)
        used = int(shared[0].sum())
        count = int(counts.max())
        dead = ~wanted.any(axis=1) if "head" in site.frozen else ~alive[order]
        added["frozen"] += int((count - counts[dead]).sum())
        added["head-counts"] += int((count - counts[~dead]).sum())
        if used + count == 0:
            count = 1
            added["zero-unit"] += len(heads)
        if count:
            up = rounded_up(count, len(heads), size - used, len(heads) * (used + count), limits)
            added["multiple"] += (up - count) * len(heads)
            count = up
        # The first free units of each head: all heads have one size, so a head that lacks units has pruned ones.
        rank = np.cumsum(free & ~keep, axis=1)
        keep |= free & ~keep & (rank <= (count - counts)[:, None])
    per_head = keep.sum(axis=1)
    assert len(heads) == 0 or (per_head == per_head[0]).all(), "heads of a group must store equal counts"
    row, column = np.nonzero(keep)
    units = (order[row] * size + column).reshape(len(heads), -1)
    return PrivateUnits(units, Counter({reason: n for reason, n in added.items() if n}))


def split_private_heads(demand: Demand, number: int, heads: Sequence[int], spare: int, limits: Limits) -> list[list[int]]:
    """Group the heads of a site that share nothing, so that few of them keep pruned units for the fullest one's sake.

    A further group costs a kernel on every axis, so it has to save as much as the smallest segment would.

    Args:
        demand: the plan.
        number: the site.
        heads: its heads that share nothing, ascending.
        spare: how many groups there may be.
        limits: what a group has to save, and what to round to.

    Returns:
        The groups, each ascending, in the order of their first heads. O(heads^2 groups).
    """
    site = demand.table.sites[number]
    if len(heads) < 2 or spare < 2 or "head" in site.frozen:
        return [list(heads)] if heads else []
    axes = [name for name in unit_axes(site) if site.axes[name].frozen is None]
    costs = {name: sum(site.unit_parameters(name)) for name in axes}
    kept = {name: demand.axes[name].want[number].reshape(site.heads, -1) for name in axes}
    common = {name: in_head_common(site, name) for name in axes}
    weight = {head: sum(int(kept[name][head].sum()) * costs[name] for name in axes) for head in heads}
    if len({tuple(int(kept[name][head].sum()) for name in axes) for head in heads}) < 2 and not any(common.values()):
        return [list(heads)]
    ranked = sorted(heads, key=lambda head: (weight[head], head))

    def stored(members: Sequence[int]) -> int:
        total = 0
        for name in axes:
            rows = kept[name][list(members)]
            count = int(rows.any(axis=0).sum() if common[name] else rows.sum(axis=1).max())
            count = max(1, count)
            count = rounded_up(count, len(members), rows.shape[1], len(members) * count, limits)
            total += count * len(members) * costs[name]
        return total

    n = len(ranked)
    price = {(i, j): stored(ranked[i:j]) for i in range(n) for j in range(i + 1, n + 1)}
    fee = limits.min_segment * min(costs.values(), default=0) if costs else 0
    best: list[tuple[int, tuple[int, ...]]] = [(price[0, j], (0,)) for j in range(1, n + 1)]
    choice = best[-1]
    layer: Mapping[int, tuple[int, tuple[int, ...]]] = {j: best[j - 1] for j in range(1, n + 1)}
    for _ in range(2, min(spare, n) + 1):
        layer = {
            j: min((layer[i][0] + price[i, j] + fee, (*layer[i][1], i)) for i in range(1, j) if i in layer)
            for j in range(2, n + 1)
            if any(i in layer for i in range(1, j))
        }
        if n in layer and layer[n][0] < choice[0]:
            choice = layer[n]
    cuts = [*choice[1], n]
    groups = [sorted(ranked[i:j]) for i, j in pairwise(cuts)]
    return sorted(groups)
