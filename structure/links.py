"""Which units sites may store once together: the units whose root several sites use, less what had to be privatised."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from inarch.structure.demand import AxisDemand, Bools, Demand
from inarch.structure.units import Indices

REASONS = ("pairing", "head-counts", "multiple", "segment-size", "segment-limit", "heads-differ", "rotary", "frozen")
"""Why a unit that the plan shares is stored privately."""


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
        shared = users_of(axis, links.open[name]) >= 2
        for site in axis.sites:
            links.open[name][site] &= shared[axis.root[site]]
    return links


def users_of(axis: AxisDemand, may: Mapping[int, Bools], sites: Sequence[int] | None = None) -> Indices:
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
