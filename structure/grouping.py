"""Group a cluster's heads: pair them, put components with the same sites together, and sort what they share by readers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from inarch.structure.clusters import Cluster, Group, Pool, by_readers
from inarch.structure.demand import Bools
from inarch.structure.links import users_of
from inarch.structure.pairing import Mode, components, order_heads
from inarch.structure.units import Indices

MANY = 24
"""Reader sets in a pool above which they are first reduced to the most valuable ones."""


class Grouping:
    """The groups of a cluster's heads.

    Attributes:
        groups: the groups, with a pool of rows on every axis.
        rest: site -> whether it has heads in no group, which it stores alone.
        has_split: whether components of one signature were put into two groups.
    """

    def __init__(self, cluster: Cluster, mode: Mode, split: bool) -> None:
        self.cluster = cluster
        self.mode = mode
        self.split = split
        self.has_split = False
        self.groups: list[Group] = []
        self.rest: list[bool] = []

    def build(self) -> bool:
        """Pair heads and fill the pools from the links that are still open; False where there are none."""
        live = self._live()
        label = self._pair(live)
        rows = {x: self._rows(x, live[x], label) for x in self.cluster.axes}
        heads: defaultdict[int, dict[int, list[int]]] = defaultdict(dict)
        most = max(site.heads for site in self.cluster.sites)
        for i in range(len(self.cluster.sites)):
            found = [
                component[units[:, i] >= 0] * most + units[units[:, i] >= 0, i] // self.cluster.per_head[x][i]
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
            return self.build()
        for group in self.groups:
            for x, (component, units) in rows.items():
                self._fill(group, x, units[np.isin(component, group.components)])
        self.rest = []
        for i, (number, site) in enumerate(zip(self.cluster.numbers, self.cluster.sites, strict=True)):
            grouped = sum(len(group.heads.get(i, ())) for group in self.groups)
            self.rest.append(
                (site.heads if i in self.cluster.fixed_heads else int(self.cluster.demand.alive[number].sum())) > grouped
            )
        return bool(self.groups)

    def _live(self) -> dict[str, dict[int, Bools]]:
        """Open links whose root has at least two users left: axis -> site in the cluster -> [units]."""
        live: dict[str, dict[int, Bools]] = {}
        for x in self.cluster.axes:
            axis = self.cluster.demand.axes[x]
            mine = [n for n in self.cluster.numbers if n in axis.want]
            users = users_of(axis, self.cluster.links.open[x], mine)
            live[x] = {int(self.cluster.local[n]): self.cluster.links.open[x][n] & (users[axis.root[n]] >= 2) for n in mine}
        return live

    def _pair(self, live: Mapping[str, Mapping[int, Bools]]) -> Indices:
        """The component of every head in the cluster."""
        total = len(self.cluster.site_of)
        active = np.zeros(total, np.bool_)
        keys = []
        for x in self.cluster.axes:
            axis = self.cluster.demand.axes[x]
            offset = np.array([axis.offset.get(n, 0) for n in self.cluster.numbers])
            for i, may in live[x].items():
                units = np.flatnonzero(may)
                mine = self.cluster.first_head[i] + units // self.cluster.per_head[x][i]
                active[mine] = True
                roots = axis.root[self.cluster.numbers[i]][units]
                owner = self.cluster.local[axis.owner[roots]]
                theirs = self.cluster.first_head[owner] + (roots - offset[owner]) // self.cluster.per_head[x][owner]
                keys.append((mine * total + theirs)[mine != theirs])
        pairs, counts = np.unique(np.concatenate(keys), return_counts=True)
        return components(pairs // total, pairs % total, counts, self.cluster.site_of, active, self.cluster.head_size, self.mode)

    def _rows(self, x: str, live: Mapping[int, Bools], label: Indices) -> tuple[Indices, Indices]:
        """Roots that several sites of one component use: ([rows] component, [rows, sites] unit or -1)."""
        axis = self.cluster.demand.axes[x]
        roots = len(axis.owner)
        keys, sites, units = [], [], []
        for i, may in live.items():
            mine = np.flatnonzero(may)
            keys.append(
                label[self.cluster.first_head[i] + mine // self.cluster.per_head[x][i]] * roots
                + axis.root[self.cluster.numbers[i]][mine]
            )
            sites.append(np.full(len(mine), i))
            units.append(mine)
        found, row = np.unique(np.concatenate(keys), return_inverse=True)
        table = np.full((len(found), len(self.cluster.sites)), -1, np.int64)
        table[row, np.concatenate(sites)] = np.concatenate(units)
        keep = (table >= 0).sum(axis=1) >= 2
        return found[keep] // roots, table[keep]

    def _order(
        self, component: int, heads: Mapping[int, list[int]], rows: Mapping[str, tuple[Indices, Indices]]
    ) -> dict[int, list[int]]:
        """Order a component's heads; only where it holds several of one site is there anything to do."""
        if all(len(mine) == 1 for mine in heads.values()):
            return {site: list(mine) for site, mine in heads.items()}
        if any(site in self.cluster.fixed_heads for site in heads):
            return {site: list(mine) for site, mine in heads.items()}
        weights: defaultdict[tuple[int, int], defaultdict[tuple[int, int], int]] = defaultdict(lambda: defaultdict(int))
        for x, (label, units) in rows.items():
            mine = units[label == component]
            at = np.where(mine >= 0, mine // self.cluster.per_head[x], -1)
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
        if not self.split or len(candidates) < 2 or any(site in self.cluster.fixed_heads for site, _ in signature):
            return [candidates]
        place = {c: i for i, c in enumerate(candidates)}
        columns: list[tuple[int, Indices]] = []
        for x, (label, units) in rows.items():
            mine = np.isin(label, candidates)
            at = np.array([place[c] for c in label[mine].tolist()], np.int64)
            for mask, chosen in by_readers(units[mine]):
                counts = np.bincount(at[chosen], minlength=len(candidates))
                columns.append((self.cluster.vectors[x] * (mask.bit_count() - 1), counts))
        weight = sum(price * counts for price, counts in columns)
        rank = np.argsort(-np.asarray(weight), kind="stable")

        def value(some: Indices) -> int:
            return sum(price * len(some) * int(counts[some].min()) for price, counts in columns)

        fee = self.cluster.limits.min_segment * max(self.cluster.vectors.values())
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
    ) -> Group:
        """Line up the heads of several components, in the order of the site whose order is fixed, else of the first."""
        sites = [site for site, _ in signature]
        lead = next((site for site in sites if site in self.cluster.fixed_heads), sites[0])
        lined = sorted(some, key=lambda c: ordered[c][lead])
        return Group(lined, {s: [h for c in lined for h in ordered[c][s]] for s in sites}, dict(signature))

    def _heads_fit(self) -> bool:
        """Whether sites with frozen heads have one group with all of them in natural order; those that don't lose their links."""
        fit = True
        for i in sorted(self.cluster.fixed_heads):
            mine = [group.heads[i] for group in self.groups if i in group.heads]
            if mine and mine != [list(range(self.cluster.sites[i].heads))]:
                for x in self.cluster.axes:
                    if x in self.cluster.sites[i].axes:
                        self.cluster.links.cut(
                            x,
                            self.cluster.numbers[i],
                            np.flatnonzero(self.cluster.links.open[x][self.cluster.numbers[i]]),
                            "frozen",
                        )
                return False
        return fit

    def _fill(self, group: Group, x: str, units: Indices) -> None:
        """Make the pool of one axis of a group from its rows."""
        units = units.copy()
        wanted = {i: int(self.cluster.wanted[x][i][heads].sum()) for i, heads in group.heads.items()}
        pool = group.pools[x] = Pool(units, wanted)
        if max(group.each.values()) > 1:
            self._align(group, x, units)
        for mask, rows in by_readers(units):
            pool.members[mask] = rows
        for i in sorted(self.cluster.frozen[x] & group.heads.keys()):
            with_it = [mask for mask in pool.members if mask >> i & 1]
            count = sum(len(pool.members[mask]) for mask in with_it)
            if with_it and (len(with_it) > 1 or count != len(group.heads[i]) * self.cluster.per_head[x][i]):
                for mask in with_it:
                    self.cluster.drop(group, x, mask, 1 << i, "frozen")
        if len(pool.members) > MANY:
            self._reduce(group, x)

    def _align(self, group: Group, x: str, units: Indices) -> None:
        """Privatise readers whose head does not lie over those of the coarser readers of the same row."""
        slots = math.lcm(*group.each.values())
        first = np.zeros(len(units), np.int64)
        last = np.full(len(units), slots, np.int64)
        for i in sorted(group.heads, key=lambda site: (group.each[site], site)):
            place = np.full(self.cluster.sites[i].heads, -1, np.int64)
            place[group.heads[i]] = np.arange(len(group.heads[i]))
            mine = units[:, i] >= 0
            wide = slots // group.each[i]
            low = place[units[:, i] // self.cluster.per_head[x][i]] % group.each[i] * wide
            new_first, new_last = np.maximum(first, low), np.minimum(last, low + wide)
            fits = mine & (new_first < new_last)
            first, last = np.where(fits, new_first, first), np.where(fits, new_last, last)
            off = mine & ~fits
            if off.any():
                self.cluster.links.cut(x, self.cluster.numbers[i], units[off, i], "heads-differ")
                units[off, i] = -1

    def _reduce(self, group: Group, x: str) -> None:
        """Bring very many reader sets down to the most valuable ones, one after the other, each over the rows that are left."""
        pool = group.pools[x]
        masks = sorted(pool.members)
        member = np.array([[mask >> i & 1 for i in range(len(self.cluster.sites))] for mask in masks], np.bool_)
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
                    target = [at // len(self.cluster.sites), at % len(self.cluster.sites)]
                elif (more := int(gains.argmax())) not in target and gains[more] >= value:
                    target.append(more)
                    value = int(gains[more])
                else:
                    break
                inside = left & member[:, target].all(axis=1)
            wanted = sum(1 << i for i in target)
            for at in np.flatnonzero(inside).tolist():
                if value == 0 or value // (len(target) - 1) < self.cluster.limits.min_segment:
                    self.cluster.drop(group, x, masks[at], masks[at], "segment-size")
                elif masks[at] != wanted:
                    self.cluster.drop(group, x, masks[at], masks[at] & ~wanted, "segment-limit")
                left[at] = False
            if value == 0:
                break
