"""What other layers' units could do in a unit's place."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from inarch.learning.substitutes import Layer, layers_of, left, left_of
from inarch.learning.tasks.courses import tensors
from inarch.learning.workshop import Workshop
from inarch.structure.errors import InarchError

from tests.learning.tables import ffn, table_of


def layer(seed: int, units: int = 6, width: int = 5, *, vectors: tuple[Tensor, Tensor] | None = None) -> Layer:
    draw = torch.Generator().manual_seed(seed)
    up, down = vectors or (torch.randn(units, width, generator=draw), torch.randn(units, width, generator=draw))
    bias, inputs = torch.randn(units, generator=draw), torch.randn(300, width, generator=draw)
    return Layer(up, down, bias, inputs, functional.relu(inputs @ up.T + bias), functional.relu)


def test_what_is_left_is_one_less_the_differences_part() -> None:
    first, second = layer(0), layer(1, units=4)
    found = left_of(first, second.up, second.down)
    assert found.shape == (6, 4)
    for unit in range(6):
        own = first.hidden[:, unit, None] * first.down[unit]
        for other in range(4):
            read = functional.relu(first.inputs @ second.up[other] + first.bias[unit])[:, None] * second.down[other]
            expected = 1 - ((own - read) ** 2).sum() / (own**2).sum()
            assert found[unit, other] == pytest.approx(float(expected), rel=1e-4, abs=1e-5)


def test_a_layer_with_the_same_vectors_does_all_and_one_with_none_nothing() -> None:
    first = layer(0)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(3))
    twin = layer(2, vectors=(first.up[order], first.down[order]))
    found = left({"first": first, "twin": twin}, "first")
    assert found.free == pytest.approx(1, abs=1e-5)
    assert found.median == pytest.approx(1, abs=1e-5)
    assert found.one["twin"] == pytest.approx(1, abs=1e-5)
    assert found.chance < 0.9
    silent = layer(4, vectors=(first.up, torch.zeros(6, 5)))
    assert left({"first": first, "silent": silent}, "first").free == 0


def test_units_of_one_other_layer_are_read_once_each() -> None:
    first = layer(0)
    alone = layer(1, vectors=(first.up[:1].repeat(6, 1), first.down[:1].repeat(6, 1)))
    same = Layer(alone.up, alone.down, first.bias[:1].repeat(6), first.inputs, first.hidden[:, :1].repeat(1, 6), functional.relu)
    other = layer(5, vectors=(torch.cat([first.up[:1], torch.zeros(5, 5)]), torch.cat([first.down[:1], torch.zeros(5, 5)])))
    found = left({"same": same, "other": other}, "same")
    assert found.free == pytest.approx(1, abs=1e-5)
    assert found.one == {"other": pytest.approx(1 / 6, abs=1e-5)}


def test_a_unit_that_puts_out_most_counts_most_but_in_the_median() -> None:
    first = layer(0)
    loud = replace(first, down=first.down * torch.tensor([[100.0], *[[1.0]] * 5]))
    other = layer(1, vectors=(first.up, torch.cat([loud.down[:1], torch.zeros(5, 5)])))
    found = left({"loud": loud, "other": other}, "loud")
    assert found.free > 0.99
    assert found.median == 0
    quiet = left({"loud": loud, "other": other}, "loud", units=3, seed=1)
    chosen = torch.randperm(6, generator=torch.Generator().manual_seed(1))[:3]
    assert (quiet.free > 0.99) == bool((chosen == 0).any())


def test_layers_are_found_with_what_they_were_given(shop: Workshop) -> None:
    course = shop.world.course("grounding")
    trainee = shop.trainee(course).eval()
    layers = layers_of(shop.table, trainee, [tensors(course.batch(0, 0), torch.device("cpu"))])
    assert set(layers) == {site.name for site in shop.table.sites if site.kind == "ffn"}
    for found in layers.values():
        torch.testing.assert_close(found.activation(found.inputs @ found.up.T + found.bias), found.hidden, rtol=1e-4, atol=1e-5)
    assert not any(module._forward_hooks for module in trainee.modules())


def test_what_is_no_plain_layer_is_refused() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Module()

    with pytest.raises(InarchError, match="plain FFNs"):
        layers_of(table_of([ffn("a", 4, 8, gated=True)]), Holder(), [])
