"""Shared segments: sites that take values from each other -> groups of heads and what is stored once in them.

The work is done one cluster at a time: its heads are paired and grouped (:mod:`grouping`), what each group shares is fitted
into segments (:mod:`fitting`), and what breaks a limit is privatised (:mod:`repairs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from inarch.structure.clusters import Cluster, Group, head_sizes, sites_in
from inarch.structure.cost import Limits
from inarch.structure.demand import Demand
from inarch.structure.grouping import Grouping
from inarch.structure.links import Links
from inarch.structure.pairing import modes
from inarch.structure.repairs import Repairs
from inarch.structure.units import Indices


@dataclass(eq=False)
class SharedBlock:
    """One segment in a group: site number -> flat unit numbers in stored order, [width]."""

    readers: dict[int, Indices]


@dataclass(eq=False)
class SharedGroup:
    """Heads that several sites store in correspondence.

    Attributes:
        heads: site number -> its heads in stored order.
        blocks: axis -> segments in stored order.
    """

    heads: dict[int, list[int]]
    blocks: dict[str, list[SharedBlock]]


def share_cluster(demand: Demand, sites: Sequence[int], links: Links, limits: Limits) -> tuple[list[SharedGroup], Links]:
    """Decide what one cluster stores once.

    Returns:
        The groups of heads that share, and the links with the reasons for what is not shared. Of the ways to pair heads of
        different sizes, and with heads that share more than others apart or not, the one that saves most is taken.
    """
    best: tuple[int, list[SharedGroup], Links] | None = None
    for mode in modes(head_sizes(demand, sites, links)):
        for split in (True, False):
            cluster = Cluster(demand, sites, links.copy(), limits)
            grouping = Grouping(cluster, mode, split)
            while grouping.build():
                repairs = Repairs(cluster, grouping.groups, grouping.rest)
                if repairs.settle() and repairs.everyone_shares():
                    break
            saved, groups = _result(cluster, grouping.groups)
            if best is None or saved > best[0]:
                best = saved, groups, cluster.links
            if not grouping.has_split:
                break
    assert best is not None
    return best[1], best[2]


def _result(cluster: Cluster, groups: Sequence[Group]) -> tuple[int, list[SharedGroup]]:
    """What was found, in terms of the model's sites, and the numbers that it saves."""
    saved = 0
    result = []
    for group in groups:
        blocks: dict[str, list[SharedBlock]] = {}
        for x, pool in group.pools.items():
            blocks[x] = []
            for mask in sorted(pool.fits, key=lambda m: (-m.bit_count(), -len(pool.fits[m].rows), m)):
                rows = pool.fits[mask].rows
                if len(rows):
                    saved += len(rows) * (mask.bit_count() - 1) * cluster.vectors[x]
                    blocks[x].append(SharedBlock({cluster.numbers[i]: pool.units[rows, i] for i in sites_in(mask)}))
        result.append(SharedGroup({cluster.numbers[i]: heads for i, heads in group.heads.items()}, blocks))
    return saved, result
