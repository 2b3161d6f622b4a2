"""The plan by values taken word for word from the plan: no resolving, no graph of units, a dictionary and a walk."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from inarch.compiler.values import SiteValues, as_vectors
from inarch.structure.plan import Plan
from inarch.structure.sites import Site, SiteTable

from tests.zoo.draft import unit_axes

Unit = tuple[str, str, int]
"""(site, axis, unit)."""


def bases_of(plan: Plan, table: SiteTable) -> dict[Unit, Unit]:
    """Every shared unit and the unit that the plan names for it, which may be shared itself."""
    bases: dict[Unit, Unit] = {}
    for name, site_plan in plan.sites.items():
        site = table[name]
        for axis_name, axis in site_plan.axes.items():
            for share in axis.share:
                base = table[share.base]
                pairs = list(zip(share.reader_indices.tolist(), share.base_indices.tolist(), strict=True))
                if axis_name != "head":
                    bases |= {(name, axis_name, unit): (base.name, axis_name, other) for unit, other in pairs}
                    continue
                for inner in unit_axes(site):
                    size = site.axes[inner].per_head
                    for head, other in pairs:
                        for unit in range(size):
                            bases[name, inner, head * size + unit] = (base.name, inner, other * size + unit)
    return bases


def is_pruned(plan: Plan, site: Site, axis: str, unit: int) -> bool:
    """Whether the plan leaves a unit or its head out."""
    axes = dict(plan.sites[site.name].axes) if site.name in plan.sites else {}
    head = unit // site.axes[axis].per_head
    return any(name in axes and number not in axes[name].kept for name, number in ((axis, unit), ("head", head)))


def wrong_values(values: SiteValues, plan: Plan, table: SiteTable) -> Iterator[str]:
    """Members of which ``values`` says something else than the plan does."""
    bases = bases_of(plan, table)
    for site in table.sites:
        for role, member in site.members.items():
            wanted = as_vectors(values.original(site.name, role), member.axis)[member.positions].copy()
            for axis in unit_axes(site):
                if member.has(axis) and (member.is_matrix or member.is_bias):
                    for unit, rows in enumerate(member.relative(axis)):
                        wanted[rows] = _rows(values, plan, table, bases, site, role, axis, unit)
            got = values.vectors(site.name, role, np.arange(member.size))
            if not np.array_equal(got, wanted):
                yield f"{site.name}: {role}"


def _rows(
    values: SiteValues, plan: Plan, table: SiteTable, bases: dict[Unit, Unit], site: Site, role: str, axis: str, unit: int
) -> npt.NDArray[np.generic]:
    """What one unit of a member is worth."""
    here: Unit = (site.name, axis, unit)
    if not is_pruned(plan, site, axis, unit):
        while site.members[role].is_matrix and here in bases:
            here = bases[here]
    root = table[here[0]].members[role]
    rows = as_vectors(values.original(here[0], role), root.axis)[root.index(axis)[here[2]]]
    return np.zeros_like(rows) if is_pruned(plan, site, axis, unit) else rows
