"""What a resolved plan asks to be stored, before anything is made storable: plan + sites -> Demand.

A unit is *wanted* where the plan keeps it and its head is alive; a head is dead where all units of its value axes are pruned,
and then its query and key units are not wanted either (another site may still read their values). Heads that cannot go are
never dead: what holds them may be another reader of their scores. Roots get one running number per axis name, over all sites
that have the axis, so that sharing can be counted with array operations.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from inarch.structure.errors import LoweringError
from inarch.structure.lowered import ResolvedPlan
from inarch.structure.sites import AXIS_FACTORS, Member, Site, SiteTable
from inarch.structure.units import Indices

Bools = npt.NDArray[np.bool_]

VALUE_AXES = ("hidden", "vo", "vo2")
"""The axes whose units carry what a head puts out: with none of them left, a head that can go is dead."""


def unit_axes(site: Site) -> tuple[str, ...]:
    """Names of a site's axes that hold weight vectors, in a fixed order."""
    return tuple(name for name in site.axes if name != "head")


@dataclass(frozen=True, eq=False)
class AxisDemand:
    """The plan on all axes of one name.

    Attributes:
        name: ``hidden``, ``qk``, ``vo`` or ``vo2``.
        sites: numbers of the sites that have it, ascending.
        offset: site number -> number of its first root; unit u of that site is root ``offset + u``.
        want: site number -> [units] bool, what has to be stored.
        root: site number -> [units] int, the root that each unit takes its value from; meaningless where not wanted.
        owner: [roots] int, the site that each root belongs to.
        used: [roots] bool, whether any wanted unit takes its value from it.
    """

    name: str
    sites: tuple[int, ...]
    offset: Mapping[int, int]
    want: Mapping[int, Bools]
    root: Mapping[int, Indices]
    owner: Indices
    used: Bools


@dataclass(frozen=True, eq=False)
class Demand:
    """A resolved plan, as lowering reads it.

    Attributes:
        table: the model's sites.
        alive: site number -> [heads] bool (one head for an FFN).
        changed: site number -> whether the plan prunes any of its units or takes any from another root.
        axes: axis name -> the plan on it.
    """

    table: SiteTable
    alive: Mapping[int, Bools]
    changed: Mapping[int, bool]
    axes: Mapping[str, AxisDemand]


def demand_of(table: SiteTable, resolved: ResolvedPlan) -> Demand:
    """Read a resolved plan. O(units).

    Raises:
        LoweringError: the plan was resolved for other sites, or a unit's root has other weight vectors than the unit.
    """
    if resolved.names != tuple(site.name for site in table.sites):
        raise LoweringError("the plan was resolved for another model", hint="resolve it against this model's sites")
    alive: dict[int, Bools] = {}
    changed: dict[int, bool] = {}
    for number, site in enumerate(table.sites):
        axes = resolved.axes[site.name]
        living = np.full(site.heads, "head" in site.frozen)
        differs = False
        for name in unit_axes(site):
            axis = axes[name]
            if len(axis.pruned) != site.axes[name].size:
                raise LoweringError(f"axis {name} has {site.axes[name].size} units, the plan {len(axis.pruned)}", where=site.name)
            if name in VALUE_AXES:
                living |= ~axis.pruned.reshape(site.heads, -1).all(axis=1)
            private = (axis.root_site == number) & (axis.root_unit == np.arange(len(axis.pruned)))
            differs |= bool(axis.pruned.any() or not private.all())
        alive[number] = living
        changed[number] = differs
    names = [name for name in AXIS_FACTORS if any(name in unit_axes(site) for site in table.sites)]
    return Demand(table, alive, changed, {name: _axis_demand(table, resolved, alive, name) for name in names})


def _axis_demand(table: SiteTable, resolved: ResolvedPlan, alive: Mapping[int, Bools], name: str) -> AxisDemand:
    sites = tuple(number for number, site in enumerate(table.sites) if name in unit_axes(site))
    start = np.full(len(table.sites), -1, np.int64)
    total = 0
    for number in sites:
        start[number] = total
        total += table.sites[number].axes[name].size
    owner = np.repeat(np.array(sites, np.int64), [table.sites[number].axes[name].size for number in sites])
    want: dict[int, Bools] = {}
    root: dict[int, Indices] = {}
    used = np.zeros(total, np.bool_)
    for number in sites:
        site = table.sites[number]
        axis = resolved.axes[site.name][name]
        want[number] = ~axis.pruned & np.repeat(alive[number], site.axes[name].per_head)
        root[number] = start[axis.root_site] + axis.root_unit
        used[root[number][want[number]]] = True
        for other in np.unique(axis.root_site[want[number]]).tolist():
            if other != number and _vectors(site, name) != _vectors(table.sites[other], name):
                raise LoweringError(
                    f"units of axis {name} take values of {table.sites[other].name}, whose weight vectors have other lengths",
                    where=site.name,
                )
    return AxisDemand(name, sites, {number: int(start[number]) for number in sites}, want, root, owner, used)


