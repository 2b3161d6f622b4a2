"""Bind a plan to a model's sites and follow its sharing to the roots: plan + SiteTable -> ResolvedPlan.

A plan's site is bound by its name (same kind, same sizes), else by its members' parameter names, else by its place in the order
of the sites, where the plan lists all of them. What was made for another model is refused: the fingerprints differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from pydantic import JsonValue

from inarch.structure.errors import (
    AmbiguousSiteError,
    FrozenAxisError,
    KindMismatchError,
    PlanError,
    RejectedSiteError,
    SiteMismatchError,
    StaleFingerprintError,
    UnknownKeyError,
    UnknownSiteError,
    WidthMismatchError,
)
from inarch.structure.lowered import ResolvedAxis, ResolvedPlan
from inarch.structure.plan_checks import Shape, UnitGraph, View, check_members, check_sharing, check_sites
from inarch.structure.plan_types import (
    AXIS_NAMES,
    FORMAT,
    AxisName,
    AxisPlan,
    Expect,
    MemberRef,
    ModelRef,
    Plan,
    SharePlan,
    SitePlan,
    json_path,
)
from inarch.structure.sites import AXIS_FACTORS, Member, Site, SiteTable
from inarch.structure.units import Indices, format_indices

UNIT_AXES = ("hidden", "qk", "vo", "vo2")
"""The axes that hold weight vectors; decisions on ``head`` are folded into the last three."""


def resolve(plan: Plan, table: SiteTable) -> ResolvedPlan:
    """Bind a plan to a model and follow every chain of sharing to its root. O(units log chain length).

    Args:
        plan: the plan.
        table: the model's sites.

    Returns:
        Every site and unit axis of the model, planned or not; a unit that is pruned or private is its own root.

    Raises:
        PlanError: the first mistake that :func:`lint_against` finds; where a site cannot be bound it is a BindingError too.
    """
    errors, graphs = _check(plan, table)
    if errors:
        raise errors[0]
    return _resolved(table, graphs)


def lint_against(plan: Plan, table: SiteTable) -> list[PlanError]:
    """Every mistake of a plan on a model: the fingerprint, then the binding, then what the plan decides.

    Mistakes of binding hide those of content, which mean little on the wrong sites.
    """
    return _check(plan, table)[0]


def identity(table: SiteTable) -> ResolvedPlan:
    """The plan that changes nothing: every unit kept, private."""
    axes: dict[str, dict[str, ResolvedAxis]] = {}
    for number, site in enumerate(table.sites):
        axes[site.name] = {}
        for name, axis in site.axes.items():
            if name in UNIT_AXES:
                pruned = np.zeros(axis.size, dtype=np.bool_)
                own = np.full(axis.size, number, dtype=np.int64)
                axes[site.name][name] = ResolvedAxis(pruned, own, np.arange(axis.size, dtype=np.int64))
    return ResolvedPlan(tuple(site.name for site in table.sites), axes)


@dataclass
class Binding:
    """Which site of the model each site of a plan is.

    Attributes:
        sites: plan's site name -> number of the model's site; names that could not be bound are missing.
        errors: why they could not.
    """

    sites: dict[str, int] = field(default_factory=dict)
    errors: list[PlanError] = field(default_factory=list)


def bind(plan: Plan, table: SiteTable) -> Binding:
    """Bind each site of a plan to a site of the model: by name, else by parameter names, else by position.

    Where its parameters are another site's than its name says, neither is believed. Exporters rename parameters, so names that
    the model does not have say nothing.
    """
    binding = Binding()
    numbers = {site.name: number for number, site in enumerate(table.sites)}
    rejected = {rejection.name: rejection.reason for rejection in table.rejected}
    unbound: list[str] = []
    for name, site in plan.sites.items():
        number = numbers.get(name)
        if number is not None and _misfit(site, table.sites[number]) is None:
            other = _anothers_matrices(site, table.sites[number], table)
            if other is None:
                binding.sites[name] = number
            else:
                what = f"the model has a site of this name, but its parameters are those of {other!r} there"
                binding.errors.append(AmbiguousSiteError(what, where=json_path("sites", name, "members")))
        elif name in rejected:
            binding.errors.append(_cannot_compile(rejected[name], json_path("sites", name)))
        else:
            unbound.append(name)
    unbound = _bind_by_members(plan, table, binding, unbound)
    unbound, why = _bind_by_position(plan, table, binding, unbound)
    lost = {param: rejection.reason for rejection in table.rejected for param in rejection.params}
    for name in unbound:
        site, number = plan.sites[name], numbers.get(name)
        reasons = [lost[ref.param] for ref in site.members.values() if ref is not None and ref.param in lost]
        if number is not None:
            place, what = _misfit(site, table.sites[number]) or ((), "another site of the plan is bound there")
            binding.errors.append(SiteMismatchError(what, where=json_path("sites", name, *place)))
        elif reasons:
            binding.errors.append(_cannot_compile(reasons[0], json_path("sites", name)))
        else:
            what = f"the model has no site of this name or these parameters, and {why}"
            binding.errors.append(UnknownSiteError(what, where=json_path("sites", name), hint="inarch inspect lists its sites"))
    first: dict[int, str] = {}
    for name, number in binding.sites.items():
        if number in first:
            what = f"this and {first[number]!r} are both the model's site {table.sites[number].name!r}"
            binding.errors.append(AmbiguousSiteError(what, where=json_path("sites", name)))
        first.setdefault(number, name)
    return binding


def _bind_by_members(plan: Plan, table: SiteTable, binding: Binding, unbound: list[str]) -> list[str]:
    """Bind the sites whose matrices have names that exactly one fitting site of the model has; return the others."""
    left = []
    for name in unbound:
        site = plan.sites[name]
        fits = [
            n for n, candidate in enumerate(table.sites) if _misfit(site, candidate) is None and _same_matrices(site, candidate)
        ]
        if len(fits) == 1:
            binding.sites[name] = fits[0]
        elif fits:
            names = ", ".join(repr(table.sites[n].name) for n in fits)
            what = f"its parameters are those of several sites of the model: {names}"
            binding.errors.append(AmbiguousSiteError(what, where=json_path("sites", name)))
        else:
            left.append(name)
    return left


def _bind_by_position(plan: Plan, table: SiteTable, binding: Binding, unbound: list[str]) -> tuple[list[str], str]:
    """Bind the k-th site to the model's k-th; return those that are left, and why their position does not tell."""
    order = {name: number for number, name in enumerate(plan.sites)}
    if plan.model.fingerprint != table.fingerprint:
        return unbound, "the plan was made for another model, so that positions do not tell"
    if len(order) != len(table.sites):
        return unbound, "the plan does not list all sites, so that positions do not tell"
    if any(order[name] != number for name, number in binding.sites.items()):
        return unbound, "the plan lists the sites in another order than the model, so that positions do not tell"
    left = []
    for name in unbound:
        if _misfit(plan.sites[name], table.sites[order[name]]) is None:
            binding.sites[name] = order[name]
        else:
            left.append(name)
    return left, "the site at its position is another"


