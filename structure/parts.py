"""A plan's pruning alone, and its sharing alone: to measure what each of the two is worth."""

from __future__ import annotations

from collections.abc import Callable

from inarch.structure.plan import AxisPlan, Plan, plan_hash
from inarch.structure.units import format_indices


def pruning_of(plan: Plan) -> Plan:
    """The plan without its sharing: what it prunes is pruned, and every other unit is private."""
    return _restricted(plan, "pruning", lambda axis: AxisPlan(size=axis.size, keep=axis.keep))


def sharing_of(plan: Plan) -> Plan:
    """The plan without its pruning: what it shares is shared, and what it would prune is kept, private."""
    return _restricted(
        plan, "sharing", lambda axis: AxisPlan(size=axis.size, keep=format_indices(range(axis.size)), share=axis.share)
    )


def _restricted(plan: Plan, part: str, change: Callable[[AxisPlan], AxisPlan]) -> Plan:
    # What its author expects is expected of the whole plan.
    sites = {
        name: site.model_copy(update={"axes": {axis: change(axis_plan) for axis, axis_plan in site.axes.items()}})
        for name, site in plan.sites.items()
    }
    return plan.model_copy(update={"sites": sites, "expect": None, "provenance": {"part": part, "of": plan_hash(plan)}})
