"""The plan by values taken word for word from the plan: no resolving, no graph of units, a dictionary and a walk."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from inarch.compiler.values import SiteValues, as_vectors
from inarch.structure.plan import Plan
from inarch.structure.sites import SiteTable

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


def pruned_of(plan: Plan, table: SiteTable) -> set[Unit]:
    """Every unit that the plan leaves out, or whose head it leaves out."""
    pruned: set[Unit] = set()
    for name, site_plan in plan.sites.items():
        site = table[name]
        kept = {axis: set(axis_plan.kept.tolist()) for axis, axis_plan in site_plan.axes.items()}
        for axis in unit_axes(site):
            for unit in range(site.axes[axis].size):
                head = unit // site.axes[axis].per_head
                if unit not in kept.get(axis, {unit}) or head not in kept.get("head", {head}):
                    pruned.add((name, axis, unit))
    return pruned


def wrong_values(values: SiteValues, plan: Plan, table: SiteTable) -> Iterator[str]:
    """Members of which ``values`` says something else than the plan does."""
    bases, pruned = bases_of(plan, table), pruned_of(plan, table)
    for site in table.sites:
        for role, member in site.members.items():
            wanted = _vectors(values, table, site.name, role)[member.positions].copy()
            for axis in unit_axes(site):
                if member.has(axis) and (member.is_matrix or member.is_bias):
                    for unit, rows in enumerate(member.relative(axis)):
                        end: Unit = (site.name, axis, unit)
                        while member.is_matrix and end in bases:
                            end = bases[end]
                        root = table[end[0]].members[role]
                        value = _vectors(values, table, end[0], role)[root.index(axis)[end[2]]]
                        wanted[rows] = 0 if (site.name, axis, unit) in pruned else value
            if not np.array_equal(values.vectors(site.name, role, np.arange(member.size)), wanted):
                yield f"{site.name}: {role}"


def _vectors(values: SiteValues, table: SiteTable, site: str, role: str) -> npt.NDArray[np.generic]:
    """The original weight vectors of the parameter that holds a member, one a row."""
    return as_vectors(values.original(site, role), table[site].members[role].axis)