def _misfit(plan: SitePlan, site: Site) -> tuple[tuple[str, ...], str] | None:
    """Where and why a plan's site is not this one by kind and sizes; None where it may be."""
    if plan.kind != site.kind:
        return ("kind",), f"the plan says {plan.kind}, the model's site is an {site.kind}"
    if plan.heads is not None and plan.heads != site.heads:
        return ("heads",), f"the plan says {plan.heads} heads, the model's site has {site.heads}"
    for name, axis in plan.axes.items():
        theirs = site.axes.get(name)
        if theirs is None:
            return ("axes", name), f"the model's site has no axis {name!r}"
        if theirs.size != axis.size:
            return ("axes", name, "size"), f"the plan says {axis.size} units, the model's site has {theirs.size}"
    return None


def _anothers_matrices(plan: SitePlan, named: Site, table: SiteTable) -> str | None:
    """The site whose matrices the plan names where they are not the site's that it names."""
    if _same_matrices(plan, named):
        return None
    return next((site.name for site in table.sites if site is not named and _same_matrices(plan, site)), None)


def _same_matrices(plan: SitePlan, site: Site) -> bool:
    """Whether the plan's site names matrices, and all of them are the site's. Biases may have been merged or dropped."""
    named = {role: ref for role, ref in plan.members.items() if ref is not None and not role.split(":")[0].endswith("_bias")}
    named = {role: ref for role, ref in named.items() if not role.startswith("rider")}
    return bool(named) and all(
        role in site.members
        and site.members[role].param == ref.param
        # Packed parameters hold several members of one name.
        and (site.members[role].axis != ref.axis or _ranges(site.members[role]) == ref.ranges)
        for role, ref in named.items()
    )


def _ranges(member: Member) -> str:
    return format_indices(np.arange(member.start, member.start + member.size))


def _check(plan: Plan, table: SiteTable) -> tuple[list[PlanError], dict[str, UnitGraph]]:
    """All mistakes, and the units' graphs, which mean something only where there is no mistake."""
    shape_errors = [*check_members(plan), *check_sites(plan)]
    if shape_errors:
        return shape_errors, {}
    binding = bind(plan, table)
    errors: list[PlanError] = [e for e in binding.errors if isinstance(e, RejectedSiteError)]
    if plan.model.fingerprint != table.fingerprint:
        errors.append(_stale(plan, table, binding))
        if not binding.sites and plan.sites:
            return errors, {}
    errors += [e for e in binding.errors if not isinstance(e, RejectedSiteError)]
    lookup = _lookup(binding, table)
    errors += _check_bases(plan, table, lookup)
    if errors:
        return errors, {}
    view = _view(plan, table, binding, lookup)
    mistakes, graphs = check_sharing(view)
    mistakes += _check_frozen(plan, table, binding)
    mistakes += _check_widths(plan, table, binding, lookup)
    unique = {(type(error), error.where): error for error in reversed(mistakes)}
    return list(reversed(unique.values())), graphs


