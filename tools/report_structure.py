"""The sharing map's data: what a plan does to every site, as a few segments a row, and what that saves.

A row never holds single units: all units of an axis that have the same fate are one segment, so that the map of a model of any
size is some hundred rows of a handful of segments.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from inarch.learning.families import Modality, modality
from inarch.structure.demand import VALUE_AXES

if TYPE_CHECKING:
    from inarch.structure.lowered import ResolvedAxis
    from inarch.structure.plan import Plan
    from inarch.structure.sites import SiteTable

Fate = Literal["base", "cross", "layer", "private", "pruned"]
"""``base``: stored here and read by others too; ``cross``, ``layer``: read from another modality, from another layer."""

Flags = npt.NDArray[np.bool_]
Axes = Mapping[str, "ResolvedAxis"]

UNIT_AXES = ("hidden", "qk", "vo", "vo2")

MAX_BASES = 6
"""Segments of units that others read, a row; reader sets beyond these are shown together."""


@dataclass(frozen=True)
class Segment:
    """Units of one axis of one site that have the same fate.

    Attributes:
        fate: what becomes of them.
        units: how many there are.
        parameters: numbers in their weight vectors (with their biases where they are pruned); None where widths are unknown.
        base: name of the site that stores them, for ``cross`` and ``layer``.
        readers: sites that read them too, for ``base``.
    """

    fate: Fate
    units: int
    parameters: int | None = None
    base: str | None = None
    readers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lane:
    """One axis of a site as a row of segments.

    Attributes:
        axis: its name.
        size: units in all.
        segments: in the order of :data:`Fate`; their units add up to ``size``.
    """

    axis: str
    size: int
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class SiteRow:
    """One site of the map.

    Attributes:
        name: the site's.
        kind: ``msa`` or ``ffn``.
        modality: the backbone that it lies in.
        heads: of an MSA, 1 for an FFN.
        lanes: its axes that hold weight vectors.
        dense: parameters before; None where the model is not at hand.
        planned: parameters that the plan counts at this site: what it stores, for itself and for others.
    """

    name: str
    kind: str
    modality: Modality
    heads: int
    lanes: tuple[Lane, ...]
    dense: int | None = None
    planned: int | None = None

    @property
    def shares(self) -> bool:
        """Whether it reads from others, or others from it."""
        return any(segment.fate in ("base", "cross", "layer") for lane in self.lanes for segment in lane.segments)


@dataclass(frozen=True)
class Structure:
    """What a plan does to a model.

    Attributes:
        sites: in model order.
        dense: parameters of the whole model; None where it is not at hand.
        planned: what the plan counts of them; from the plan's own expectation where the model is not at hand.
        saved: ``pruned``, ``cross`` and ``layer`` -> parameters that are not stored for that reason; empty without the model.
    """

    sites: tuple[SiteRow, ...]
    dense: int | None
    planned: int | None
    saved: Mapping[str, int]

    def units(self, fate: Fate) -> int:
        """Units of one fate in all sites."""
        return sum(
            segment.units for site in self.sites for lane in site.lanes for segment in lane.segments if segment.fate == fate
        )


@dataclass(frozen=True)
class _Site:
    """What is known of a site from a model or from a plan alone."""

    name: str
    kind: str
    heads: int
    axes: Axes
    costs: Mapping[str, tuple[int, int]]
    held: bool = False
    """Whether its heads cannot go."""


def structure_of(plan: Plan, table: SiteTable | None = None) -> Structure:
    """What a plan does to every site.

    Args:
        plan: the plan.
        table: the model's sites; without them there are units and no parameters.

    Raises:
        PlanError: the plan contradicts itself or is for another model.
    """
    if table is None:
        sites = _from_plan(plan)
        planned = plan.expect.parameters if plan.expect else None
        return Structure(tuple(_rows(sites)), None, planned, {})
    from inarch.structure.demand import demand_of, planned_parameters, unit_axes, wanted_positions
    from inarch.structure.resolve import resolve

    resolved = resolve(plan, table)
    demand = demand_of(table, resolved)
    sites = [
        _Site(
            site.name,
            site.kind,
            site.heads,
            resolved.axes[site.name],
            {a: site.unit_parameters(a) for a in unit_axes(site)},
            "head" in site.frozen,
        )
        for site in table.sites
    ]
    rows = _rows(sites)
    counted = []
    for number, (site, row) in enumerate(zip(table.sites, rows, strict=True)):
        kept = sum(len(wanted_positions(demand, number, member)) * member.width for member in site.members.values())
        counted.append(SiteRow(row.name, row.kind, row.modality, row.heads, row.lanes, site.parameters, kept))
    saved: Counter[str] = Counter({"pruned": 0, "cross": 0, "layer": 0})
    for row in counted:
        for lane in row.lanes:
            for segment in lane.segments:
                if segment.fate in saved:
                    saved[segment.fate] += segment.parameters or 0
    return Structure(tuple(counted), table.parameters, planned_parameters(table, resolved), dict(saved))


def _from_plan(plan: Plan) -> list[_Site]:
    """Sites as the plan alone describes them; a base that it does not list has no row."""
    from inarch.structure.lowered import ResolvedAxis
    from inarch.structure.plan_checks import check_sharing, view_alone

    view = view_alone(plan)
    errors, graphs = check_sharing(view)
    if errors:
        raise errors[0]
    sites = []
    for number, name in enumerate(view.labels):
        axes = {}
        for axis, graph in graphs.items():
            span = slice(int(graph.offsets[number]), int(graph.offsets[number + 1]))
            if axis in UNIT_AXES and span.stop > span.start:
                roots = graph.roots[span]
                owner = graph.site_of(roots)
                axes[axis] = ResolvedAxis(graph.pruned[span], owner, roots - graph.offsets[owner])
        site = plan.sites.get(name)
        sites.append(_Site(name, site.kind if site else "ffn", (site.heads if site else None) or 1, axes, {}))
    return sites


def _rows(sites: list[_Site]) -> list[SiteRow]:
    """Every site with its segments. O(units log units)."""
    wanted = [_wanted(site) for site in sites]
    kinds = [modality(site.name) for site in sites]
    lanes: list[list[Lane]] = [[] for _ in sites]
    for name in UNIT_AXES:
        readers = _readers(sites, wanted, name)
        for number, site in enumerate(sites):
            if name in site.axes:
                fates = _segments(sites, kinds, number, name, wanted[number][name], readers.get(number, {}))
                lanes[number].append(Lane(name, len(site.axes[name].pruned), tuple(fates)))
    return [
        SiteRow(site.name, site.kind, kind, site.heads, tuple(own))
        for site, kind, own in zip(sites, kinds, lanes, strict=True)
        if own
    ]


def _wanted(site: _Site) -> dict[str, Flags]:
    """Axis -> which units the plan keeps; those of query and key go, too, with a head that can go and keeps no value unit."""
    values = [name for name in VALUE_AXES if name in site.axes]
    alive = np.full(site.heads, site.held or not values)
    for name in values:
        alive |= ~site.axes[name].pruned.reshape(site.heads, -1).all(axis=1)
    return {name: ~axis.pruned & np.repeat(alive, len(axis.pruned) // site.heads) for name, axis in site.axes.items()}


def _readers(sites: list[_Site], wanted: list[dict[str, Flags]], name: str) -> dict[int, dict[int, list[int]]]:
    """Number of a base -> unit of it -> the sites that read that unit."""
    found: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, site in enumerate(sites):
        axis = site.axes.get(name)
        if axis is None:
            continue
        reads = np.flatnonzero(wanted[number][name] & (axis.root_site != number))
        for owner, unit in zip(axis.root_site[reads].tolist(), axis.root_unit[reads].tolist(), strict=True):
            found[owner][unit].append(number)
    return found


def _segments(
    sites: list[_Site],
    kinds: list[Modality],
    number: int,
    name: str,
    wanted: Flags,
    readers: Mapping[int, list[int]],
) -> Iterable[Segment]:
    site, axis = sites[number], sites[number].axes[name]
    vectors, own = site.costs.get(name, (0, 0))
    known = name in site.costs

    def made(fate: Fate, units: int, base: str | None = None, among: Iterable[int] = (), each: int = vectors) -> Segment:
        return Segment(fate, units, units * each if known else None, base, tuple(sites[n].name for n in among))

    sets = Counter(tuple(who) for who in readers.values())
    order = sorted(sets.items(), key=lambda item: (-len(item[0]), -item[1], item[0]))
    for who, units in order[:MAX_BASES]:
        yield made("base", units, among=who)
    if order[MAX_BASES:]:
        everyone = sorted({reader for who, _ in order[MAX_BASES:] for reader in who})
        yield made("base", sum(units for _, units in order[MAX_BASES:]), among=everyone)
    elsewhere = wanted & (axis.root_site != number)
    bases, counts = np.unique(axis.root_site[elsewhere], return_counts=True)
    taken = sorted(zip(bases.tolist(), counts.tolist(), strict=True))
    for fate in ("cross", "layer"):
        for base, units in taken:
            if (kinds[base] == kinds[number]) == (fate == "layer"):
                yield made("layer" if fate == "layer" else "cross", units, sites[base].name)
    held = np.zeros(len(wanted), np.bool_)
    held[list(readers)] = True
    private = int(np.count_nonzero(wanted & (axis.root_site == number) & ~held))
    if private:
        yield made("private", private)
    # A unit that is dead here and read by others is stored for them: it counts among those that others read.
    gone = int(np.count_nonzero(~wanted & ~held))
    if gone:
        yield made("pruned", gone, each=vectors + own)
