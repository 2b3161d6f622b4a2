"""Random valid plans for any table of sites, what is known about them, and their shrinking."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from inarch.structure.plan import AxisPlan, Plan, SharePlan, SitePlan
from inarch.structure.sites import SiteTable
from inarch.structure.units import Indices, format_indices

from tests.zoo.draft import Draft
from tests.zoo.styles import STYLES


def random_plan(rng: np.random.Generator, table: SiteTable, style: str, name: str = "zoo") -> Plan:
    """Draw a valid plan.

    Args:
        rng: where the choices come from.
        table: the model's sites.
        style: one of :data:`STYLES`.
        name: the model's name.
    """
    # a style that has nothing to do on a model (heads that cannot go, one site of a kind) gives way to one that has
    for tried in (style, "share-prefix-pruned", "prune-all"):
        draft = Draft(rng, table)
        prune, share = STYLES[tried]
        prune(draft)
        share(draft)
        if draft.decided:
            break
    return draft.plan(name, tried)


def shared_fractions(plan: Plan) -> list[float]:
    """Shared units over kept units, of each axis that shares anything."""
    fractions = []
    for site in plan.sites.values():
        for axis in site.axes.values():
            shared = sum(len(share.reader_indices) for share in axis.share)
            if shared:
                fractions.append(shared / len(axis.kept))
    return fractions


def is_partial(plan: Plan) -> bool:
    """Whether some axis shares a part of its units: neither none nor all."""
    return any(fraction < 1 for fraction in shared_fractions(plan))


def has_empty_axis(plan: Plan) -> bool:
    """Whether nothing is left of some axis."""
    return any(not axis.keep for site in plan.sites.values() for axis in site.axes.values())


def _with_sites(plan: Plan, sites: dict[str, SitePlan]) -> Plan:
    return plan.model_copy(update={"sites": sites})


def _private(site: SitePlan) -> SitePlan:
    """The site with every unit kept and private."""
    axes = {
        name: AxisPlan(size=axis.size, keep=f"0-{axis.size - 1}" if axis.size > 1 else "0") for name, axis in site.axes.items()
    }
    return site.model_copy(update={"axes": axes})


def without_idle_sites(plan: Plan) -> Plan:
    """The plan without the sites that nothing is decided on and nothing is taken from."""
    bases = {share.base for site in plan.sites.values() for axis in site.axes.values() for share in axis.share}
    return _with_sites(plan, {name: site for name, site in plan.sites.items() if name in bases or _private(site) != site})


def smaller(plan: Plan) -> Iterator[Plan]:
    """Simpler plans that are valid where ``plan`` is: a site private, an axis private, half as much pruned or shared."""
    for name, site in plan.sites.items():
        plain = _private(site)
        if plain != site:
            yield _with_sites(plan, plan.sites | {name: plain})
    for name, site in plan.sites.items():
        for axis_name, axis in site.axes.items():
            for simpler in _smaller_axis(axis):
                axes = {**site.axes, axis_name: simpler}
                yield _with_sites(plan, plan.sites | {name: site.model_copy(update={"axes": axes})})


def _smaller_axis(axis: AxisPlan) -> Iterator[AxisPlan]:
    pruned = np.setdiff1d(np.arange(axis.size), axis.kept)
    everything = format_indices(np.arange(axis.size))
    if len(pruned):
        yield AxisPlan(size=axis.size, keep=everything, share=axis.share)
        for half in _halves(pruned):
            yield AxisPlan(size=axis.size, keep=format_indices(np.setdiff1d(np.arange(axis.size), half)), share=axis.share)
    for i, share in enumerate(axis.share):
        rest = axis.share[:i] + axis.share[i + 1 :]
        yield AxisPlan(size=axis.size, keep=axis.keep, share=rest)
        for half in _halves(np.arange(len(share.reader_indices))):
            less = SharePlan(
                base=share.base,
                units=format_indices(share.reader_indices[half]),
                base_units=format_indices(share.base_indices[half]),
            )
            yield AxisPlan(size=axis.size, keep=axis.keep, share=(*rest[:i], less, *rest[i:]))


def _halves(indices: Indices) -> Sequence[Indices]:
    """Both halves of what can be halved."""
    return (indices[: len(indices) // 2], indices[len(indices) // 2 :]) if len(indices) > 1 else ()


def shrink(plan: Plan, fails: Callable[[Plan], bool], limit: int = 80) -> Plan:
    """The simplest plan that is found within ``limit`` tries and still fails."""
    tries = 0
    progress = True
    while progress and tries < limit:
        progress = False
        for candidate in smaller(plan):
            tries += 1
            if fails(candidate):
                plan, progress = candidate, True
                break
            if tries >= limit:
                break
    short = without_idle_sites(plan)
    return short if short.sites and fails(short) else plan
