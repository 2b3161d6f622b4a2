"""What biases and riders of a model's sites cost, by who needs them: units, heads, or several of these at once.

Shapes: U units of all axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from inarch.learning.unit_rows import Key
from inarch.structure.demand import factor_index, unit_axes
from inarch.structure.sites import AXIS_FACTORS, Member, Site, SiteTable


def private_numbers(
    table: SiteTable, sites: Sequence[Site], units: Mapping[Key, slice]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """What biases and riders cost, by what needs them: units, numbered as the gates are, then heads, those of all sites in turn.

    Returns:
        [U + heads] numbers that one unit or head alone needs; and those that several need (a table over in-head indices, a table
        that two layers read): [n, k] who, filled up with U + heads, and [n] how many.
    """
    count = sum(where.stop - where.start for where in units.values())
    free = {site.name for site in sites}
    needs: dict[tuple[str, int], list[npt.NDArray[np.int64]]] = {}
    widths: dict[tuple[str, int], int] = {}
    stays: dict[tuple[str, int], list[npt.NDArray[np.int64]]] = {}
    end = count
    for site in table.sites:
        heads = np.arange(end, end + site.heads)
        end += site.heads if site.name in free else 0
        for member in (m for m in site.members.values() if not m.is_matrix and m.param not in table.held):
            place = member.param, member.axis
            widths[place] = member.width
            if site.name in free:
                needs.setdefault(place, []).append(_needs(site, member, units, heads))
            else:
                stays.setdefault(place, []).append(member.positions)
    alone = np.zeros(end)
    several: dict[tuple[int, ...], float] = {}
    for place, pairs in needs.items():
        found = np.unique(np.concatenate(pairs), axis=0)
        found = found[~np.isin(found[:, 0], np.concatenate([np.empty(0, np.int64), *stays.get(place, ())]))]
        _, inverse, users = np.unique(found[:, 0], return_inverse=True, return_counts=True)
        single = users[inverse] == 1
        np.add.at(alone, found[single, 1], widths[place])
        shared: dict[int, list[int]] = {}
        for position, who in found[~single].tolist():
            shared.setdefault(position, []).append(who)
        for users_of in shared.values():
            several[tuple(users_of)] = several.get(tuple(users_of), 0.0) + widths[place]
    unions = np.full((len(several), max((len(who) for who in several), default=0)), end, np.int64)
    for row, who in zip(unions, several, strict=True):
        row[: len(who)] = who
    return alone, unions, np.array(list(several.values()), np.float64)


def _needs(site: Site, member: Member, units: Mapping[Key, slice], heads: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Pairs (position on the parameter's axis, unit or head that needs what is there), [n, 2]."""
    factors = {name for name, _ in member.factors}
    for name in unit_axes(site):
        own = np.arange(units[site.name, name].start, units[site.name, name].stop)
        if member.has(name):
            return _pairs(member.index(name), own[:, None])
        if AXIS_FACTORS[name][-1] in factors:
            inside = factor_index(member, AXIS_FACTORS[name][-1])
            return _pairs(inside[:, :, None], own.reshape(site.heads, -1).T[:, None, :])
    if "head" in factors:
        return _pairs(factor_index(member, "head"), heads[:, None])
    return _pairs(member.positions[:, None], heads[None, :])


def _pairs(positions: npt.NDArray[np.int64], who: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    one, two = np.broadcast_arrays(positions, who)
    return np.stack((one.ravel(), two.ravel()), 1)
