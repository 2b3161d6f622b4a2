"""Repair a cluster's groups until the limits hold, at the lowest price in parameters.

What cannot be stored is privatised. Sharing only ever falls, so this ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from inarch.structure.clusters import Cluster, Group, Pool, sites_in
from inarch.structure.fitting import fit_segment
from inarch.structure.links import REASONS


class Repairs:
    """The repairs of one grouping."""

    def __init__(self, cluster: Cluster, groups: Sequence[Group], rest: Sequence[bool]) -> None:
        self.cluster = cluster
        self.groups = groups
        self.rest = rest

    def settle(self) -> bool:
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

    def _private(self, group: Group, x: str, site: int) -> bool:
        """Whether a reader has a private block in this group, as it stands."""
        pool = group.pools[x]
        covered = sum(len(fit.rows) for mask, fit in pool.fits.items() if mask >> site & 1)
        return covered == 0 or pool.wanted[site] > covered

    def _blocks_in(self, group: Group, x: str, site: int) -> int:
        segments = sum(1 for mask, fit in group.pools[x].fits.items() if mask >> site & 1 and len(fit.rows))
        return segments + self._private(group, x, site)

    def _blocks(self, x: str, site: int) -> int:
        """Blocks of one site on one axis, in all its groups."""
        return sum(self._blocks_in(group, x, site) for group in self.groups if site in group.heads) + self.rest[site]

    def _fit_all(self) -> None:
        for group in self.groups:
            for x, pool in group.pools.items():
                while waiting := [mask for mask in pool.members if mask not in pool.fits]:
                    mask = max(waiting, key=lambda m: (m.bit_count(), -m))
                    fit = fit_segment(self.cluster, group, x, mask)
                    if fit.bad is not None:
                        reason = "frozen" if fit.bad in self.cluster.frozen[x] else "rotary"
                        self.cluster.drop(group, x, mask, 1 << fit.bad, reason)
                    else:
                        pool.fits[mask] = fit

    def _repair_small(self) -> bool:
        """Dissolve the segments with most readers that are empty or too small to pay; their rows move to fewer readers.

        Returns:
            Whether there were any.
        """
        least = self.cluster.limits.min_segment
        found: list[tuple[tuple[int, int, int, int, int], Group, str, int]] = []
        blocks: dict[tuple[str, int], int] = {}
        for g, group in enumerate(self.groups):
            for n, (x, pool) in enumerate(group.pools.items()):
                for mask, fit in pool.fits.items():
                    width = len(fit.rows)
                    if width >= least:
                        continue
                    if width:
                        for i in sites_in(mask):
                            if (x, i) not in blocks:
                                blocks[x, i] = self._blocks(x, i)
                        if all(blocks[x, i] == 1 for i in sites_in(mask)):
                            continue
                    found.append(((-mask.bit_count(), width, g, n, mask), group, x, mask))
        if not found:
            return False
        found.sort(key=lambda item: item[0])
        for key, group, x, mask in found:
            if key[0] == found[0][0][0]:
                pool = group.pools[x]
                reason = "segment-size" if len(pool.fits[mask].rows) else pool.fits[mask].reason
                self.cluster.drop(group, x, mask, mask & ~self._refuge(pool, mask), reason)
        return True

    def _refuge(self, pool: Pool, mask: int) -> int:
        """The largest reader set below this one that rows can move to and pay: one that is there, or that several make."""
        least = self.cluster.limits.min_segment
        others = [other for other in pool.members if other != mask]
        best = (0, 0, 0)
        for target in {mask & other for other in others}:
            if target.bit_count() < 2 or target == mask:
                continue
            rows = sum(
                len(pool.members[o])
                for o in (*others, mask)
                if o == target or (o & target == target and (o not in pool.fits or len(pool.fits[o].rows) < least))
            )
            if rows >= least:
                best = max(best, (target.bit_count(), rows, target))
        return best[2]

    def _over(self) -> dict[tuple[str, int], int]:
        """(axis, site) -> blocks above the limit."""
        excess = {
            (x, i): self._blocks(x, i) - self.cluster.limits.max_segments
            for x in self.cluster.axes
            for i in range(len(self.cluster.sites))
            if x in self.cluster.sites[i].axes
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
                    mine = crowded & set(sites_in(mask))
                    if not mine:
                        continue
                    price = len(pool.fits[mask].rows) * self.cluster.vectors[x]
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
            self.cluster.drop(group, list(group.pools)[n], mask, leaving, "segment-limit")
            return True
        for i in sites_in(leaving):
            self._leave(group, i, "segment-limit")
        return False

    def _leaving(
        self,
        group: Group,
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
                    total += len(fit.rows) * self.cluster.vectors[axis] * min(gone, mask.bit_count() - 1)
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

    def _leave(self, group: Group, site: int, reason: str) -> None:
        """Store all of a site's heads in a group privately."""
        mine = np.array(group.heads[site], np.int64)
        for x in group.pools:
            if x in self.cluster.sites[site].axes:
                size = self.cluster.sites[site].axes[x].per_head
                every = (mine[:, None] * size + np.arange(size)).ravel()
                left = every[self.cluster.links.open[x][self.cluster.numbers[site]][every]]
                self.cluster.links.cut(x, self.cluster.numbers[site], left, reason)

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
                    if below and not any(i in self.cluster.frozen[x] for i in sites_in(mask)):
                        target = max(below, key=lambda o: (o.bit_count(), len(pool.fits[o].rows), -o))
                        before = pool.fits[target]
                        self.cluster.drop(group, x, mask, mask & ~target, fit.reason, surplus)
                        pool.fits[mask] = fit
                        again = fit_segment(self.cluster, group, x, target)
                        if again.bad is None and len(again.rows) >= len(before.rows):
                            pool.fits[target] = again
                        else:
                            pool.fits[target] = before
                    else:
                        for i in sites_in(mask):
                            self.cluster.links.why[x][self.cluster.numbers[i]][pool.units[surplus, i]] = REASONS.index(fit.reason)

    def everyone_shares(self) -> bool:
        """Whether every site in every group shares something there; those that don't leave it."""
        good = True
        for group in self.groups:
            for i in group.heads:
                if not any(mask >> i & 1 and len(fit.rows) for pool in group.pools.values() for mask, fit in pool.fits.items()):
                    self._leave(group, i, "pairing")
                    good = False
        return good
