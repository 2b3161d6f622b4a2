"""Plans for exported models: the planners', and one as a person would write it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from inarch.structure.cost import CostTable, Limits
from inarch.structure.plan import FORMAT, AxisName, AxisPlan, ModelRef, Plan, SharePlan, SitePlan
from inarch.structure.sites import Site, SiteTable
from inarch.structure.units import format_indices

_SMALL = Limits(multiple=4, rounding=0.25, min_segment=4, max_segments=4)

COST = CostTable(
    format="inarch.cost/1",
    description="the shipped proportions, for layers as small as these",
    balanced=_SMALL,
    size=_SMALL,
    latency=_SMALL,
)


_DROPPED: tuple[tuple[AxisName, int], ...] = (("qk", 0), ("vo", -1))


def handwritten(table: SiteTable) -> Plan:
    """Heads and FFN units, as a person writes it.

    The last head of every attention goes; of alike FFNs the later ones take the first half of the first one's units, and all drop
    the last quarter of their own; the second of alike attentions takes the first one's first head.
    """
    sites: dict[str, SitePlan] = {}
    for group in _alike(table):
        first = group[0]
        for number, site in enumerate(group):
            if site.kind == "ffn":
                axes: dict[AxisName, AxisPlan] = {"hidden": _hidden(site, first if number else None)}
            else:
                axes = {"head": _head(site, first if number == 1 else None)}
            axes = {name: axis for name, axis in axes.items() if site.axes[name].frozen is None}
            sites[site.name] = SitePlan(kind=site.kind, heads=site.heads if site.kind == "msa" else None, axes=axes)
    return Plan(format=FORMAT, model=ModelRef(name="exported", fingerprint=table.fingerprint), sites=sites)


def inner(table: SiteTable) -> Plan:
    """Units inside heads.

    Every head drops its first qk and its last vo unit; the second of alike attentions takes the first half of the first one's
    value units.
    """
    sites: dict[str, SitePlan] = {}
    for group in _alike(table):
        first = group[0]
        if first.kind == "ffn":
            continue
        for number, site in enumerate(group):
            axes: dict[AxisName, AxisPlan] = {}
            for name, drop in _DROPPED:
                axis = site.axes[name]
                if axis.frozen is not None or axis.per_head < 4:
                    continue
                grid = np.arange(axis.size).reshape(axis.heads, axis.per_head)
                kept = np.delete(grid, drop, axis=1)
                share: tuple[SharePlan, ...] = ()
                if name == "vo" and number == 1:
                    taken = format_indices(kept[:, : axis.per_head // 2].reshape(-1))
                    share = (SharePlan(base=first.name, units=taken, base_units=taken),)
                axes[name] = AxisPlan(size=axis.size, keep=format_indices(kept.reshape(-1)), share=share)
            if axes:
                sites[site.name] = SitePlan(kind="msa", heads=site.heads, axes=axes)
    return Plan(format=FORMAT, model=ModelRef(name="exported", fingerprint=table.fingerprint), sites=sites)


def nothing_left(table: SiteTable) -> Plan:
    """The first attention and the last FFN go entirely."""
    sites: dict[str, SitePlan] = {}
    wanted: tuple[tuple[str, AxisName, int], ...] = (("msa", "head", 0), ("ffn", "hidden", -1))
    for kind, axis, place in wanted:
        of_kind = [site for site in table.sites if site.kind == kind]
        if of_kind:
            site = of_kind[place]
            size = site.axes[axis].size
            sites[site.name] = SitePlan(
                kind=site.kind, heads=site.heads if kind == "msa" else None, axes={axis: AxisPlan(size=size, keep="")}
            )
    return Plan(format=FORMAT, model=ModelRef(name="exported", fingerprint=table.fingerprint), sites=sites)


def _alike(table: SiteTable) -> Iterator[list[Site]]:
    groups: dict[object, list[Site]] = {}
    for site in table.sites:
        key = (
            site.kind,
            tuple(site.sizes.items()),
            tuple((m.role, m.width, m.factors) for m in site.members.values() if m.is_matrix),
        )
        groups.setdefault(key, []).append(site)
    yield from groups.values()


def _hidden(site: Site, base: Site | None) -> AxisPlan:
    size = site.axes["hidden"].size
    share: tuple[SharePlan, ...] = ()
    if base is not None:
        half = format_indices(np.arange(size // 2))
        share = (SharePlan(base=base.name, units=half, base_units=half),)
    return AxisPlan(size=size, keep=format_indices(np.arange(size - size // 4)), share=share)


def _head(site: Site, base: Site | None) -> AxisPlan:
    size = site.heads
    share = (SharePlan(base=base.name, units="0", base_units="0"),) if base is not None and size > 2 else ()
    return AxisPlan(size=size, keep=format_indices(np.arange(size - 1)), share=share)
