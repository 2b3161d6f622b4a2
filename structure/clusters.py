"""A cluster: sites connected by sharing, and the rows that its groups of heads may store once.

Sites are numbered inside the cluster, and a set of readers is a bit mask of these numbers. A *row* is one root with the unit
that each reader uses for it; rows with the same readers make one segment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from inarch.structure.cost import Limits
from inarch.structure.demand import Demand
from inarch.structure.legalise import in_head_common
from inarch.structure.links import Links
from inarch.structure.units import Indices


@dataclass(eq=False)
class Fit:
    """What of one reader set's rows can be stored as a segment.

    Attributes:
        rows: chosen rows, in stored order.
        bad: a reader whose frozen or uniform order the segment breaks, or None.
        reason: why rows are left out, where any are.
    """

    rows: Indices
    bad: int | None = None
    reason: str = "head-counts"


@dataclass(eq=False)
class Pool:
    """One axis of one group.

    Attributes:
        units: [rows, sites of the cluster] the unit that each site uses for a row, or -1.
        wanted: site -> units that its heads in this group have to store, shared or not.
        members: reader set -> its rows, ascending.
        fits: reader set -> what of its rows makes a segment; missing where that has to be looked at again.
    """

    units: Indices
    wanted: dict[int, int]
    members: dict[int, Indices] = field(default_factory=dict)
    fits: dict[int, Fit] = field(default_factory=dict)


@dataclass(eq=False)
class Group:
    """Components with one signature; ``heads[site]`` lists them component by component, ``each[site]`` of them in every one."""

    components: list[int]
    heads: dict[int, list[int]]
    each: dict[int, int]
    pools: dict[str, Pool] = field(default_factory=dict)


def sites_in(mask: int) -> Iterator[int]:
    """The sites of a reader set, ascending."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


class Cluster:
    """What stays the same while one cluster is worked on, and its links, which only ever fall.

    Attributes:
        numbers: site in the cluster -> its number in the model.
        local: number in the model -> site in the cluster, or -1.
        first_head: [sites] number of each site's first head, heads of all sites numbered consecutively.
        site_of: [heads] the site of each head.
        head_size: site -> units a head on the axis that is shared most; FFNs are one head each, whatever their size.
        per_head: axis -> [sites] units a head there.
        vectors: axis -> numbers in one unit's weight vectors.
        frozen: axis -> sites whose axis there is frozen.
        common: axis -> sites whose heads keep the same in-head indices there.
        fixed_heads: sites whose heads can neither be dropped nor split into groups.
        wanted: axis -> site -> [heads] units that have to be stored.
    """

    def __init__(self, demand: Demand, sites: Sequence[int], links: Links, limits: Limits) -> None:
        self.demand = demand
        self.numbers = list(sites)
        self.sites = [demand.table.sites[n] for n in sites]
        self.links = links
        self.limits = limits
        self.axes = [name for name in demand.axes if any(name in site.axes for site in self.sites)]
        self.local = np.full(len(demand.table.sites), -1, np.int64)
        self.local[self.numbers] = np.arange(len(sites))
        heads = [site.heads for site in self.sites]
        self.first_head = np.concatenate(([0], np.cumsum(heads)[:-1])).astype(np.int64)
        self.site_of = np.repeat(np.arange(len(sites)), heads)
        sizes = head_sizes(demand, sites, links)
        self.head_size = {i: sizes[n] for i, n in enumerate(self.numbers)}
        self.per_head = {x: np.array([s.axes[x].per_head if x in s.axes else 1 for s in self.sites]) for x in self.axes}
        self.vectors = {x: next(s.unit_parameters(x)[0] for s in self.sites if x in s.axes) for x in self.axes}
        self.frozen = {
            x: {i for i, s in enumerate(self.sites) if x in s.axes and s.axes[x].frozen is not None} for x in self.axes
        }
        self.common = {x: {i for i, s in enumerate(self.sites) if x in s.axes and in_head_common(s, x)} for x in self.axes}
        self.fixed_heads = {i for i, s in enumerate(self.sites) if s.kind == "msa" and "head" in s.frozen}
        self.wanted = {
            x: [
                demand.axes[x].want[n].reshape(s.heads, -1).sum(axis=1) if x in s.axes else np.zeros(s.heads, np.int64)
                for n, s in zip(self.numbers, self.sites, strict=True)
            ]
            for x in self.axes
        }

    def drop(self, group: Group, x: str, mask: int, leaving: int, reason: str, rows: Indices | None = None) -> None:
        """Store rows of one reader set privately at the leaving readers; the others go on sharing."""
        pool = group.pools[x]
        all_rows = pool.members[mask]
        moved = all_rows if rows is None else rows
        staying = mask & ~leaving
        if staying.bit_count() < 2:
            leaving, staying = mask, 0
        for i in sites_in(leaving):
            self.links.cut(x, self.numbers[i], pool.units[moved, i], reason)
            pool.units[moved, i] = -1
        pool.fits.pop(mask, None)
        kept = np.setdiff1d(all_rows, moved, assume_unique=True) if rows is not None else all_rows[:0]
        if len(kept):
            pool.members[mask] = kept
        else:
            del pool.members[mask]
        if staying:
            pool.fits.pop(staying, None)
            pool.members[staying] = np.sort(np.concatenate((pool.members.get(staying, all_rows[:0]), moved)))


def by_readers(units: Indices) -> list[tuple[int, Indices]]:
    """Rows by the set of their readers: (bit mask, [rows]); only sets of two and more."""
    if not len(units):
        return []
    packed = np.packbits(units >= 0, axis=1, bitorder="little")
    view = np.ascontiguousarray(packed).view(np.dtype((np.void, packed.shape[1]))).ravel()
    found, at = np.unique(view, return_inverse=True)
    masks = [int.from_bytes(bytes(value), "little") for value in found]
    rows = np.split(np.argsort(at, kind="stable"), np.cumsum(np.bincount(at))[:-1])
    return [(mask, mine) for mask, mine in zip(masks, rows, strict=True) if mask.bit_count() >= 2]


def head_sizes(demand: Demand, sites: Sequence[int], links: Links) -> dict[int, int]:
    """Site -> units a head on the axis that the cluster shares most of; FFNs are one head each, whatever their size."""
    axes = [name for name in demand.axes if any(s in links.open[name] for s in sites)]
    first = max(axes, key=lambda name: sum(int(links.open[name][s].sum()) for s in sites if s in links.open[name]))
    table = demand.table.sites
    return {s: table[s].axes[first].per_head if table[s].kind == "msa" and first in table[s].axes else 1 for s in sites}
