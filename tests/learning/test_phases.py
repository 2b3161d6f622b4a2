"""Learning a structure: that weights end on the plan, exactly, and at the budget."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from inarch.learning.families import families
from inarch.learning.gates import GateSpace
from inarch.learning.harden import Hardened
from inarch.learning.matching import match
from inarch.learning.models import registry
from inarch.learning.models.examples import run_eager
from inarch.learning.phases import LearnPhase, shares_of
from inarch.learning.tasks.courses import tensors
from inarch.learning.unit_rows import UnitRows
from inarch.learning.workshop import Workshop, gate_space, workshop
from inarch.structure.lowering import lower
from inarch.structure.resolve import resolve

from tests.learning import tiny
from tests.learning.exported import compiled, distance, off_plan
from tests.learning.tables import bare, parameters_of, splits


def model_weights(phase: LearnPhase) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in phase.trainee.get_submodule("model").named_parameters()}


def finish(phase: LearnPhase) -> tuple[Hardened, dict[str, Tensor]]:
    for number in range(phase.settings.steps):
        phase.step(number)
    return phase.harden(), model_weights(phase)


@pytest.mark.parametrize(
    ("settings", "average"),
    [
        ({}, 0.0),
        ({"pull": 0.1, "alignment": 0.5}, 0.5),
        ({"align": False}, 0.0),
        ({"freeze": 1.0, "arrive": 1.0, "keep": 0.6}, 0.0),
        ({"sharing": "none", "keep": 0.5}, 0.0),
        ({"prune": False, "keep": 0.8, "matching": False}, 0.0),
        ({"gather": 0.2, "fill": "all", "keep": 0.5}, 0.9),
        ({"fill": "all", "keep": 0.6, "freeze": 0.01}, 0.0),
    ],
    ids=["aligned", "pulled", "hardened", "frozen last", "pruned", "shared", "filled", "frozen first"],
)
def test_weights_end_on_the_plan(shop: Workshop, settings: dict[str, Any], average: float) -> None:
    phase = tiny.learning(shop, average=average, **settings)
    hardened, weights = finish(phase)
    assert off_plan(shop.model, weights, hardened.plan) == []
    target = phase.structure.keep * shop.table.parameters
    assert abs(hardened.stored - target) <= 0.03 * shop.table.parameters
    lowered = lower(shop.table, resolve(hardened.plan, shop.table))
    assert (lowered.stored, lowered.planned) == (hardened.stored, hardened.planned)
    assert hardened.planned == hardened.stored
    assert bool(torch.cat([value.flatten() for value in weights.values()]).isfinite().all())


def test_without_alignment_weights_are_free_until_the_last_step(shop: Workshop) -> None:
    phase = tiny.learning(shop, align=False)
    for number in range(phase.settings.steps - 1):
        phase.step(number)
    assert off_plan(shop.model, model_weights(phase), phase.harden().plan) != []


def test_weights_move_to_the_structure_on_a_straight_line(shop: Workshop) -> None:
    """With a rate of next to nothing only the alignment moves them: a half, then a third of what is left, then all."""
    phase = tiny.learning(shop, steps=10, freeze=0.4, arrive=0.7, fill="none")
    phase.settings = phase.settings.model_copy(update={"rate": 1e-12, "decay": 0.0})
    phase._weights.settings = phase.settings
    seen = []
    for number in range(10):
        phase.step(number)
        seen.append(model_weights(phase))
    for name, first in seen[3].items():
        last = seen[-1][name]
        for number, part in ((4, 1 / 3), (5, 2 / 3), (6, 1.0), (8, 1.0)):
            torch.testing.assert_close(seen[number][name], torch.lerp(first, last, part), rtol=0, atol=1e-6)
    assert off_plan(shop.model, seen[6], phase.harden().plan) == []


def test_the_structure_is_frozen_once(shop: Workshop) -> None:
    phase = tiny.learning(shop, steps=10, freeze=0.5)
    for number in range(6):
        phase.step(number)
    before, state = phase.harden().plan, {name: value.clone() for name, value in phase.hypernetwork.state_dict().items()}
    for number in range(6, 10):
        assert "kept" not in phase.step(number)
    assert phase.harden().plan == before
    assert tiny.differing(state, phase.hypernetwork.state_dict()) == []


def test_structure_steps_leave_weights_alone(shop: Workshop) -> None:
    phase = tiny.learning(shop)
    phase.step(0)
    before = {name: value.clone() for name, value in phase.trainee.state_dict().items()}
    gradients = {name: p.grad.clone() for name, p in phase.trainee.named_parameters() if p.grad is not None}
    network = {name: value.clone() for name, value in phase.hypernetwork.state_dict().items()}
    values = phase.step(1)
    assert set(values) == {"structure_loss", "structure_gradient", "budget", "kept", "pruned", "shared"}
    assert tiny.differing(before, phase.trainee.state_dict()) == []
    after = {name: p.grad for name, p in phase.trainee.named_parameters() if p.grad is not None}
    assert tiny.differing(gradients, after) == []
    assert tiny.differing(network, phase.hypernetwork.state_dict()) != []
    assert values["kept"] == pytest.approx(float(_count(phase)) / shop.table.parameters, rel=1e-5)


def _count(phase: LearnPhase) -> int:
    hard = phase._raw.last
    return lower(phase.space.table, resolve(_plan(phase.space, hard), phase.space.table)).planned


def _plan(space: GateSpace, hard: Any) -> Any:
    from inarch.learning.harden import as_plan

    return as_plan(space, hard, "small", {}).plan


def test_losses_under_gates_are_those_of_the_structured_weights(shop: Workshop) -> None:
    """With everything kept and private, the plain losses; with gates, those of the weights that the gates leave."""
    phase = tiny.learning(shop, prior=0.0)
    batch = tensors(phase._weights.course.batch(0, 1, "structure"), torch.device("cpu"))
    module = phase._raw
    losses = module(batch, torch.zeros(phase.space.logits))
    plain = phase.trainee(batch)
    assert float(losses.pop("kept")) == pytest.approx(1)
    assert float(losses.pop("budget").detach()) == pytest.approx(2 * abs(np.log(1 / 0.75)), rel=1e-5)
    assert shares_of(phase.space, module.last) == {"pruned": 0, "shared": 0}
    for name, loss in plain.items():
        assert float(losses[name].detach()) == pytest.approx(float(loss.detach()), rel=1e-5), name


@pytest.mark.parametrize("sharing", ["joint", "cross", "layer"])
def test_matching_changes_no_output_and_brings_readers_nearer(shop: Workshop, sharing: Any) -> None:
    changed = shop.config.structure.model_copy(update={"sharing": sharing})
    space = gate_space(Workshop(shop.config.model_copy(update={"structure": changed}), shop.model, shop.world, shop.table))
    model = shop.build()
    with torch.no_grad():
        rng = torch.Generator().manual_seed(3)
        for parameter in model.parameters():  # fresh biases are 0, which would hide one that is left behind
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=rng))
    feeds = {name: tensor.numpy() for name, tensor in model.example(3, 48, 48, 9, seed=1).items()}
    before, units = run_eager(model, feeds), UnitRows(shop.table, model)
    old = {name: value.detach().clone() for name, value in model.named_parameters()}
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    match(space.families, units, parameters)
    assert distance(run_eager(model, feeds), before) < 1e-5
    assert len(space.families) > 0
    moved = 0
    for family in space.families:
        for reader in family.readers:
            keys = [key for key in units.slots if key[0] == reader]
            bases = [(family.base, name) for _, name in keys]
            near, far = (
                sum(
                    float(torch.cosine_similarity(units.read(key, p), units.read(base, p)).sum())
                    for key, base in zip(keys, bases, strict=True)
                )
                for p in (parameters, old)
            )
            assert near > far, reader
            moved += 1
    assert moved >= len(space.families)
    for family in space.families:
        assert tiny.differing(_rows(units, family.base, parameters), _rows(units, family.base, old)) == []


@pytest.mark.parametrize("bound", [True, False])
@pytest.mark.parametrize(("text", "vision"), [(2, 8), (8, 2), (4, 6)])
def test_matching_finds_the_base_again_whatever_the_heads(text: int, vision: int, bound: bool) -> None:
    """A reader that is its base with units inside its own heads moved about, and heads if they may, comes back in its order."""
    table = splits(96, text, vision, layers=1, table=9 if bound else 0)
    module = bare(table)
    units, parameters = UnitRows(table, module), parameters_of(module)
    (family,) = families(table, "cross", 1)
    rng = np.random.default_rng(0)
    pairs = [((family.base, name), (family.readers[0], name)) for name in ("qk", "vo")]
    heads = np.arange(vision) if bound else rng.permutation(vision)
    for base, reader in pairs:
        order = np.arange(96).reshape(vision, -1)[heads]
        units.store(reader, units.read(base, parameters)[torch.from_numpy(rng.permuted(order, axis=1).reshape(-1))], parameters)
        assert not torch.equal(units.read(reader, parameters), units.read(base, parameters))
    match([family], units, parameters)
    for base, reader in pairs:
        assert torch.equal(units.read(reader, parameters), units.read(base, parameters))


def test_backbones_whose_heads_differ_share_and_compile(small_presets: None) -> None:
    vision = tiny.MDETR.vision.model_copy(update={"heads": 4})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.PRESETS, "small-splits", tiny.MDETR.model_copy(update={"vision": vision}))
        shop = workshop(tiny.config(model="small-splits"))
    phase = tiny.learning(shop, keep=0.8, fill="none", prune=False, sharing="cross")
    hardened, weights = finish(phase)
    shares = [(name, share.base) for name, site in hardened.plan.sites.items() for a in site.axes.values() for share in a.share]
    assert any(name.endswith(".attn") and base.endswith(".attention") for name, base in shares)
    model = shop.build(weights)
    feeds = {name: tensor.numpy() for name, tensor in model.example(3, 48, 48, 9, seed=1).items()}
    assert distance(compiled(shop.model, weights, hardened.plan).run(feeds), run_eager(model, feeds)) < 1e-5


def _rows(units: UnitRows, site: str, parameters: dict[str, Any]) -> dict[str, Tensor]:
    return {key[1]: units.read(key, parameters).detach() for key in units.slots if key[0] == site}


def test_a_learned_model_compiles_to_what_it_was_trained_as(shop: Workshop) -> None:
    hardened, weights = finish(tiny.learning(shop, keep=0.6))
    assert any(axis.share for site in hardened.plan.sites.values() for axis in site.axes.values()) or hardened.stored
    model = shop.build(weights)
    feeds = {name: tensor.numpy() for name, tensor in model.example(3, 48, 48, 9, seed=1).items()}
    assert distance(compiled(shop.model, weights, hardened.plan).run(feeds), run_eager(model, feeds)) < 1e-5
