"""Count what a lowering stores, and charge what it stores beyond the plan to reasons."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from inarch.structure.demand import Coverage, Demand, planned_of, unit_axes, wanted_positions
from inarch.structure.legalise import PrivateUnits
from inarch.structure.links import REASONS, Links
from inarch.structure.lowered import Legalised, LoweredSite, Segment
from inarch.structure.sites import AXIS_FACTORS, Member, Site
from inarch.structure.units import Indices


@dataclass(frozen=True)
class Account:
    """Numbers inside the sites: what is stored, what the plan counts, and why they differ.

    ``stored - planned`` is the sum of the entries' parameters.
    """

    planned: int
    stored: int
    legalised: tuple[Legalised, ...]


def account(
    demand: Demand,
    links: Links,
    sites: Sequence[LoweredSite],
    segments: Sequence[Segment],
    private: Mapping[tuple[int, str], Sequence[PrivateUnits]],
) -> Account:
    """Count what is stored and charge the difference to the plan. O(units).

    A tie of the dense model (two members over the same numbers, or a member and something that is no site) is counted once by
    the plan and where both sites are untouched; a site that changes holds its numbers alone, reason ``tied``.

    Args:
        demand: the plan.
        links: why units that the plan shares are private.
        sites: how every site is stored.
        segments: what is stored once.
        private: (site number, axis) -> the private blocks of its groups.
    """
    table = demand.table
    charges = _Charges()
    stored = 0
    for segment in segments:
        first = table.by_name[next(iter(segment.readers))]
        stored += segment.width * first.unit_parameters(segment.axis)[0]
    untouched = Coverage(table.held)
    for number, (site, lowered) in enumerate(zip(table.sites, sites, strict=True)):
        if lowered.touched:
            stored += sum(stored_numbers(site, lowered, member) for member in site.members.values())
        else:
            for member in site.members.values():
                untouched.add(member, member.positions)
        for name in unit_axes(site):
            cost = sum(site.unit_parameters(name))
            for block in private.get((number, name), ()):
                for reason, units in block.added.items():
                    charges.add(number, name, reason, units, units * cost)
        for member in site.members.values():
            axis = rider_axis(site, member)
            if axis is not None:
                extra = stored_numbers(site, lowered, member) - len(wanted_positions(demand, number, member)) * member.width
                in_head = axis in unit_axes(site) and any(name != "head" for name, _ in member.factors)
                charges.add(number, axis, "rotary" if in_head else "frozen", 0, extra)
    stored += untouched.total
    _charge_copies(demand, links, segments, charges)
    planned = planned_of(demand)
    _charge_ties(demand, sites, planned, untouched, charges)
    return Account(planned.total, stored, charges.legalised([site.name for site in table.sites]))


def rider_axis(site: Site, member: Member) -> str | None:
    """For a member that no unit axis spans, the axis that it is charged to: it runs over heads, in-head indices or neither."""
    if any(member.has(name) for name in unit_axes(site)):
        return None
    factors = {name for name, _ in member.factors}
    inside = [name for name in unit_axes(site) if AXIS_FACTORS[name][-1] in factors]
    if inside:
        return inside[0]
    return "head" if "head" in site.axes else unit_axes(site)[0]


def stored_numbers(site: Site, lowered: LoweredSite, member: Member) -> int:
    """Numbers of a member that a site's own blocks hold (shared segments count elsewhere)."""
    factors = dict(member.factors)
    for name in unit_axes(site):
        if member.has(name):
            units = sum(
                block.units.size
                for group in lowered.groups
                for block in group.blocks[name]
                if block.segment is None or not member.is_matrix
            )
            return units * (member.size // site.axes[name].size) * member.width
        factor = AXIS_FACTORS[name][-1]
        if factor in factors:
            inside = sum(block.per_head for group in lowered.groups for block in group.blocks[name])
            return inside * (member.size // factors[factor]) * member.width
    if "head" in factors:
        return sum(len(group.heads) for group in lowered.groups) * (member.size // factors["head"]) * member.width
    return member.size * member.width if lowered.groups else 0


def _charge_copies(demand: Demand, links: Links, segments: Iterable[Segment], charges: _Charges) -> None:
    """Charge every copy of a root's vectors but one: private ones to their reader, a further segment to its first reader."""
    numbers = {site.name: number for number, site in enumerate(demand.table.sites)}
    on: defaultdict[str, list[Segment]] = defaultdict(list)
    for segment in segments:
        on[segment.axis].append(segment)
    for name, axis in demand.axes.items():
        vectors = {n: demand.table.sites[n].unit_parameters(name)[0] for n in axis.sites}
        held = {n: np.zeros(len(axis.want[n]), np.bool_) for n in axis.sites}
        paid = np.zeros(len(axis.owner), np.bool_)
        copies: list[tuple[int, Indices]] = []
        for segment in sorted(on[name], key=lambda one: -len(one.readers)):
            for reader, units in segment.readers.items():
                held[numbers[reader]][units] = True
            first = numbers[next(iter(segment.readers))]
            units = segment.readers[demand.table.sites[first].name]
            roots = axis.root[first][units]
            copies.append((first, units[paid[roots]]))
            paid[roots] = True
        # The root's own site keeps the copy that the plan counts, where nobody shares it.
        for foreign in (False, True):
            for n in axis.sites:
                units = np.flatnonzero(axis.want[n] & ~held[n] & ((axis.owner[axis.root[n]] != n) == foreign))
                roots = axis.root[n][units]
                _, first_use = np.unique(roots, return_index=True)
                fresh = np.zeros(len(units), np.bool_)
                fresh[first_use] = True
                fresh &= ~paid[roots]
                paid[roots] = True
                copies.append((n, units[~fresh]))
        for n, units in copies:
            owners = axis.owner[axis.root[n][units]]
            found, counts = np.unique(np.stack([links.why[name][n][units], owners]), axis=1, return_counts=True)
            for (reason, owner), count in zip(found.T.tolist(), counts.tolist(), strict=True):
                charges.add(n, name, REASONS[reason], count, count * vectors[n], owner)


def _charge_ties(demand: Demand, sites: Sequence[LoweredSite], planned: Coverage, untouched: Coverage, charges: _Charges) -> None:
    """Charge the numbers of tied parameters that the plan counts once and the file holds several times."""
    members: defaultdict[str, list[tuple[int, Member]]] = defaultdict(list)
    for number, site in enumerate(demand.table.sites):
        for member in site.members.values():
            members[member.param].append((number, member))
    for param, places in members.items():
        apart = sum(len(wanted_positions(demand, number, member)) * member.width for number, member in places)
        kept = sum(member.size * member.width for number, member in places if not sites[number].touched)
        lost = (apart - planned.count(param)) - (kept - untouched.count(param))
        if lost:
            number, member = next((n, m) for n, m in places if sites[n].touched)
            site = demand.table.sites[number]
            axis = next((name for name in unit_axes(site) if member.has(name)), rider_axis(site, member))
            assert axis is not None
            charges.add(number, axis, "tied", 0, lost)


class _Charges:
    """What is stored beyond the plan, by site, axis, reason and the site whose vectors it repeats: units and parameters."""

    def __init__(self) -> None:
        self._entries: defaultdict[tuple[int, str, str, int], list[int]] = defaultdict(lambda: [0, 0])

    def add(self, site: int, axis: str, reason: str, units: int, parameters: int, base: int = -1) -> None:
        """Book an entry."""
        entry = self._entries[site, axis, reason, base]
        entry[0] += units
        entry[1] += parameters

    def legalised(self, names: Sequence[str]) -> tuple[Legalised, ...]:
        """The entries by site, axis, reason and base, in a fixed order; ``names`` are the sites' names."""
        axes = tuple(AXIS_FACTORS)
        found = sorted(self._entries.items(), key=lambda item: (item[0][0], axes.index(item[0][1]), *item[0][2:]))
        return tuple(
            Legalised(names[n], axis, reason, booked[0], booked[1], names[base] if base >= 0 else None)
            for (n, axis, reason, base), booked in found
            if any(booked)
        )
