"""Fit a segment: of the rows with one set of readers, those that every head and every slot has equally many of."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from inarch.structure.clusters import Cluster, Fit, Group, sites_in
from inarch.structure.legalise import rounded_down
from inarch.structure.units import Indices


def fit_segment(cluster: Cluster, group: Group, x: str, mask: int) -> Fit:
    """The segment that one reader set's rows make: the same count in every slot, rounded."""
    pool = group.pools[x]
    rows = pool.members[mask]
    units = pool.units[rows]
    sites = list(sites_in(mask))
    frozen = [i for i in sites if i in cluster.frozen[x]]
    common = [i for i in sites if i in cluster.common[x]]
    lead = (frozen or common or sites)[0]
    component, first, last, slots = _slots(cluster, group, x, units, sites)
    many = len(group.components)
    reason = "head-counts"
    if common and slots == 1:
        reason = "rotary"
        rank, count = _ascending(cluster, x, units, common, lead, many)
        width = np.ones(len(rows), np.int64)
    else:
        order = np.lexsort((units[:, lead], first, component))
        cell = component[order] * slots + first[order]
        starts = np.flatnonzero(np.concatenate(([True], cell[1:] != cell[:-1])))
        held = np.diff(np.concatenate((starts, [len(rows)])))
        wide = (last - first)[order][starts]
        count = int((held // wide).min()) if int(wide.sum()) == many * slots else 0
        rank = np.empty(len(rows), np.int64)
        rank[order] = np.arange(len(rows)) - np.repeat(starts, held)
        width = last - first
    wanted = [pool.wanted[i] for i in sites]
    if not frozen and any(total != count * many * slots for total in wanted):
        down = rounded_down(count, many * slots, max(wanted), cluster.limits)
        reason = "multiple" if down < count and count * many * slots == len(rows) else reason
        count = down
    chosen = np.flatnonzero((rank >= 0) & (rank < count * width))
    chosen = chosen[np.lexsort((rank[chosen], first[chosen], component[chosen]))]
    picked = units[chosen]
    bad = frozen[0] if frozen and len(chosen) < len(rows) else None
    if len(chosen):
        for i in frozen + common:
            lined = picked[:, i].reshape(len(group.heads[i]), -1) - np.array(group.heads[i])[:, None] * cluster.per_head[x][i]
            whole = lined.shape[1] == cluster.per_head[x][i]
            ascending = (lined == lined[0]).all() and (np.diff(lined[0]) > 0).all()
            if not ascending or (i in frozen and not whole):
                bad = i
    return Fit(rows[chosen], bad, reason)


def _slots(cluster: Cluster, group: Group, x: str, units: Indices, sites: Sequence[int]) -> tuple[Indices, Indices, Indices, int]:
    """Where rows lie in their component: ([rows] component, first slot, slot after the last, slots a component)."""
    slots = math.lcm(*(group.each[i] for i in sites))
    if slots == 1:
        # Every reader has one head in a component, so any of them tells which component a row is of.
        sites = sites[:1]
    first = np.zeros(len(units), np.int64)
    last = np.full(len(units), slots, np.int64)
    component = first
    for i in sites:
        place = np.full(cluster.sites[i].heads, -1, np.int64)
        place[group.heads[i]] = np.arange(len(group.heads[i]))
        at = place[units[:, i] // cluster.per_head[x][i]]
        wide = slots // group.each[i]
        low = at % group.each[i] * wide
        component = at // group.each[i]
        first = np.maximum(first, low)
        last = np.minimum(last, low + wide)
    return component, first, last, slots


def _ascending(cluster: Cluster, x: str, units: Indices, common: Sequence[int], lead: int, many: int) -> tuple[Indices, int]:
    """Rows at in-head indices that every component has, in an order that ascends at every uniform reader.

    Returns:
        ([rows] rank in the segment or -1, units a component).
    """
    within = {i: units[:, i] % cluster.per_head[x][i] for i in common}
    key = np.zeros(len(units), np.int64)
    for i in common:
        key = key * int(cluster.per_head[x][i]) + within[i]
    found, at, count = np.unique(key, return_inverse=True, return_counts=True)
    sample = np.zeros(len(found), np.int64)
    sample[at] = np.arange(len(units))
    good = np.flatnonzero(count == many)
    start = lead if lead in within else common[0]
    good = good[np.argsort(within[start][sample[good]], kind="stable")]
    for i in common:
        good = good[longest_ascending(within[i][sample[good]].tolist())]
    rank = np.full(len(found), -1, np.int64)
    rank[good] = np.arange(len(good))
    return rank[at], len(good)


def longest_ascending(values: Sequence[int]) -> list[int]:
    """Indices of a longest strictly ascending subsequence. O(n log n)."""
    tails: list[int] = []
    ends: list[int] = []
    before: list[int] = []
    for i, value in enumerate(values):
        at = bisect_left(tails, value)
        before.append(ends[at - 1] if at else -1)
        if at == len(tails):
            tails.append(value)
            ends.append(i)
        else:
            tails[at], ends[at] = value, i
    chosen = []
    i = ends[-1] if ends else -1
    while i >= 0:
        chosen.append(i)
        i = before[i]
    return chosen[::-1]
