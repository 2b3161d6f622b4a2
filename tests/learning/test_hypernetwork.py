"""The hypernetwork: which logits it makes, where it starts, and that a seed says everything."""

from __future__ import annotations

from functools import cache
from typing import get_args

import pytest
import torch

from inarch.learning.families import families, modality
from inarch.learning.gates import GateSpace
from inarch.learning.hypernetwork import Hypernetwork, Kind

from tests.learning.tables import ffn, mdetr_like, table_of

KINDS: tuple[Kind, ...] = get_args(Kind)


@cache
def space(*, sharing: bool = True) -> GateSpace:
    table = mdetr_like()
    return GateSpace(table, families(table) if sharing else [])


def network(kind: Kind = "joint", seed: int = 0, gates: GateSpace | None = None) -> Hypernetwork:
    made = gates or space()
    return Hypernetwork(made, made.offsets(3, 1, 2), kind=kind, width=8, seed=seed)


@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_near_the_offsets(kind: Kind) -> None:
    offsets = space().offsets(3, 1, 2)
    logits = network(kind)()
    assert logits.shape == offsets.shape
    assert float((logits - offsets).detach().abs().max()) < 0.5
    if kind == "free":
        assert torch.equal(logits, offsets)
    made = space().gates(logits.detach())
    assert int(space().count(made)) == space().table.parameters, "dense and private"


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_says_everything_and_torch_keeps_its_own(kind: Kind) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    one = network(kind, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(321)
    two, other = network(kind, seed=5), network(kind, seed=6)
    assert torch.equal(one(), two())
    assert one.state_dict().keys() == two.state_dict().keys()
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())
    if kind != "free":
        assert not torch.equal(one(), other())


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_from_its_state(kind: Kind) -> None:
    one, other = network(kind, seed=5), network(kind, seed=6)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(), other())


@pytest.mark.parametrize("kind", KINDS)
def test_every_logit_is_made_once_and_learns(kind: Kind) -> None:
    made = network(kind)
    weights = torch.randn(space().logits, generator=torch.Generator().manual_seed(0))
    torch.autograd.backward((made() * weights).sum())
    parameters = dict(made.named_parameters())
    assert parameters
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in parameters.values())
    if kind == "free":
        assert torch.equal(made.free.grad, weights)  # type: ignore[arg-type]
        return
    index = torch.cat(made.places)
    assert torch.equal(index.sort().values, torch.arange(space().logits))
    for part in made.parts:
        heads = part.get_parameter("heads").grad
        assert heads is not None
        assert bool((heads.abs().sum(1) > 0).all())


def test_one_network_makes_everything() -> None:
    made = network("joint")
    assert len(made.parts) == 1
    assert tuple(made.parts[0].get_buffer("inputs").shape) == (len(space().sites), 8)


def test_one_network_a_modality() -> None:
    made = network("per-modality")
    assert len(made.parts) == 3
    for which, index in zip(("text", "vision", "both"), made.places, strict=True):
        mine = {int(i) for i in index}
        for spec in space().axes.values():
            own = set(range(spec.keep.start, spec.keep.stop))
            own |= set() if spec.share is None else set(range(spec.share.start, spec.share.stop))
            assert own <= mine if modality(spec.key[0]) == which else not own & mine
        for group in space().groups:
            if group.logits is not None:
                own = set(range(group.logits.start, group.logits.stop))
                assert own <= mine if modality(group.sites[0]) == which else not own & mine


def test_one_network_to_prune_and_one_to_share() -> None:
    made = network("separate")
    assert len(made.parts) == 2
    shares = {i for spec in space().axes.values() if spec.share for i in range(spec.share.start, spec.share.stop)}
    assert set(made.places[1].tolist()) == shares
    assert not set(made.places[0].tolist()) & shares


def test_with_nothing_to_share_there_is_nothing_to_separate() -> None:
    assert len(network("separate", gates=space(sharing=False)).parts) == 1


def test_a_modality_that_is_not_there_has_no_network() -> None:
    table = table_of([ffn(f"text.layer.{n}.ffn", 8, 64) for n in range(2)])
    made = network("per-modality", gates=GateSpace(table, families(table)))
    assert len(made.parts) == 1


def test_layers_are_seen_together() -> None:
    """A recurrent network: what one site's gates learn moves another's."""
    made = network("joint")
    spec = space().axes[space().sites[1].name, "hidden"]
    other = space().axes[space().sites[-1].name, "hidden"]
    before = made().detach()
    optimiser = torch.optim.SGD([p for name, p in made.named_parameters() if "heads" not in name], lr=1.0)
    torch.autograd.backward(made()[spec.keep].sum())
    optimiser.step()
    assert not torch.equal(made().detach()[other.keep], before[other.keep])
