"""Learning a structure for a module that is nobody's preset, on batches of one's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from inarch.frontends.fx import from_torch
from inarch.learning.config import Optimisation, StructureSettings
from inarch.learning.families import Family, usable
from inarch.learning.gates import GateSpace
from inarch.learning.matching import match
from inarch.learning.phases import LearnPhase
from inarch.learning.structured import Structured
from inarch.learning.tasks.courses import Arrays, Part
from inarch.learning.trainer import accelerator
from inarch.learning.unit_rows import UnitRows
from inarch.structure.discover import discover
from inarch.structure.errors import LoweringError
from inarch.structure.sites import SiteTable


class Ffn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))  # type: ignore[no-any-return]


class Tower(nn.Module):
    """Four FFNs, one of which stands under two names; the last two have one bias."""

    def __init__(self) -> None:
        super().__init__()
        self.best = self.layers = nn.ModuleList(Ffn() for _ in range(4))
        self.layers[3].up.bias = self.layers[2].up.bias  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Regression(nn.Module):
    """The tower with its loss; what it is to find is a fixed function of its input."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"squares": (self.model(batch["x"].to(next(self.parameters()))).float() - batch["y"]).square().mean()}


class Numbers:
    """Batches that have neither images nor texts."""

    name = "numbers"

    def batch(self, seed: int, step: int, part: Part = "weights") -> Arrays:
        x = np.random.default_rng([seed, step, part == "weights"]).standard_normal((8, 16), np.float32)
        return {"x": x, "y": np.sin(x)}


def tower(dtype: torch.dtype = torch.float32) -> tuple[Tower, SiteTable]:
    torch.manual_seed(0)
    model = Tower()
    table = discover(from_torch(model, (torch.randn(2, 16),))).table
    return model.to(dtype), table


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_module_of_ones_own_is_learned_and_structured(dtype: torch.dtype) -> None:
    model, table = tower(dtype)
    names = [site.name for site in table.sites]
    assert len(names) == 4
    assert [site.name for site in usable(table)] == names[:2], "two FFNs with one bias cannot go apart in a module"
    space = GateSpace(table, [Family(names[0], (names[1],))])
    assert {site for site, _ in space.axes} == set(names[:2])
    units = UnitRows(table, model)
    x = torch.randn(4, 16).to(dtype)
    before = model(x)
    match(space.families, units, dict(model.named_parameters(remove_duplicate=False)))
    torch.testing.assert_close(model(x), before, rtol=0, atol=0.1 if dtype == torch.bfloat16 else 1e-5)

    settings = Optimisation(steps=20, warmup=1, rate=1e-3)
    structure = StructureSettings(keep=0.8, fill="none", share_offset=0.0, prior=4.0)
    phase = LearnPhase(Regression(model), Numbers(), settings, structure, space, accelerator("no", "cpu"), 0, "tower")  # type: ignore[arg-type]
    for number in range(settings.steps):
        phase.step(number)
    hardened = phase.harden()
    assert abs(hardened.stored / table.parameters - 0.8) <= 0.03

    structured = Structured(model, table, hardened.plan)
    dense = structured.dense()
    assert all(torch.equal(dense[name], parameter) for name, parameter in model.named_parameters())
    assert sum(parameter.numel() for parameter in structured.parameters()) == hardened.stored
    assert torch.equal(structured(x), model(x))


def test_matching_leaves_heads_where_a_computed_bias_runs_over_them() -> None:
    """A T5's layers read one table of biases over heads, which the graph gathers: it is no member of any of them."""
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(vocab_size=40, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    torch.manual_seed(0)
    model, ids = transformers.T5EncoderModel(config).eval(), torch.arange(12).reshape(2, 6)
    table = discover(from_torch(model, (ids,))).table
    first, second = (site for site in table.sites if site.kind == "msa")
    assert first.ordered == second.ordered == {"head"}
    units, parameters = UnitRows(table, model), dict(model.named_parameters(remove_duplicate=False))
    before = model(ids).last_hidden_state
    old = units.read((second.name, "qk"), parameters).detach().clone()
    match([Family(first.name, (second.name,))], units, parameters)
    assert not torch.equal(units.read((second.name, "qk"), parameters), old), "inside heads units change places"
    torch.testing.assert_close(model(ids).last_hidden_state, before, rtol=0, atol=1e-5)
    heads = np.arange(32).reshape(4, 8)[::-1].reshape(-1)
    with pytest.raises(LoweringError, match="what is computed for each head would not follow"):
        units.permute((second.name, "qk"), heads, parameters)
