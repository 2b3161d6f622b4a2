"""A plan's pruning alone and its sharing alone: together they are the plan, and each resolves on the model."""

from __future__ import annotations

import pytest

from inarch.structure.parts import pruning_of, sharing_of
from inarch.structure.plan import lint_plan, parse_plan, plan_hash
from inarch.structure.resolve import resolve

from tests.structure.plan_cases import random_case, text_of


@pytest.mark.parametrize("seed", range(20))
def test_parts_of_random_plans(seed: int) -> None:
    case = random_case(seed)
    plan = parse_plan(text_of(case.document))
    pruned, shared = pruning_of(plan), sharing_of(plan)
    for part, what in ((pruned, "pruning"), (shared, "sharing")):
        assert not lint_plan(part)
        resolve(part, case.table)
        assert part.expect is None
        assert part.provenance == {"part": what, "of": plan_hash(plan)}
        assert list(part.sites) == list(plan.sites)
    for name, site in plan.sites.items():
        for axis_name, axis in site.axes.items():
            without, whole = pruned.sites[name].axes[axis_name], shared.sites[name].axes[axis_name]
            assert (without.keep, without.share) == (axis.keep, ())
            assert whole.share == axis.share
            assert whole.kept.tolist() == list(range(axis.size))


def test_the_parts_of_a_part() -> None:
    plan = parse_plan(text_of(random_case(0).document))
    nothing = sharing_of(pruning_of(plan))
    assert all(len(axis.kept) == axis.size and not axis.share for site in nothing.sites.values() for axis in site.axes.values())
