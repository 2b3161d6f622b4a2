"""Weights as planners see them: for each unit of an axis, one row of numbers a member.

Shapes: N units on an axis, H heads, P units a head (N = H * P), D numbers in one member's weight vectors of a unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import combinations

import numpy as np
import numpy.typing as npt

from inarch.structure.sites import Member, Site, SiteTable

Read = Callable[[str], npt.NDArray[np.generic]]
"""Returns a parameter, as it is stored, by its name."""


def rows(member: Member, axis: str, read: Read) -> npt.NDArray[np.float32]:
    """The weight vectors of every unit of ``axis`` in one member.

    Returns:
        Shape [N, D], float32; D counts every position that the unit has in the member (a query group, a rotary pair).
    """
    stored = np.moveaxis(np.asarray(read(member.param)), member.axis, 0)
    index = member.index(axis)
    picked = stored.reshape(stored.shape[0], -1)[index.reshape(-1)]
    return picked.astype(np.float32).reshape(index.shape[0], -1)


def unit_axes(site: Site) -> tuple[str, ...]:
    """The axes whose units are single weight vectors: ``hidden``, or ``qk``, ``vo`` (and ``vo2``)."""
    return tuple(name for name in site.axes if name != "head")


def matrices(site: Site, axis: str) -> tuple[Member, ...]:
    """Members that hold weight vectors of ``axis``, by role, so that two sites' members line up."""
    return tuple(sorted((member for member in site.on(axis) if member.is_matrix), key=lambda member: member.role))


def energies(site: Site, read: Read) -> Mapping[str, npt.NDArray[np.float64]] | None:
    """How much each unit weighs in its site.

    The squared norm of a unit's weight vector in a member, relative to the mean over the member's units, averaged over
    the members: 1 is an average unit, whatever the scale of the site's weights. A member that is all zeros counts as 0.

    Returns:
        Axis name -> shape [H, P]; None where a weight is NaN or infinite, since such a site must not be changed.
    """
    result: dict[str, npt.NDArray[np.float64]] = {}
    for name in unit_axes(site):
        axis = site.axes[name]
        total = np.zeros(axis.size)
        members = matrices(site, name)
        for member in members:
            squared = np.square(rows(member, name, read).astype(np.float64)).sum(axis=1)
            mean = float(squared.mean())
            if not np.isfinite(mean):
                return None
            if mean > 0:
                total += squared / mean
        result[name] = (total / max(len(members), 1)).reshape(axis.heads, axis.per_head)
    return result


def directions(site: Site, axis: str, read: Read) -> list[npt.NDArray[np.float32]]:
    """Weight vectors scaled to length 1, one [N, D] array a member; a zero vector stays zero."""
    result = []
    for member in matrices(site, axis):
        vectors = rows(member, axis, read)
        norms = np.sqrt(np.square(vectors.astype(np.float64)).sum(axis=1, keepdims=True))
        result.append((vectors / np.where(norms > 0, norms, 1.0)).astype(np.float32))
    return result


def tied_sites(table: SiteTable) -> frozenset[str]:
    """Sites that hold a weight vector which another member, of theirs or of another site, or something that is no site holds too.

    Two members of one parameter are separate where they cover disjoint ranges of the same axis (packed q, k, v). Tied biases
    and riders don't count: they are small, and the compiler forks them where sites come to differ.
    """
    held = {s.name for s in table.sites if any(m.is_matrix and m.param in table.held for m in s.members.values())}
    return frozenset(held.union(*overlapping(table, lambda member: member.is_matrix)))


def overlapping(table: SiteTable, wanted: Callable[[Member], bool]) -> Iterator[tuple[str, str]]:
    """Names of the two sites, or twice of the one, of every pair of wanted members that hold part of a parameter together."""
    holders: dict[str, list[tuple[str, Member]]] = {}
    for site in table.sites:
        for member in filter(wanted, site.members.values()):
            holders.setdefault(member.param, []).append((site.name, member))
    for members in holders.values():
        for (one, a), (other, b) in combinations(members, 2):
            if a.axis != b.axis or np.intersect1d(a.positions, b.positions).size:
                yield one, other
