"""Filling: what pruning emptied reads the base, at the price of its biases, and nothing else changes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inarch.learning.families import families
from inarch.learning.fill import fill, permute
from inarch.learning.gates import GateSpace, Hard
from inarch.learning.harden import as_plan
from inarch.learning.models.mdetr import Mdetr
from inarch.learning.unit_rows import UnitRows
from inarch.learning.workshop import Workshop, gate_space

from tests.learning import tiny
from tests.learning.tables import drawn_logits, mdetr_like

TABLE = mdetr_like(96, 4, 384, 4)
SPACE = GateSpace(TABLE, families(TABLE, "joint", 4))
UNSHARED = GateSpace(TABLE, ())
AXES = ("hidden", "qk", "vo")


def pruned(logits: Tensor) -> Hard:
    """A structure of the families' heads in which nothing is shared."""
    shut = logits.numpy().copy()
    for spec in SPACE.axes.values():
        if spec.share is not None:
            shut[spec.share] = -1e4
    hard = SPACE.project(shut)[0]
    assert not any(mask.any() for mask in hard.share.values())
    return hard


@given(drawn_logits(SPACE), st.sampled_from([("hidden",), AXES]))
@settings(max_examples=40, deadline=None)
def test_filling_costs_biases_alone(logits: Tensor, axes: tuple[str, ...]) -> None:
    before = pruned(logits)
    after, orders = fill(SPACE, before, axes)
    biases = 0
    for key, spec in SPACE.axes.items():
        own = after.keep[key] & ~after.share[key]
        assert own.sum() == before.keep[key].sum(), "what a site keeps for itself stays as much"
        assert not (after.share[key] & ~after.keep[key]).any()
        if spec.base is not None:
            assert not (after.share[key] & ~after.keep[spec.base]).any(), "only what the base keeps is read"
        if key not in orders:
            np.testing.assert_array_equal(after.keep[key], before.keep[key])
        else:
            assert key[1] in axes
            assert sorted(orders[key]) == list(range(len(orders[key])))
        biases += int(after.share[key].sum()) * spec.own
    found = as_plan(SPACE, after, "m", {})
    assert found.planned == as_plan(SPACE, before, "m", {}).planned + biases
    assert found.stored - found.planned <= 0.01 * TABLE.parameters


@given(drawn_logits(SPACE))
@settings(max_examples=20, deadline=None)
def test_kept_units_are_carried_along(logits: Tensor) -> None:
    before = pruned(logits)
    after, orders = fill(SPACE, before, AXES)
    for key, order in orders.items():
        own = after.keep[key] & ~after.share[key]
        np.testing.assert_array_equal(before.keep[key][order][own], np.ones(int(own.sum()), np.bool_))


def test_without_families_nothing_is_filled() -> None:
    hard = UNSHARED.project(np.full(UNSHARED.logits, 0.3, np.float32))[0]
    after, orders = fill(UNSHARED, hard, AXES)
    assert not orders
    for key, mask in hard.keep.items():
        np.testing.assert_array_equal(mask, after.keep[key])


def test_permuting_leaves_the_outputs(shop: Workshop) -> None:
    model = shop.build().eval()
    assert isinstance(model, Mdetr)
    space = gate_space(shop)
    logits = np.random.default_rng(3).normal(0.4, 1.0, space.logits).astype(np.float32)
    for spec in space.axes.values():
        if spec.share is not None:
            logits[spec.share] = -1e4
    _, orders = fill(space, space.project(logits)[0], ("hidden",))
    assert orders
    moved = copy.deepcopy(model)
    permute(UnitRows(shop.table, moved), orders, [dict(moved.named_parameters())])
    example = model.example(2, 48, 48, 6)
    with torch.no_grad():
        before, after = model(**example), moved(**example)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-5, atol=1e-6)
    key = next(iter(orders))
    slot = UnitRows(shop.table, moved).slots[key][0]
    assert not torch.equal(dict(model.named_parameters())[slot.param], dict(moved.named_parameters())[slot.param])


@pytest.mark.parametrize("prune", [True, False])
def test_learning_fills_where_it_prunes(shop: Workshop, prune: bool) -> None:
    phase = tiny.learning(
        shop, steps=8, keep=0.7, fill="ffn", core=20.0, prior=0.0, prune=prune, block=2, freeze=0.5, arrive=0.75
    )
    for number in range(8):
        phase.step(number)
    found = phase.harden()
    shared = sum(int(mask.sum()) for mask in found.hard.share.values())
    assert shared > 0
    assert abs(found.stored / found.table.parameters - 0.7) < 0.03
    of_ffn = sum(int(mask.sum()) for key, mask in found.hard.share.items() if key[1] == "hidden")
    assert of_ffn == shared or not prune