def _cannot_compile(reason: str, where: str) -> RejectedSiteError:
    return RejectedSiteError(f"the model's site cannot be compiled: {reason}", where=where)


def _stale(plan: Plan, table: SiteTable, binding: Binding) -> StaleFingerprintError:
    lost = next((f"; {name!r} is not" for name in plan.sites if name not in binding.sites), "")
    return StaleFingerprintError(
        f"the plan was made for another model: of its {len(plan.sites)} sites {len(binding.sites)} are found in this one{lost}",
        where="model.fingerprint",
        hint=f"make the plan anew; this model's fingerprint is {table.fingerprint}",
    )


def _lookup(binding: Binding, table: SiteTable) -> dict[str, int]:
    """Names that a base may have: the plan's own first; a model's site keeps its name where the plan doesn't use it."""
    names = {site.name: number for number, site in enumerate(table.sites)}
    return names | binding.sites


def _check_bases(plan: Plan, table: SiteTable, lookup: Mapping[str, int]) -> Iterator[PlanError]:
    rejected = {rejection.name: rejection.reason for rejection in table.rejected}
    for name, site in plan.sites.items():
        for axis, axis_plan in site.axes.items():
            for number, share in enumerate(axis_plan.share):
                if share.base in lookup or share.base in plan.sites:  # an unbound one is reported itself
                    continue
                where = json_path("sites", name, "axes", axis, "share", number, "base")
                if share.base in rejected:
                    yield _cannot_compile(rejected[share.base], where)
                else:
                    what = f"neither the plan nor the model has a site {share.base!r}"
                    yield UnknownSiteError(what, where=where, hint="inarch inspect lists the model's sites")


def _view(plan: Plan, table: SiteTable, binding: Binding, lookup: Mapping[str, int]) -> View:
    """The plan on the model's sites, numbered as in the table."""
    labels = [site.name for site in table.sites]
    plans: list[SitePlan | None] = [None] * len(labels)
    for name, number in binding.sites.items():
        labels[number] = name
        plans[number] = plan.sites[name]
    shapes = [
        Shape(site.kind, site.heads, {name: axis.per_head for name, axis in site.axes.items()}, complete=True)
        for site in table.sites
    ]
    return View(labels, plans, shapes, lookup)


def _check_frozen(plan: Plan, table: SiteTable, binding: Binding) -> Iterator[PlanError]:
    for name, number in binding.sites.items():
        for axis, axis_plan in plan.sites[name].axes.items():
            reason = table.sites[number].axes[axis].frozen
            if reason is None:
                continue
            what = f"axis {axis!r} cannot be changed: {reason}"
            if len(axis_plan.kept) < axis_plan.size:
                yield FrozenAxisError(what, where=json_path("sites", name, "axes", axis, "keep"), hint="keep all of its units")
            for entry, share in enumerate(axis_plan.share):
                if share.units:
                    yield FrozenAxisError(
                        what, where=json_path("sites", name, "axes", axis, "share", entry), hint="share nothing"
                    )


def _check_widths(plan: Plan, table: SiteTable, binding: Binding, lookup: Mapping[str, int]) -> Iterator[PlanError]:
    """Yield where the weight vectors of reader and base differ in number or length, role by role."""
    for name, number in binding.sites.items():
        site = table.sites[number]
        for axis, axis_plan in plan.sites[name].axes.items():
            inner = [a for a in site.axes if a in UNIT_AXES] if axis == "head" else [axis]
            for entry, share in enumerate(axis_plan.share):
                base = table.sites[lookup[share.base]]
                where = json_path("sites", name, "axes", axis, "share", entry, "base")
                for unit_axis in inner:
                    if base.kind == site.kind and unit_axis in base.axes:
                        yield from _compare(site, base, unit_axis, where)


