"""Modules that people bring: partly frozen, with buffers, with names that torch's containers have, copied and pickled."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from inarch.learning.structured import Structured
from inarch.structure.errors import InarchError
from inarch.structure.plan import Plan
from inarch.structure.resolve import AxisDecision, build_plan
from inarch.structure.sites import SiteTable

from tests.learning.tables import ffn, table_of


class Ffn(nn.Module):
    """What the sites of the tables are: one bias, on the hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))  # type: ignore[no-any-return]


class Normed(nn.Module):
    """FFNs with batch normalisation behind them, a counter that is exchanged at every call, and a parameter of a bad name."""

    calls: Tensor
    scratch: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = Ffn(), Ffn(), nn.BatchNorm1d(4)
        self.values = nn.Parameter(torch.ones(4))
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("scratch", torch.ones(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls = self.calls + 1
        return self.norm(self.second(self.first(x))) * self.values * self.scratch  # type: ignore[no-any-return]


def normed() -> tuple[Normed, SiteTable, Plan]:
    """A module, its sites, and a plan under which the second FFN reads half of the first and prunes a quarter."""
    table = table_of([ffn("first", 4, 8), ffn("second", 4, 8)], 0)
    some = np.arange(4)
    reads = AxisDecision(np.arange(6), [("first", some, some)])
    torch.manual_seed(0)
    return Normed(), table, build_plan(table, {"second": {"hidden": reads}}, "m", {})


def trained(structured: Structured, steps: int, seed: int = 0) -> None:
    """Some steps with weight decay, which moves whatever an optimiser is given."""
    learns = [parameter for parameter in structured.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learns, lr=0.1, weight_decay=0.5)
    generator = torch.Generator().manual_seed(seed)
    structured.train()
    for _ in range(steps):
        optimiser.zero_grad()
        structured(torch.randn(16, 4, generator=generator)).square().mean().backward()
        optimiser.step()


@pytest.mark.parametrize("frozen", ["up.weight", "down.weight"])
def test_the_frozen_half_of_a_row_stays(frozen: str) -> None:
    module, table, plan = normed()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not name.endswith(frozen))
    before = Structured(module, table, plan).dense()
    structured = Structured(module, table, plan)
    trained(structured, 3)
    moved = {name for name, value in structured.dense().items() if not torch.equal(value, before[name])}
    assert moved == {name for name, _ in module.named_parameters() if not name.endswith(frozen)}
    again = Structured(module, table, plan)
    again.load_state_dict(structured.state_dict())
    assert all(torch.equal(value, structured.dense()[name]) for name, value in again.dense().items())


def test_a_vector_learns_where_its_owners_does() -> None:
    module, table, plan = normed()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("second" not in name)
    before = Structured(module, table, plan).dense()
    structured = Structured(module, table, plan)
    trained(structured, 3)
    reader, was = (dense["second.up.weight"] for dense in (structured.dense(), before))
    base = structured.dense()["first.up.weight"]
    assert torch.equal(reader[:4], base[:4])
    assert not torch.equal(reader[:4], was[:4])
    assert torch.equal(reader[4:], was[4:])


def test_buffers_are_the_structured_modules_own() -> None:
    module, table, plan = normed()
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    structured = Structured(module, table, plan)
    trained(structured, 3)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in module.named_buffers())
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))

    resumed = Structured(normed()[0], table, plan)
    resumed.load_state_dict(structured.state_dict())
    assert torch.equal(structured.eval()(x), resumed.eval()(x))
    assert not any("scratch" in name for name in structured.state_dict())

    other = normed()[0]
    structured.write_back(other)
    torch.testing.assert_close(other.eval()(x), structured(x))
    assert dict(other.named_buffers())["calls"] == 3
    assert dict(other.named_buffers())["norm.num_batches_tracked"] == 3


def test_a_module_without_a_buffer_is_not_written_to() -> None:
    module, table, plan = normed()
    other = normed()[0]
    del other.calls
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(InarchError, match=r"calls is \[\] here, and there is none in the module"):
        Structured(module, table, plan).write_back(other)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_names_may_be_any() -> None:
    module = nn.Module()
    names = ["values", "keys", "a|b", "a%7Cb", "training_", "%"]
    for number, name in enumerate(names):
        module.register_parameter(name, nn.Parameter(torch.full((2,), float(number))))
    inner = nn.Module()
    inner.register_parameter("b", nn.Parameter(torch.full((2,), 9.0)))
    module.add_module("a", inner)
    table = table_of([], 0)
    dense = Structured(module, table, build_plan(table, {}, "m", {})).dense()
    assert {name: value[0].item() for name, value in dense.items()} == {
        **{name: float(number) for number, name in enumerate(names)},
        "a.b": 9.0,
    }


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_it_can_be_copied(how: str) -> None:
    module, table, plan = normed()
    structured = Structured(module, table, plan)
    same = copy.deepcopy(structured) if how == "deepcopy" else pickle.loads(pickle.dumps(structured))
    x = torch.randn(5, 4)
    before = structured.eval()(x)
    assert torch.equal(same.eval()(x), before)
    trained(same, 1)
    assert torch.equal(structured.eval()(x), before)
    assert not torch.equal(same.eval()(x), before)


def test_it_can_be_averaged() -> None:
    module, table, plan = normed()
    structured = Structured(module, table, plan)
    averaged = torch.optim.swa_utils.AveragedModel(structured, use_buffers=True)
    trained(structured, 2)
    averaged.update_parameters(structured)
    x = torch.randn(5, 4)
    torch.testing.assert_close(averaged.eval()(x), structured.eval()(x))


def test_it_can_be_moved() -> None:
    module, table, plan = normed()
    structured = Structured(module, table, plan).to("meta")
    assert structured(torch.randn(5, 4, device="meta")).device.type == "meta"
    assert {tensor.device.type for tensor in structured.state_dict().values()} == {"meta"}
    assert {tensor.device.type for tensor in module.state_dict().values()} == {"cpu"}
    half = Structured(module, table, plan).to(torch.bfloat16)
    assert half(torch.randn(5, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
