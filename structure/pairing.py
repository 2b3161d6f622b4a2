"""Which heads of different sites are stored in correspondence: shared units -> components of heads.

An FFN counts as one head. Two sites' heads are linked by the units that one takes from the other; the strongest links are
taken first. Where heads differ in size (6 x 64 and 12 x 32), a component holds several of the smaller for one of the larger,
and its *slots*, the common refinement of its heads, are what segments have equal counts in.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from inarch.structure.demand import Bools
from inarch.structure.units import Indices

Mode = Literal["one", "floor", "lcm"]
"""How many heads of a site one component may hold: one; as many as fit into the largest head; as many as make the least common
multiple of all sites' head sizes (needed where no size divides the other)."""


def modes(sizes: Mapping[int, int]) -> tuple[Mode, ...]:
    """The modes worth trying for sites with these head sizes (site -> units a head)."""
    distinct = sorted(set(sizes.values()))
    if len(distinct) < 2:
        return ("one",)
    if all(distinct[-1] % size == 0 for size in distinct):
        return ("floor", "one")
    return ("floor", "one", "lcm")


def components(
    left: Indices, right: Indices, counts: Indices, site_of: Indices, active: Bools, sizes: Mapping[int, int], mode: Mode
) -> Indices:
    """Join heads by descending number of shared units.

    Args:
        left: [links] a head; heads of all sites are numbered consecutively.
        right: [links] the head that it takes units from.
        counts: [links] how many.
        site_of: [heads] the site of each head.
        active: [heads] whether the head shares anything; others only tie their readers together, and take no place.
        sizes: site -> units a head.
        mode: how many heads of one site a component may hold.

    Returns:
        [heads] the component of each head. Ties are broken by the order of the sites. O(links log links).
    """
    parent = list(range(len(site_of)))
    held: dict[int, dict[int, int]] = {}
    direct: defaultdict[tuple[int, int], int] = defaultdict(int)
    whole = math.lcm(*sizes.values()) if mode == "lcm" else max(sizes.values())
    sites: list[int] = site_of.tolist()
    busy: list[bool] = active.tolist()

    def find(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    def room(node: int, site: int) -> int:
        """How many heads of another site may be linked to this one directly."""
        mine, other = sizes[sites[node]], sizes[site]
        if mode == "one" or (mine >= other and mine % other == 0) or (mine < other and other % mine == 0):
            return max(1, mine // other) if mode != "one" else 1
        return max(1, mine // other) if mode == "floor" else -(-mine // other) + 1

    order = np.lexsort((right, left, -counts))
    for a, b in zip(left[order].tolist(), right[order].tolist(), strict=True):
        one, two = find(a), find(b)
        if one == two:
            continue
        if direct[a, sites[b]] >= room(a, sites[b]) or direct[b, sites[a]] >= room(b, sites[a]):
            continue
        first = held.get(one) or ({sites[one]: 1} if busy[one] else {})
        second = held.get(two) or ({sites[two]: 1} if busy[two] else {})
        merged = dict(first)
        for site, n in second.items():
            merged[site] = merged.get(site, 0) + n
        if any(n > (1 if mode == "one" else max(1, whole // sizes[site])) for site, n in merged.items()):
            continue
        direct[a, sites[b]] += 1
        direct[b, sites[a]] += 1
        parent[max(one, two)] = min(one, two)
        held[min(one, two)] = merged
    return np.array([find(node) for node in range(len(sites))], np.int64)


def order_heads(
    heads: Mapping[int, Sequence[int]], weights: Mapping[tuple[int, int], Mapping[tuple[int, int], int]]
) -> dict[int, list[int]]:
    """Order one component's heads so that heads which share lie over each other.

    Args:
        heads: site -> its heads in the component, ascending.
        weights: (site, head) -> (site, head) -> units that both use.

    Returns:
        site -> its heads in order; the coarsest site keeps its order, each other follows those before it.
    """
    ordered: dict[int, list[int]] = {}
    place: dict[tuple[int, int], float] = {}
    for site in sorted(heads, key=lambda s: (len(heads[s]), s)):
        score: dict[int, float] = {}
        for i, head in enumerate(heads[site]):
            near = [(place[other], n) for other, n in weights.get((site, head), {}).items() if other in place]
            total = sum(n for _, n in near)
            score[head] = sum(p * n for p, n in near) / total if total else (i + 0.5) / len(heads[site])
        ordered[site] = sorted(heads[site], key=lambda head: (round(score[head], 9), head))
        for i, head in enumerate(ordered[site]):
            place[site, head] = (i + 0.5) / len(ordered[site])
    return ordered
