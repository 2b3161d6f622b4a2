"""Shared segments: sites that take values from each other -> groups of heads and what is stored once in them.

The work is done one *cluster* at a time: sites that are connected by sharing. Its heads are paired (:mod:`pairing`), components
with the same sites make a group, and in a group each axis is a *pool* of rows. A row is one root with the unit that each
reader uses for it; rows with the same readers make one segment. What cannot be stored so is privatised, and sharing only ever
falls, so this ends. Sites are numbered inside the cluster here, and a set of readers is a bit mask of these numbers.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from inarch.structure.cost import Limits
from inarch.structure.demand import AxisDemand, Bools, Demand
from inarch.structure.legalise import in_head_common, rounded_down
from inarch.structure.pairing import Mode, components, modes, order_heads
from inarch.structure.units import Indices

REASONS = ("pairing", "head-counts", "multiple", "segment-size", "segment-limit", "heads-differ", "rotary", "frozen")
"""Why a unit that the plan shares is stored privately."""

MANY = 24
"""Reader sets in a pool above which they are first reduced to the most valuable ones."""


@dataclass(eq=False)
class Links:
    """Which units may still be shared, and why the others may not.

    Attributes:
        open: axis -> site number -> [units] bool.
        why: axis -> site number -> [units] index into :data:`REASONS`.
    """

    open: dict[str, dict[int, Bools]]
    why: dict[str, dict[int, Indices]]

    def copy(self) -> Links:
        """A copy to try something on."""
        return Links(
            {axis: {s: a.copy() for s, a in sites.items()} for axis, sites in self.open.items()},
            {axis: {s: a.copy() for s, a in sites.items()} for axis, sites in self.why.items()},
        )

    def cut(self, axis: str, site: int, units: Indices, reason: str) -> None:
        """Store these units privately from now on."""
        self.open[axis][site][units] = False
        self.why[axis][site][units] = REASONS.index(reason)


def links_of(demand: Demand) -> Links:
    """Units whose root has at least two users; a site that uses one root twice may share one of the two."""
    links = Links({}, {})
    for name, axis in demand.axes.items():
        links.open[name], links.why[name] = {}, {}
        for site in axis.sites:
            may = axis.want[site].copy()
            units = np.flatnonzero(may)
            roots = axis.root[site][units]
            foreign = axis.owner[roots] != site
            order = np.lexsort((units, foreign, roots))
            again = order[1:][roots[order][1:] == roots[order][:-1]]
            may[units[again]] = False
            links.open[name][site] = may
            links.why[name][site] = np.zeros(len(may), np.int64)
        shared = _users(axis, links.open[name]) >= 2
        for site in axis.sites:
            links.open[name][site] &= shared[axis.root[site]]
    return links


def _users(axis: AxisDemand, may: Mapping[int, Bools], sites: Sequence[int] | None = None) -> Indices:
    """How many sites use each root, [roots]."""
    users = np.zeros(len(axis.owner), np.int64)
    for site in axis.sites if sites is None else sites:
        users[axis.root[site][may[site]]] += 1
    return users


def clusters(demand: Demand, links: Links) -> list[list[int]]:
    """Sites connected by sharing (a root's own site among them), each ascending, in the order of their first sites."""
    parent = list(range(len(demand.table.sites)))

    def find(site: int) -> int:
        while parent[site] != site:
            site = parent[site]
        return site

    for name, axis in demand.axes.items():
        for site in axis.sites:
            for other in np.unique(axis.owner[axis.root[site][links.open[name][site]]]).tolist():
                one, two = find(site), find(other)
                parent[max(one, two)] = min(one, two)
    found: defaultdict[int, list[int]] = defaultdict(list)
    for site in range(len(parent)):
        found[find(site)].append(site)
    return [sites for _, sites in sorted(found.items()) if len(sites) > 1]


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
    for mode in modes(_head_sizes(demand, sites, links)):
        for split in (True, False):
            trial = _Cluster(demand, sites, links.copy(), limits, mode, split)
            groups = trial.run()
            if best is None or trial.saved > best[0]:
                best = trial.saved, groups, trial.links
            if not trial.has_split:
                break
    assert best is not None
    return best[1], best[2]


def _head_sizes(demand: Demand, sites: Sequence[int], links: Links) -> dict[int, int]:
    """Site -> units a head on the axis that the cluster shares most of; FFNs are one head each, whatever their size."""
    axes = [name for name in demand.axes if any(s in links.open[name] for s in sites)]
    first = max(axes, key=lambda name: sum(int(links.open[name][s].sum()) for s in sites if s in links.open[name]))
    table = demand.table.sites
    return {s: table[s].axes[first].per_head if table[s].kind == "msa" and first in table[s].axes else 1 for s in sites}


@dataclass(eq=False)
class _Fit:
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
class _Pool:
    """One axis of one group: rows by reader set."""

    units: Indices
    members: dict[int, Indices] = field(default_factory=dict)
    fits: dict[int, _Fit] = field(default_factory=dict)


@dataclass(eq=False)
class _Group:
    """Components with one signature; ``heads[site]`` lists them component by component, ``each[site]`` of them in every one."""

    components: list[int]
    heads: dict[int, list[int]]
    each: dict[int, int]
    pools: dict[str, _Pool] = field(default_factory=dict)


def _sites_in(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def _longest_ascending(values: Sequence[int]) -> list[int]:
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


class _Cluster:
    """The search for what one cluster stores once."""

    def __init__(self, demand: Demand, sites: Sequence[int], links: Links, limits: Limits, mode: Mode, split: bool) -> None:
        self.demand = demand
        self.numbers = list(sites)
        self.sites = [demand.table.sites[n] for n in sites]
        self.links = links
        self.limits = limits
        self.mode = mode
        self.split = split
        self.has_split = False
        self.saved = 0
        self.axes = [name for name in demand.axes if any(name in site.axes for site in self.sites)]
        self.local = np.full(len(demand.table.sites), -1, np.int64)
        self.local[self.numbers] = np.arange(len(sites))
        heads = [site.heads for site in self.sites]
        self.first_head = np.concatenate(([0], np.cumsum(heads)[:-1])).astype(np.int64)
        self.site_of = np.repeat(np.arange(len(sites)), heads)
        sizes = _head_sizes(demand, sites, links)
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
        self.groups: list[_Group] = []
        self.rest: list[bool] = []

    def run(self) -> list[SharedGroup]:
        """Pair, segment and repair until everything holds."""
        while self._build():
            if self._settle() and self._everyone_shares():
                break
        return self._result()

    # ---------------------------------------------------------------- pairing

    def _build(self) -> bool:
        """Pair heads and fill the pools from the links that are still open; False where there are none."""
        live = self._live()
        label = self._pair(live)
        rows = {x: self._rows(x, live[x], label) for x in self.axes}
        heads: defaultdict[int, dict[int, list[int]]] = defaultdict(dict)
        most = max(site.heads for site in self.sites)
        for i in range(len(self.sites)):
            found = [
                component[units[:, i] >= 0] * most + units[units[:, i] >= 0, i] // self.per_head[x][i]
                for x, (component, units) in rows.items()
            ]
            for key in np.unique(np.concatenate(found)).tolist():
                heads[key // most].setdefault(i, []).append(key % most)
        ordered = {c: self._order(c, mine, rows) for c, mine in sorted(heads.items())}
        by_signature: defaultdict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
        for c, mine in ordered.items():
            by_signature[tuple((site, len(mine[site])) for site in sorted(mine))].append(c)
        self.groups = []
        for signature in sorted(by_signature):
            for some in self._partition(signature, by_signature[signature], rows):
                self.groups.append(self._group(signature, some, ordered))
        if not self._heads_fit():
            return self._build()
        for group in self.groups:
            for x, (component, units) in rows.items():
                self._fill(group, x, units[np.isin(component, group.components)])
        self.rest = []
        for i, (number, site) in enumerate(zip(self.numbers, self.sites, strict=True)):
            grouped = sum(len(group.heads.get(i, ())) for group in self.groups)
            self.rest.append((site.heads if i in self.fixed_heads else int(self.demand.alive[number].sum())) > grouped)
        return bool(self.groups)

    def _live(self) -> dict[str, dict[int, Bools]]:
        """Open links whose root has at least two users left: axis -> site in the cluster -> [units]."""
        live: dict[str, dict[int, Bools]] = {}
        for x in self.axes:
            axis = self.demand.axes[x]
            mine = [n for n in self.numbers if n in axis.want]
            users = _users(axis, self.links.open[x], mine)
            live[x] = {int(self.local[n]): self.links.open[x][n] & (users[axis.root[n]] >= 2) for n in mine}
        return live

    def _pair(self, live: Mapping[str, Mapping[int, Bools]]) -> Indices:
        """The component of every head in the cluster."""
        total = len(self.site_of)
        active = np.zeros(total, np.bool_)
        keys = []
        for x in self.axes:
            axis = self.demand.axes[x]
            offset = np.array([axis.offset.get(n, 0) for n in self.numbers])
            for i, may in live[x].items():
                units = np.flatnonzero(may)
                mine = self.first_head[i] + units // self.per_head[x][i]
                active[mine] = True
                roots = axis.root[self.numbers[i]][units]
                owner = self.local[axis.owner[roots]]
                theirs = self.first_head[owner] + (roots - offset[owner]) // self.per_head[x][owner]
                keys.append((mine * total + theirs)[mine != theirs])
        pairs, counts = np.unique(np.concatenate(keys), return_counts=True)
        return components(pairs // total, pairs % total, counts, self.site_of, active, self.head_size, self.mode)

    def _rows(self, x: str, live: Mapping[int, Bools], label: Indices) -> tuple[Indices, Indices]:
        """Roots that several sites of one component use: ([rows] component, [rows, sites] unit or -1)."""
        axis = self.demand.axes[x]
        roots = len(axis.owner)
        keys, sites, units = [], [], []
        for i, may in live.items():
            mine = np.flatnonzero(may)
            keys.append(label[self.first_head[i] + mine // self.per_head[x][i]] * roots + axis.root[self.numbers[i]][mine])
            sites.append(np.full(len(mine), i))
            units.append(mine)
        found, row = np.unique(np.concatenate(keys), return_inverse=True)
        table = np.full((len(found), len(self.sites)), -1, np.int64)
        table[row, np.concatenate(sites)] = np.concatenate(units)
        keep = (table >= 0).sum(axis=1) >= 2
        return found[keep] // roots, table[keep]

    def _order(
        self, component: int, heads: Mapping[int, list[int]], rows: Mapping[str, tuple[Indices, Indices]]
    ) -> dict[int, list[int]]:
        """Order a component's heads; only where it holds several of one site is there anything to do."""
        if all(len(mine) == 1 for mine in heads.values()):
            return {site: list(mine) for site, mine in heads.items()}
        if any(site in self.fixed_heads for site in heads):
            return {site: list(mine) for site, mine in heads.items()}
        weights: defaultdict[tuple[int, int], defaultdict[tuple[int, int], int]] = defaultdict(lambda: defaultdict(int))
        for x, (label, units) in rows.items():
            mine = units[label == component]
            at = np.where(mine >= 0, mine // self.per_head[x], -1)
            for a in heads:
                for b in heads:
                    both = (at[:, a] >= 0) & (at[:, b] >= 0)
                    if a != b:
                        for one, two in zip(at[both, a].tolist(), at[both, b].tolist(), strict=True):
                            weights[a, one][b, two] += 1
        return order_heads(heads, weights)

    def _partition(
        self,
        signature: tuple[tuple[int, int], ...],
        candidates: list[int],
        rows: Mapping[str, tuple[Indices, Indices]],
    ) -> list[list[int]]:
        """Split components of one signature in two where the fuller ones would lose too much to the emptiest.

        The split has to save what the smallest segment would.
        """
        if not self.split or len(candidates) < 2 or any(site in self.fixed_heads for site, _ in signature):
            return [candidates]
        place = {c: i for i, c in enumerate(candidates)}
        columns: list[tuple[int, Indices]] = []
        for x, (label, units) in rows.items():
            mine = np.isin(label, candidates)
            at = np.array([place[c] for c in label[mine].tolist()], np.int64)
            for mask, chosen in _by_readers(units[mine]):
                counts = np.bincount(at[chosen], minlength=len(candidates))
                columns.append((self.vectors[x] * (mask.bit_count() - 1), counts))
        weight = sum(price * counts for price, counts in columns)
        rank = np.argsort(-np.asarray(weight), kind="stable")

        def value(some: Indices) -> int:
            return sum(price * len(some) * int(counts[some].min()) for price, counts in columns)

        fee = self.limits.min_segment * max(self.vectors.values())
        best = max(
            ((value(rank[:i]) + value(rank[i:]), i) for i in range(1, len(candidates))),
            key=lambda found: (found[0], -found[1]),
        )
        if best[0] - value(rank) < max(1, fee):
            return [candidates]
        self.has_split = True
        return [sorted(candidates[j] for j in part) for part in (rank[: best[1]].tolist(), rank[best[1] :].tolist())]

    def _group(
        self, signature: tuple[tuple[int, int], ...], some: list[int], ordered: Mapping[int, Mapping[int, list[int]]]
    ) -> _Group:
        """Line up the heads of several components, in the order of the site whose order is fixed, else of the first."""
        sites = [site for site, _ in signature]
        lead = next((site for site in sites if site in self.fixed_heads), sites[0])
        lined = sorted(some, key=lambda c: ordered[c][lead])
        return _Group(lined, {s: [h for c in lined for h in ordered[c][s]] for s in sites}, dict(signature))

    def _heads_fit(self) -> bool:
        """Whether sites with frozen heads have one group with all of them in natural order; those that don't lose their links."""
        fit = True
        for i in sorted(self.fixed_heads):
            mine = [group.heads[i] for group in self.groups if i in group.heads]
            if mine and mine != [list(range(self.sites[i].heads))]:
                for x in self.axes:
                    if x in self.sites[i].axes:
                        self.links.cut(x, self.numbers[i], np.flatnonzero(self.links.open[x][self.numbers[i]]), "frozen")
                return False
        return fit

    # ------------------------------------------------------------------ pools

    def _fill(self, group: _Group, x: str, units: Indices) -> None:
        """Make the pool of one axis of a group from its rows."""
        units = units.copy()
        pool = group.pools[x] = _Pool(units)
        if max(group.each.values()) > 1:
            self._align(group, x, units)
        for mask, rows in _by_readers(units):
            pool.members[mask] = rows
        for i in sorted(self.frozen[x] & group.heads.keys()):
            with_it = [mask for mask in pool.members if mask >> i & 1]
            count = sum(len(pool.members[mask]) for mask in with_it)
            if with_it and (len(with_it) > 1 or count != len(group.heads[i]) * self.per_head[x][i]):
                for mask in with_it:
                    self._drop(group, x, mask, 1 << i, "frozen")
        if len(pool.members) > MANY:
            self._reduce(group, x)

    def _slots(self, group: _Group, x: str, units: Indices, sites: Sequence[int]) -> tuple[Indices, Indices, Indices, int]:
        """Where rows lie in their component: ([rows] component, first slot, slot after the last, slots a component).

        Rows whose readers' heads do not overlap have no slots left: first >= last.
        """
        slots = math.lcm(*(group.each[i] for i in sites))
        first = np.zeros(len(units), np.int64)
        last = np.full(len(units), slots, np.int64)
        component = np.zeros(len(units), np.int64)
        for i in sites:
            place = np.full(self.sites[i].heads, -1, np.int64)
            place[group.heads[i]] = np.arange(len(group.heads[i]))
            mine = units[:, i] >= 0
            at = place[units[:, i] // self.per_head[x][i]]
            wide = slots // group.each[i]
            low = at % group.each[i] * wide
            component = np.where(mine, at // group.each[i], component)
            first = np.where(mine, np.maximum(first, low), first)
            last = np.where(mine, np.minimum(last, low + wide), last)
        return component, first, last, slots

    def _align(self, group: _Group, x: str, units: Indices) -> None:
        """Privatise readers whose head does not lie over those of the coarser readers of the same row."""
        slots = math.lcm(*group.each.values())
        first = np.zeros(len(units), np.int64)
        last = np.full(len(units), slots, np.int64)
        for i in sorted(group.heads, key=lambda site: (group.each[site], site)):
            place = np.full(self.sites[i].heads, -1, np.int64)
            place[group.heads[i]] = np.arange(len(group.heads[i]))
            mine = units[:, i] >= 0
            wide = slots // group.each[i]
            low = place[units[:, i] // self.per_head[x][i]] % group.each[i] * wide
            new_first, new_last = np.maximum(first, low), np.minimum(last, low + wide)
            fits = mine & (new_first < new_last)
            first, last = np.where(fits, new_first, first), np.where(fits, new_last, last)
            off = mine & ~fits
            if off.any():
                self.links.cut(x, self.numbers[i], units[off, i], "heads-differ")
                units[off, i] = -1

    def _reduce(self, group: _Group, x: str) -> None:
        """Bring very many reader sets down to the most valuable ones, one after the other, each over the rows that are left."""
        pool = group.pools[x]
        masks = sorted(pool.members)
        member = np.array([[mask >> i & 1 for i in range(len(self.sites))] for mask in masks], np.bool_)
        count = np.array([len(pool.members[mask]) for mask in masks])
        left = np.ones(len(masks), np.bool_)
        while left.any() and len(pool.members) > 1:
            inside = left.copy()
            target: list[int] = []
            value = 0
            while True:
                gains = (member[inside] * count[inside][:, None]).sum(axis=0) * len(target)
                gains[target] = -1
                if not target:
                    together = (member[inside] * count[inside][:, None]).T.astype(np.int64) @ member[inside]
                    np.fill_diagonal(together, 0)
                    at = int(together.argmax())
                    value = int(together.flat[at])
                    target = [at // len(self.sites), at % len(self.sites)]
                elif (more := int(gains.argmax())) not in target and gains[more] >= value:
                    target.append(more)
                    value = int(gains[more])
                else:
                    break
                inside = left & member[:, target].all(axis=1)
            wanted = sum(1 << i for i in target)
            for at in np.flatnonzero(inside).tolist():
                if value == 0 or value // (len(target) - 1) < self.limits.min_segment:
                    self._drop(group, x, masks[at], masks[at], "segment-size")
                elif masks[at] != wanted:
                    self._drop(group, x, masks[at], masks[at] & ~wanted, "segment-limit")
                left[at] = False
            if value == 0:
                break

    def _drop(self, group: _Group, x: str, mask: int, leaving: int, reason: str, rows: Indices | None = None) -> None:
        """Store rows of one reader set privately at the leaving readers; the others go on sharing."""
        pool = group.pools[x]
        all_rows = pool.members[mask]
        moved = all_rows if rows is None else rows
        staying = mask & ~leaving
        if staying.bit_count() < 2:
            leaving, staying = mask, 0
        for i in _sites_in(leaving):
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

    # ------------------------------------------------------------------- fits

    def _fit(self, group: _Group, x: str, mask: int) -> _Fit:
        """The segment that one reader set's rows make: the same count in every slot, rounded."""
        pool = group.pools[x]
        rows = pool.members[mask]
        units = pool.units[rows]
        sites = list(_sites_in(mask))
        frozen = [i for i in sites if i in self.frozen[x]]
        common = [i for i in sites if i in self.common[x]]
        lead = (frozen or common or sites)[0]
        component, first, last, slots = self._slots(group, x, units, sites)
        many = len(group.components)
        reason = "head-counts"
        if common and slots == 1:
            reason = "rotary"
            rank, count = self._ascending(x, units, common, lead, many)
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
        wanted = [int(self.wanted[x][i][group.heads[i]].sum()) for i in sites]
        if not frozen and any(total != count * many * slots for total in wanted):
            down = rounded_down(count, many * slots, max(wanted), self.limits)
            reason = "multiple" if down < count and count * many * slots == len(rows) else reason
            count = down
        chosen = np.flatnonzero((rank >= 0) & (rank < count * width))
        chosen = chosen[np.lexsort((rank[chosen], first[chosen], component[chosen]))]
        picked = units[chosen]
        bad = frozen[0] if frozen and len(chosen) < len(rows) else None
        if len(chosen):
            for i in frozen + common:
                lined = picked[:, i].reshape(len(group.heads[i]), -1) - np.array(group.heads[i])[:, None] * self.per_head[x][i]
                whole = lined.shape[1] == self.per_head[x][i]
                ascending = (lined == lined[0]).all() and (np.diff(lined[0]) > 0).all()
                if not ascending or (i in frozen and not whole):
                    bad = i
        return _Fit(rows[chosen], bad, reason)

    def _ascending(self, x: str, units: Indices, common: Sequence[int], lead: int, many: int) -> tuple[Indices, int]:
        """Rows at in-head indices that every component has, in an order that ascends at every uniform reader.

        Returns:
            ([rows] rank in the segment or -1, units a component).
        """
        within = {i: units[:, i] % self.per_head[x][i] for i in common}
        key = np.zeros(len(units), np.int64)
        for i in common:
            key = key * int(self.per_head[x][i]) + within[i]
        found, at, count = np.unique(key, return_inverse=True, return_counts=True)
        sample = np.zeros(len(found), np.int64)
        sample[at] = np.arange(len(units))
        good = np.flatnonzero(count == many)
        start = lead if lead in within else common[0]
        good = good[np.argsort(within[start][sample[good]], kind="stable")]
        for i in common:
            good = good[_longest_ascending(within[i][sample[good]].tolist())]
        rank = np.full(len(found), -1, np.int64)
        rank[good] = np.arange(len(good))
        return rank[at], len(good)

    def _width(self, group: _Group, x: str, mask: int) -> int:
        return len(group.pools[x].fits[mask].rows)

    # ---------------------------------------------------------------- repairs

    def _private(self, group: _Group, x: str, site: int) -> bool:
        """Whether a reader has a private block in this group, as it stands."""
        pool = group.pools[x]
        covered = sum(len(fit.rows) for mask, fit in pool.fits.items() if mask >> site & 1)
        return covered == 0 or int(self.wanted[x][site][group.heads[site]].sum()) > covered

    def _blocks_in(self, group: _Group, x: str, site: int) -> int:
        segments = sum(1 for mask, fit in group.pools[x].fits.items() if mask >> site & 1 and len(fit.rows))
        return segments + self._private(group, x, site)

    def _blocks(self, x: str, site: int) -> int:
        """Blocks of one site on one axis, in all its groups."""
        return sum(self._blocks_in(group, x, site) for group in self.groups if site in group.heads) + self.rest[site]

    def _settle(self) -> bool:
        """Repair the pools until every limit holds; False where heads have to be paired anew."""
        while True:
            self._fit_all()
            if self._repair_small():
                continue
            over = self._over()
            if not over:
                break
            if not self._repair_over(over):
                return False
        self._place_surplus()
        return True

    def _fit_all(self) -> None:
        for group in self.groups:
            for x, pool in group.pools.items():
                while waiting := [mask for mask in pool.members if mask not in pool.fits]:
                    mask = max(waiting, key=lambda m: (m.bit_count(), -m))
                    fit = self._fit(group, x, mask)
                    if fit.bad is not None:
                        self._drop(group, x, mask, 1 << fit.bad, "frozen" if fit.bad in self.frozen[x] else "rotary")
                    else:
                        pool.fits[mask] = fit

    def _repair_small(self) -> bool:
        """Dissolve one segment that is empty or too small to pay; the one with most readers first: rows only move to fewer."""
        least = self.limits.min_segment
        found: list[tuple[tuple[int, int, int, int, int], _Group, str, int]] = []
        blocks: dict[tuple[str, int], int] = {}
        for g, group in enumerate(self.groups):
            for n, (x, pool) in enumerate(group.pools.items()):
                for mask, fit in pool.fits.items():
                    width = len(fit.rows)
                    if width >= least:
                        continue
                    if width:
                        for i in _sites_in(mask):
                            if (x, i) not in blocks:
                                blocks[x, i] = self._blocks(x, i)
                        if all(blocks[x, i] == 1 for i in _sites_in(mask)):
                            continue
                    found.append(((-mask.bit_count(), width, g, n, mask), group, x, mask))
        if not found:
            return False
        _, group, x, mask = min(found, key=lambda item: item[0])
        pool = group.pools[x]
        reason = "segment-size" if len(pool.fits[mask].rows) else pool.fits[mask].reason
        self._drop(group, x, mask, mask & ~self._refuge(pool, mask), reason)
        return True

    def _refuge(self, pool: _Pool, mask: int) -> int:
        """The largest reader set below this one that rows can move to and pay: one that is there, or that several make."""
        others = [other for other in pool.members if other != mask]
        best = (0, 0, 0)
        for target in {mask & other for other in others}:
            if target.bit_count() < 2 or target == mask:
                continue
            rows = sum(
                len(pool.members[o])
                for o in (*others, mask)
                if o == target or (o & target == target and len(pool.fits[o].rows) < self.limits.min_segment)
            )
            if rows >= self.limits.min_segment:
                best = max(best, (target.bit_count(), rows, target))
        return best[2]

    def _over(self) -> dict[tuple[str, int], int]:
        """(axis, site) -> blocks above the limit."""
        excess = {
            (x, i): self._blocks(x, i) - self.limits.max_segments
            for x in self.axes
            for i in range(len(self.sites))
            if x in self.sites[i].axes
        }
        return {place: n for place, n in excess.items() if n > 0}

    def _repair_over(self, over: Mapping[tuple[str, int], int]) -> bool:
        """Do the repair that loses the fewest parameters for each block it removes where there are too many.

        Returns:
            False where a site left a group of heads, so that heads have to be paired anew.
        """
        options: list[tuple[tuple[bool, float, int, int, int, int, int], int]] = []
        for g, group in enumerate(self.groups):
            for n, (x, pool) in enumerate(group.pools.items()):
                crowded = {i for i in group.heads if (x, i) in over}
                if not crowded:
                    continue
                private = {i for i in crowded if self._private(group, x, i)}
                for mask in pool.members:
                    mine = crowded & set(_sites_in(mask))
                    if not mine:
                        continue
                    price = len(pool.fits[mask].rows) * self.vectors[x]
                    targets = [other for other in pool.members if other != mask and other & mask == other]
                    targets += [mask & ~(1 << i) for i in mine if (mask & ~(1 << i)) not in pool.members]
                    for target in (*targets, 0):
                        leaving = mask & ~target if target.bit_count() >= 2 else mask
                        lost = price * min(leaving.bit_count(), mask.bit_count() - 1)
                        gained = sum((i in private) if leaving >> i & 1 else (target in pool.members) for i in mine)
                        options.append(((not gained, lost / max(1, gained), 0, g, n, mask, leaving), lost))
                self._leaving(group, g, n, x, crowded, options)
        _, _, whole, g, n, mask, leaving = min(option for option, _ in options)
        group = self.groups[g]
        if not whole:
            self._drop(group, list(group.pools)[n], mask, leaving, "segment-limit")
            return True
        for i in _sites_in(leaving):
            self._leave(group, i, "segment-limit")
        return False

    def _leaving(
        self,
        group: _Group,
        g: int,
        n: int,
        x: str,
        crowded: set[int],
        options: list[tuple[tuple[bool, float, int, int, int, int, int], int]],
    ) -> None:
        """Options in which sites leave a group of heads: into their private heads, or so that it becomes another group."""

        def lost(leaving: int) -> int:
            total = 0
            for axis, pool in group.pools.items():
                for mask, fit in pool.fits.items():
                    gone = (mask & leaving).bit_count()
                    total += len(fit.rows) * self.vectors[axis] * min(gone, mask.bit_count() - 1)
            return total

        mine = sum(1 << i for i in group.heads)
        for i in sorted(crowded):
            gained = self._blocks_in(group, x, i) - (not self.rest[i])
            price = lost(1 << i)
            options.append(((gained <= 0, price / max(1, gained), 1, g, n, mine, 1 << i), price))
        for other in self.groups:
            kept = sum(1 << i for i in other.heads)
            if other is group or kept & mine != kept or not any(kept >> i & 1 for i in crowded):
                continue
            if any(other.each[i] != group.each[i] for i in other.heads):
                continue
            leaving = mine & ~kept
            if leaving:
                gained = sum(self._blocks_in(group, x, i) for i in crowded if kept >> i & 1)
                price = lost(leaving)
                options.append(((False, price / max(1, gained), 1, g, n, mine, leaving), price))

    def _leave(self, group: _Group, site: int, reason: str) -> None:
        """Store all of a site's heads in a group privately."""
        mine = np.array(group.heads[site], np.int64)
        for x in group.pools:
            if x in self.sites[site].axes:
                size = self.sites[site].axes[x].per_head
                every = (mine[:, None] * size + np.arange(size)).ravel()
                left = every[self.links.open[x][self.numbers[site]][every]]
                self.links.cut(x, self.numbers[site], left, reason)

    def _place_surplus(self) -> None:
        """Move rows that a segment has no place for to a segment with fewer readers; the others are stored privately."""
        for group in self.groups:
            for x, pool in group.pools.items():
                for mask in sorted(pool.members, key=lambda m: (-m.bit_count(), m)):
                    fit = pool.fits[mask]
                    surplus = np.setdiff1d(pool.members[mask], fit.rows, assume_unique=True)
                    if not len(surplus):
                        continue
                    below = [o for o in pool.members if o != mask and o & mask == o and len(pool.fits[o].rows)]
                    if below and not any(i in self.frozen[x] for i in _sites_in(mask)):
                        target = max(below, key=lambda o: (o.bit_count(), len(pool.fits[o].rows), -o))
                        before = pool.fits[target]
                        self._drop(group, x, mask, mask & ~target, fit.reason, surplus)
                        pool.fits[mask] = fit
                        again = self._fit(group, x, target)
                        if again.bad is None and len(again.rows) >= len(before.rows):
                            pool.fits[target] = again
                        else:
                            pool.fits[target] = before
                    else:
                        for i in _sites_in(mask):
                            self.links.why[x][self.numbers[i]][pool.units[surplus, i]] = REASONS.index(fit.reason)

    def _everyone_shares(self) -> bool:
        """Whether every site in every group shares something there; those that don't leave it."""
        good = True
        for group in self.groups:
            for i in group.heads:
                if not any(mask >> i & 1 and len(fit.rows) for pool in group.pools.values() for mask, fit in pool.fits.items()):
                    self._leave(group, i, "pairing")
                    good = False
        return good

    def _result(self) -> list[SharedGroup]:
        """What was found, in terms of the model's sites."""
        result = []
        for group in self.groups:
            blocks: dict[str, list[SharedBlock]] = {}
            for x, pool in group.pools.items():
                found = []
                for mask in sorted(pool.fits, key=lambda m: (-m.bit_count(), -len(pool.fits[m].rows), m)):
                    rows = pool.fits[mask].rows
                    if len(rows):
                        self.saved += len(rows) * (mask.bit_count() - 1) * self.vectors[x]
                        found.append(SharedBlock({self.numbers[i]: pool.units[rows, i] for i in _sites_in(mask)}))
                blocks[x] = found
            result.append(SharedGroup({self.numbers[i]: heads for i, heads in group.heads.items()}, blocks))
        return result


def _by_readers(units: Indices) -> list[tuple[int, Indices]]:
    """Rows by the set of their readers: (bit mask, [rows]); only sets of two and more."""
    if not len(units):
        return []
    packed = np.packbits(units >= 0, axis=1, bitorder="little")
    view = np.ascontiguousarray(packed).view(np.dtype((np.void, packed.shape[1]))).ravel()
    found, at = np.unique(view, return_inverse=True)
    masks = [int.from_bytes(bytes(value), "little") for value in found]
    return [(mask, np.flatnonzero(at == n)) for n, mask in enumerate(masks) if mask.bit_count() >= 2]
