"""Where the search for a structure starts from: what units are worth."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from inarch.learning.gates import GateSpace
from inarch.learning.importance import FAR, importance, standing
from inarch.learning.tasks.courses import tensors
from inarch.learning.trainer import accelerator
from inarch.learning.unit_rows import Key, UnitRows
from inarch.learning.workshop import Workshop, gate_space, replaced

from tests.learning import tiny
from tests.learning.tables import ffn, table_of


def derivatives(shop: Workshop, trainee: Any, units: UnitRows, space: GateSpace, batch: dict[str, Tensor]) -> dict[Key, Tensor]:
    """By a second way: a factor on what each unit puts out, and the loss's derivative by it."""
    parameters = {name: value.detach() for name, value in trainee.get_submodule("model").named_parameters()}
    factors = {key: torch.ones(spec.heads * spec.per_head, requires_grad=True) for key, spec in space.axes.items()}
    rows = {}
    for key, factor in factors.items():
        own, out = units.read(key, parameters), units.slots[key][0].columns
        rows[key] = torch.cat((own[:, :out] * factor[:, None], own[:, out:]), 1)
    written = units.write(rows, {}, parameters)
    losses = functional_call(trainee, {f"model.{name}": value for name, value in written.items()}, (batch,))
    slopes = torch.autograd.grad(torch.stack(list(losses.values())).sum(), list(factors.values()))
    found = dict(zip(factors, slopes, strict=True))
    for base, readers in space.readers.items() if space.tied else ():  # one factor for all of a family
        family = (base, *(spec.key for spec in readers))
        found |= dict.fromkeys(family, torch.stack([found[key] for key in family]).sum(0))
    return found


@pytest.mark.parametrize("changes", [{}, {"tied": True, "sharing": "layer", "block": 2}])
def test_importance_is_the_losses_derivative_by_what_units_put_out(shop: Workshop, changes: dict[str, Any]) -> None:
    shop = replaced(shop, structure=shop.config.structure.model_copy(update=changes))
    course = shop.world.course("grounding")
    trainee = shop.trainee(course)
    model = trainee.get_submodule("model")
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    units, space, place = UnitRows(shop.table, model), gate_space(shop), accelerator("no", "cpu")
    batches = [tensors(course.batch(0, number), torch.device("cpu")) for number in range(2)]
    found = importance(space, units, trainee, batches, place)
    first, second = (derivatives(shop, trainee, units, space, batch) for batch in batches)
    for key, value in found.items():
        expected = ((first[key] ** 2 + second[key] ** 2) / 2).sqrt()
        torch.testing.assert_close(value, expected, rtol=2e-3, atol=1e-5)
    assert sum(bool((value > 0).any()) for value in found.values()) > len(found) // 2
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


def test_units_stand_by_importance_for_their_cost() -> None:
    space = GateSpace(table_of([ffn("a", 8, 4), ffn("b", 8, 8)]), [])
    first, second = space.axes
    each = {first: torch.tensor([1.0, 2.0, 4.0, 0.0]), second: torch.full((8,), 2.0)}
    found = standing(space, each)
    assert found[first].tolist() == sorted(found[first].tolist()[:3]) + [-FAR]
    assert all(bool((value.abs() <= FAR).all()) for value in found.values())
    assert float(found[second][0]) == pytest.approx(0.0, abs=1e-6), "most units are like these"


def test_the_search_starts_with_the_order_of_importance(shop: Workshop) -> None:
    phase, plain = tiny.learning(shop, prior=2.0), tiny.learning(shop, prior=0.0)
    apart = phase.hypernetwork.offsets - plain.hypernetwork.offsets
    assert float(apart.std()) > 0.1
    for spec in phase.space.axes.values():
        assert float(apart[spec.keep].abs().max()) <= 2.0 * FAR
        if spec.share is not None:
            assert not bool(apart[spec.share].any())
