"""What other layers' units could do in a unit's place."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from inarch.learning.substitutes import INPUTS, Layer, layers_of, left, left_of, real_rows
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
            expected = 1 - (own - read).var(0).sum() / own.var(0).sum()
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
    loud = replace(first, down=first.down * torch.tensor([[1.0], [100.0], *[[1.0]] * 4]))
    other = layer(1, vectors=(first.up, torch.cat([torch.zeros(1, 5), loud.down[1:2], torch.zeros(4, 5)])))
    found = left({"loud": loud, "other": other}, "loud")
    assert found.free > 0.99
    assert found.median == 0
    assert found.live == 6
    assert found.part == 1
    loudest = left({"loud": loud, "other": other}, "loud", units=1)
    assert loudest.free == loudest.median == pytest.approx(1, abs=1e-5)
    assert 0.99 < loudest.part < 1


def test_units_that_are_silent_are_left_out() -> None:
    first, other = layer(0), layer(1)
    dead = torch.tensor([True, True, True, True, False, False])
    half = replace(first, hidden=first.hidden.masked_fill(dead, 0), bias=first.bias.masked_fill(dead, -100))
    found = left({"half": half, "other": replace(other, up=first.up, down=first.down)}, "half")
    assert found.live == 2
    assert found.free == pytest.approx(1, abs=1e-5)
    assert found.median == pytest.approx(1, abs=1e-5)
    silent = replace(first, hidden=torch.zeros_like(first.hidden))
    nothing = left({"silent": silent, "other": other}, "silent")
    assert (nothing.live, nothing.free, nothing.median, nothing.part) == (0, 0, 0, 0)


def test_only_layers_as_wide_are_compared() -> None:
    first, narrow = layer(0), layer(1, width=3)
    with pytest.raises(InarchError, match="no other FFN is as wide"):
        left({"first": first, "narrow": narrow}, "first")
    assert set(left({"first": first, "narrow": narrow, "more": layer(2, units=9)}, "first").one) == {"more"}


def test_layers_are_found_with_what_they_were_given_and_no_padding(shop: Workshop) -> None:
    course = shop.world.course("grounding")
    trainee = shop.trainee(course).eval()
    batch = tensors(course.batch(0, 0), torch.device("cpu"))
    batch["attention_mask"][:, -3:] = 0
    layers = layers_of(shop.table, trainee, [(batch, real_rows(batch))])
    assert set(layers) == {site.name for site in shop.table.sites if site.kind == "ffn"}
    texts, cells, images = int(batch["attention_mask"].sum()), batch["cells"].shape[1], len(batch["pixel_values"])
    rows = {
        "text_encoder": texts,
        "transformer.encoder": texts + len(batch["input_ids"]) * cells,
        "backbone": images * (cells + 1),
    }
    parameters = dict(trainee.get_submodule("model").named_parameters())
    for name, found in layers.items():
        downs = [parameters[m.param] for m in shop.table[name].members.values() if m.role == "down"]
        assert torch.equal(downs[0].T, found.down), name
        torch.testing.assert_close(found.activation(found.inputs @ found.up.T + found.bias), found.hidden, rtol=1e-4, atol=1e-5)
        expected = [count for part, count in rows.items() if part in name]
        assert not expected or len(found.inputs) == min(expected[0], INPUTS), name
    assert not any(module._forward_hooks for module in trainee.modules())


def test_what_is_no_plain_layer_is_refused() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Module()

    with pytest.raises(InarchError, match="plain FFNs"):
        layers_of(table_of([ffn("a", 4, 8, gated=True)]), Holder(), [])