def _compare(reader: Site, base: Site, axis: str, where: str) -> Iterator[PlanError]:
    mine = {m.role: m for m in reader.on(axis) if m.is_matrix}
    theirs = {m.role: m for m in base.on(axis) if m.is_matrix}
    if mine.keys() != theirs.keys():
        gated = "; one is gated and the other is not" if "gate" in mine.keys() ^ theirs.keys() else ""
        what = f"the reader's units are {_names(mine)}, the base's {_names(theirs)}{gated}"
        yield KindMismatchError(what, where=where)
        return
    for role, member in mine.items():
        other = theirs[role]
        if member.width != other.width:
            what = f"a vector of {role} has {member.width} numbers at the reader, {other.width} at the base"
            yield WidthMismatchError(what, where=where, hint="only sites of one width can share")
            return
        if _carried(member, axis) != _carried(other, axis):
            what = (
                f"a unit of {role} is {_shown(_carried(member, axis))} at the reader, {_shown(_carried(other, axis))} at the base"
            )
            yield WidthMismatchError(what, where=where, hint="grouped or rotary units share only with their like")
            return


def _carried(member: Member, axis: str) -> tuple[tuple[str, int], ...]:
    """The factors that a unit of the axis carries along whole: a group's query heads, a rotary pair."""
    return tuple((name, size) for name, size in member.factors if name not in AXIS_FACTORS[axis] and size > 1)


def _names(members: Mapping[str, Member]) -> str:
    return " and ".join(members)


def _shown(factors: tuple[tuple[str, int], ...]) -> str:
    return " x ".join(f"{size} ({name})" for name, size in factors) or "one vector"


def _resolved(table: SiteTable, graphs: Mapping[str, UnitGraph]) -> ResolvedPlan:
    axes: dict[str, dict[str, ResolvedAxis]] = {site.name: {} for site in table.sites}
    for name in UNIT_AXES:
        graph = graphs[name]
        root_site = graph.site_of(graph.roots)
        root_unit = graph.roots - graph.offsets[root_site]
        for number, site in enumerate(table.sites):
            if name in site.axes:
                span = slice(int(graph.offsets[number]), int(graph.offsets[number + 1]))
                axes[site.name][name] = ResolvedAxis(graph.pruned[span], root_site[span], root_unit[span])
    return ResolvedPlan(tuple(site.name for site in table.sites), axes)


# Making plans


@dataclass(frozen=True, eq=False)
class AxisDecision:
    """What an author decides about one axis.

    Attributes:
        keep: indices of the units that are kept, in any order; None for all.
        share: ``(base site, units, base units)``, units paired in order.
    """

    keep: Indices | None = None
    share: Sequence[tuple[str, Indices, Indices]] = ()


def build_plan(
    table: SiteTable,
    decisions: Mapping[str, Mapping[str, AxisDecision]],
    name: str,
    provenance: Mapping[str, JsonValue],
) -> Plan:
    """Write decisions as a plan of all the model's sites, with what the author may expect of it.

    Args:
        table: the model's sites.
        decisions: site name -> axis name -> decision; what is left out keeps every unit private.
        name: the model's name, for people.
        provenance: how the decisions were made; any JSON.

    Returns:
        A plan that resolves on ``table``, its ``expect`` filled in.

    Raises:
        BindingError: a decision on a site that the model lacks.
        PlanError: the decisions contradict themselves or the model.
    """
    # Counting is the lowering's, and reading plans needs nothing of it.
    from inarch.structure.lowering import planned_parameters

    for site_name, axes in decisions.items():
        for axis in axes:
            if axis not in table[site_name].axes:
                where = json_path("sites", site_name, "axes", axis)
                raise UnknownKeyError("the site has no such axis", where=where, hint=f"it has {', '.join(table[site_name].axes)}")
    sites = {site.name: _site_plan(site, decisions.get(site.name, {})) for site in table.sites}
    plan = Plan(format=FORMAT, model=ModelRef(name=name, fingerprint=table.fingerprint), sites=sites, provenance=dict(provenance))
    planned = planned_parameters(table, resolve(plan, table))
    stored_bytes = round(planned * table.bytes / table.parameters) if table.parameters else 0
    return plan.model_copy(update={"expect": Expect(parameters=planned, bytes=stored_bytes)})


def _site_plan(site: Site, decisions: Mapping[str, AxisDecision]) -> SitePlan:
    members: dict[str, MemberRef | None] = {
        role: MemberRef(param=m.param, axis=m.axis, ranges=_ranges(m), transposed=m.transposed)
        for role, m in site.members.items()
    }
    axes: dict[AxisName, AxisPlan] = {}
    for name in AXIS_NAMES:
        if name not in site.axes:
            continue
        axis, decision = site.axes[name], decisions.get(name, AxisDecision())
        keep = np.arange(axis.size) if decision.keep is None else np.sort(decision.keep)
        share = tuple(
            SharePlan(base=base, units=format_indices(units), base_units=format_indices(base_units))
            for base, units, base_units in decision.share
            if len(units) or len(base_units)
        )
        axes[name] = AxisPlan(size=axis.size, keep=format_indices(keep), share=share)
    return SitePlan(kind=site.kind, heads=site.heads if site.kind == "msa" else None, members=members, axes=axes)
