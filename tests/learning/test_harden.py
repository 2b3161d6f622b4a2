"""From logits to a plan that keeps what was asked for."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from inarch.learning.families import families
from inarch.learning.gates import GateSpace, Hard
from inarch.learning.harden import TOLERANCE, as_plan, budget_lever, harden, refuse_unreachable
from inarch.structure.errors import InarchError
from inarch.structure.lowering import lower
from inarch.structure.plan import dump_plan, parse_plan
from inarch.structure.resolve import resolve

from tests.learning.tables import glip_like, mdetr_like

# A step of an axis is a few thousandths of the first, by how many heads live; one head of a family is a thirtieth of the second.
TABLES = {"mdetr": mdetr_like(96, 4, 384), "glip": glip_like()}
NEAR = {"mdetr": 0.004, "glip": TOLERANCE}


@cache
def space(name: str = "mdetr", *, prune: bool = True) -> GateSpace:
    return GateSpace(TABLES[name], families(TABLES[name], block=4), prune=prune)


def logits_of(gates: GateSpace, seed: int = 0) -> Tensor:
    return torch.randn(gates.logits, generator=torch.Generator().manual_seed(seed)) + gates.offsets(1, 1, 1)


@pytest.mark.parametrize("keep", [0.9, 0.65, 0.5, 0.3])
@pytest.mark.parametrize("name", TABLES)
def test_what_is_stored_is_what_was_asked_for(name: str, keep: float) -> None:
    gates = space(name)
    found = harden(gates, logits_of(gates), keep, "model", {"seed": 0})
    total = gates.table.parameters
    assert abs(found.stored / total - keep) <= NEAR[name]
    assert found.plan.expect is not None
    assert found.planned == found.plan.expect.parameters
    assert abs(found.stored - found.planned) <= 0.01 * total
    lowered = lower(gates.table, resolve(parse_plan(dump_plan(found.plan)), gates.table))
    assert (lowered.planned, lowered.stored) == (found.planned, found.stored)
    assert (found.plan.model.name, found.plan.provenance) == ("model", {"seed": 0})
    again = as_plan(gates, found.hard, "model", {"seed": 0})
    assert again.plan == found.plan


def test_the_same_logits_give_the_same_plan() -> None:
    one, two = (harden(space(), logits_of(space()), 0.6, "m", {}) for _ in range(2))
    assert dump_plan(one.plan) == dump_plan(two.plan)


def test_units_that_want_to_stay_stay() -> None:
    """One offset for all: of one axis, the units with the highest logits are kept."""
    gates = GateSpace(TABLES["mdetr"], [])
    logits = logits_of(gates)
    found = harden(gates, logits, 0.5, "m", {})
    partial = 0
    for spec in gates.axes.values():
        mask, mine = found.hard.keep[spec.key], logits[spec.keep].numpy()
        if spec.key[1] == "hidden" and 0 < mask.mean() < 1:
            partial += 1
            assert mine[mask].min() >= mine[~mask].max()
    assert partial


@pytest.mark.parametrize("name", TABLES)
def test_by_sharing_alone(name: str) -> None:
    gates = space(name, prune=False)
    least = as_plan(gates, gates.all_shared(), "m", {}).stored / gates.table.parameters
    keep = 0.5 * (1 + least)
    found = harden(gates, logits_of(gates), keep, "m", {})
    assert abs(found.stored / gates.table.parameters - keep) <= TOLERANCE / 2
    assert all(mask.all() for mask in found.hard.keep.values())
    with pytest.raises(InarchError, match=f"keeps {least:.4f} of the model"):
        harden(gates, logits_of(gates), least - 0.05, "m", {})


def test_what_cannot_be_reached_is_refused_with_what_can() -> None:
    gates = space()
    nothing = {key: np.zeros(spec.heads * spec.per_head, np.bool_) for key, spec in gates.axes.items()}
    least = as_plan(gates, Hard(nothing, nothing), "m", {}).stored / gates.table.parameters
    assert least < 0.2
    with pytest.raises(InarchError, match=f"the nearest structure to .* keeps {least:.4f} of the model"):
        harden(gates, logits_of(gates), least - TOLERANCE - 0.01, "m", {})
    with pytest.raises(InarchError, match=r"the nearest structure to 1\.1"):
        harden(gates, logits_of(gates), 1.1, "m", {})


@pytest.mark.parametrize("filled", [True, False])
def test_what_is_out_of_reach_is_known_beforehand(filled: bool) -> None:
    gates = space()
    nothing = {key: np.zeros(spec.heads * spec.per_head, np.bool_) for key, spec in gates.axes.items()}
    least = as_plan(gates, Hard(nothing, nothing), "m", {}).stored / gates.table.parameters
    refuse_unreachable(gates, least, "m", filled=filled)
    with pytest.raises(InarchError, match=f"out of reach: the smallest structure keeps {least:.4f} of the model"):
        refuse_unreachable(gates, least - TOLERANCE - 0.001, "m", filled=filled)


def test_sharing_alone_has_its_own_reach() -> None:
    gates = space(prune=False)
    with pytest.raises(InarchError, match="out of reach") as caught:
        refuse_unreachable(gates, 0.05, "m", filled=False)
    smallest = float(str(caught.value).split(" keeps ")[1].split()[0])
    found = harden(gates, gates.offsets(3, 1, 3), smallest, "m", {})
    assert found.stored / gates.table.parameters == pytest.approx(smallest, abs=1e-3), "as much as sharing can do"


def test_logits_that_are_all_equal_reach_the_budget_too() -> None:
    gates = space()
    found = harden(gates, gates.offsets(3, 1, 3), 0.6, "m", {})
    assert abs(found.stored / gates.table.parameters - 0.6) <= NEAR["mdetr"]


def test_heads_that_were_to_go_stay_where_there_is_room() -> None:
    gates = GateSpace(TABLES["mdetr"], [])
    logits = gates.offsets(3, 1, 6)
    heads = [group.logits for group in gates.groups if group.logits is not None]
    logits[heads[0]] = -1.0
    units = logits.numpy() + 40 * budget_lever(gates)
    as_learned = as_plan(gates, gates.project(units)[0], "m", {}).stored / gates.table.parameters
    assert 1 - TOLERANCE < as_learned < 0.99, "all units, and near enough not to be refused"
    assert harden(gates, logits, 1.0, "m", {}).stored == gates.table.parameters


def test_sharing_is_given_back_where_too_much_is_open() -> None:
    """Everything is shared that may be: no unit that is kept longer brings the budget back."""
    gates = space()
    everything = as_plan(gates, gates.all_shared(), "m", {}).stored / gates.table.parameters
    assert everything < 0.7
    logits = logits_of(gates) + 5
    for spec in gates.axes.values():
        if spec.share is not None:
            logits[spec.share] += 5
    found = harden(gates, logits, 0.8, "m", {})
    assert abs(found.stored / gates.table.parameters - 0.8) <= NEAR["mdetr"]
    assert any(mask.any() for mask in found.hard.share.values())
    whole = harden(gates, logits, 1.0, "m", {})
    assert whole.stored == gates.table.parameters


def test_what_is_done_to_a_structure_counts() -> None:
    """The budget holds for what is made of the structure in the end."""
    gates = space()
    seen: list[int] = []

    def finish(hard: Hard) -> Hard:
        share = {key: mask & False for key, mask in hard.share.items()}
        seen.append(1)
        return Hard(hard.keep, share)

    found = harden(gates, logits_of(gates), 0.6, "m", {}, finish)
    assert seen
    assert not any(mask.any() for mask in found.hard.share.values())
    assert abs(found.stored / gates.table.parameters - 0.6) <= NEAR["mdetr"]