def _vectors(site: Site, axis: str) -> dict[str, int]:
    """Role -> numbers of one unit's weight vectors there."""
    size = site.axes[axis].size
    return {m.role: m.size // size * m.width for m in site.on(axis) if m.is_matrix} if axis in site.axes else {}


class Coverage:
    """Which numbers of the parameters are counted: a count that takes ties in, whichever members they lie under.

    A parameter's numbers are counted where any member that was added touches them, once.

    Args:
        held: parameters that are not counted.
    """

    def __init__(self, held: Collection[str] = ()) -> None:
        self._held = held
        self._masks: dict[str, dict[int, Bools]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def add(self, member: Member, positions: Indices) -> None:
        """Count the numbers at these positions of the member's parameter axis."""
        if member.param in self._held:
            return
        axes = self._masks.setdefault(member.param, {})
        self._shapes[member.param] = member.shape
        mask = axes.setdefault(member.axis, np.zeros(member.shape[member.axis], np.bool_))
        mask[positions] = True

    def count(self, param: str) -> int:
        """Numbers of one parameter that are counted."""
        axes = self._masks.get(param)
        if axes is None:
            return 0
        shape = self._shapes[param]
        # Members along two axes of one matrix (W and W^T tied) cross each other: count what none of them touches.
        left = math.prod(n - int(axes[i].sum()) if i in axes else n for i, n in enumerate(shape))
        return math.prod(shape) - left

    @property
    def total(self) -> int:
        """Numbers counted in all parameters."""
        return sum(self.count(param) for param in self._masks)

    @property
    def params(self) -> Iterable[str]:
        """The parameters that anything was counted in."""
        return self._masks.keys()


def wanted_positions(demand: Demand, number: int, member: Member) -> Indices:
    """Positions of a member that the plan counts: its own roots that anyone uses, or the biases of its wanted units."""
    site = demand.table.sites[number]
    factors = {name for name, _ in member.factors}
    for name in unit_axes(site):
        axis = demand.axes[name]
        if member.has(name):
            start = axis.offset[number]
            keep = axis.used[start : start + site.axes[name].size] if member.is_matrix else axis.want[number]
            return member.index(name)[keep].ravel()
        if AXIS_FACTORS[name][-1] in factors:
            in_head = axis.want[number].reshape(site.heads, -1).any(axis=0)
            return factor_index(member, AXIS_FACTORS[name][-1])[in_head].ravel()
    if "head" in factors:
        return factor_index(member, "head")[demand.alive[number]].ravel()
    return member.positions if demand.alive[number].any() else np.empty(0, np.int64)


def factor_index(member: Member, factor: str) -> Indices:
    """Positions of a member on its parameter's axis by one of its factors, shape [size of the factor, the rest]."""
    sizes = [size for _, size in member.factors]
    at = [name for name, _ in member.factors].index(factor)
    grid = np.moveaxis(np.arange(member.size, dtype=np.int64).reshape(sizes), at, 0)
    return member.positions[grid.reshape(sizes[at], -1)]


def planned_parameters(table: SiteTable, resolved: ResolvedPlan) -> int:
    """Numbers that a plan counts, before anything is made storable. O(units).

    Everything outside the sites counts as it is; each root that a wanted unit uses counts once, its weight vectors; each
    wanted unit counts its biases and riders. Numbers that several members lie over (ties of the dense model) count once.

    Raises:
        LoweringError: as :func:`demand_of`.
    """
    return planned_of(demand_of(table, resolved)).total + outside(table)


def planned_of(demand: Demand) -> Coverage:
    """What a plan counts inside the sites, but for what stays whole for others' sake."""
    coverage = Coverage(demand.table.held)
    for number, site in enumerate(demand.table.sites):
        for member in site.members.values():
            coverage.add(member, wanted_positions(demand, number, member))
    return coverage


def inside(table: SiteTable) -> Coverage:
    """The numbers that members lie over, but for those of parameters that something else reads, too."""
    coverage = Coverage(table.held)
    for site in table.sites:
        for member in site.members.values():
            coverage.add(member, member.positions)
    return coverage


def outside(table: SiteTable) -> int:
    """Numbers of the model's parameters that are not :func:`inside`: they stay, whatever a plan does."""
    return table.parameters - inside(table).total
