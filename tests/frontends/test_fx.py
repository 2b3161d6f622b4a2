"""torch models as graphs: names, ties and snapshots, and one plan for every way in."""

from __future__ import annotations

import itertools
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

import inarch
from inarch.api import Example
from inarch.compiler.writer import write_model
from inarch.frontends.fx import from_torch
from inarch.structure.errors import ModelError
from inarch.structure.plan import Plan

from tests.exporters.cases import CASES
from tests.exporters.check import compiled_and_wrong, feeds_of, wrong_sites
from tests.exporters.export import How, build
from tests.exporters.pairs import exported, found
from tests.exporters.plans import COST, handwritten

NAMES = ("detr", "bert-sdpa", "albert-sdpa", "chunked", "windows")
ROUTES = ("module", "program", "graph module", "file")


def example(name: str) -> dict[str, Tensor]:
    case = CASES[name]
    arrays = case.inputs(np.random.default_rng(0), *case.shapes[0])
    return {own: torch.from_numpy(array) for own, array in zip(case.dynamic, arrays.values(), strict=True)}


def dynamic(name: str) -> dict[str, dict[int, Any]]:
    return {own: dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for own, axes in CASES[name].dynamic.items()}


@cache
def program(name: str) -> torch.export.ExportedProgram:
    return torch.export.export(build(CASES[name]), (), example(name), dynamic_shapes=dynamic(name), strict=False)


@cache
def graph(name: str) -> ir.Model:
    return from_torch(program(name), input_names=inputs_of(name), output_names=CASES[name].outputs)


def inputs_of(name: str) -> list[str]:
    case = CASES[name]
    return list(case.inputs(np.random.default_rng(0), *case.shapes[0]))


def way_in(route: str, name: str, folder: Path) -> object:
    options: dict[str, Any] = {"input_names": inputs_of(name), "output_names": CASES[name].outputs}
    if route == "module":
        return Example(build(CASES[name]), (), example(name), dynamic(name), options)
    if route == "graph module":
        return Example(program(name).module(), (), example(name), dynamic(name), options)
    if route == "program":
        return graph(name)
    return write_model(graph(name), folder / "export.onnx").path


def plan_for(name: str) -> Plan:
    return handwritten(inarch.discover(graph(name)).table)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_keeps_its_name_and_its_ties(name: str) -> None:
    module = build(CASES[name])
    wanted = dict(module.named_parameters())
    initializers = graph(name).graph.initializers
    kept = {key for key in initializers if not key.startswith("constant_") and key in wanted}
    used = {key for key in wanted if "pooler" not in key}
    assert kept == used
    for key in kept:
        tensor = initializers[key].const_value
        assert tensor is not None
        np.testing.assert_array_equal(tensor.numpy(), wanted[key].detach().numpy())


@pytest.mark.parametrize("name", NAMES)
def test_sites_are_those_of_the_architecture(name: str) -> None:
    assert not wrong_sites(CASES[name], inarch.discover(graph(name)).table)


@pytest.mark.parametrize("name", NAMES)
def test_the_compiled_model_equals_the_reference(name: str) -> None:
    model = graph(name)
    result, wrong = compiled_and_wrong(model, inarch.discover(model), plan_for(name), feeds_of(CASES[name], model))
    assert not wrong
    assert result.lowered.stored < result.lowered.parameters


@pytest.mark.parametrize("name", NAMES)
def test_every_way_in_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    plan = plan_for(name)
    written: dict[str, dict[str, bytes]] = {}
    for route in ROUTES:
        folder = tmp_path / route.replace(" ", "_")
        folder.mkdir()
        source: Any = way_in(route, name, tmp_path)
        inarch.compile(source, plan, folder / "c.onnx", cost=COST)
        written[route] = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    for one, other in itertools.pairwise(ROUTES):
        assert written[one].keys() == written[other].keys(), (one, other)
        assert written[one] == written[other], (one, other)


@pytest.mark.parametrize("how", [How(dynamo=True, opset=20), How(dynamo=False, opset=17)], ids=str)
def test_the_plan_serves_files_of_other_exporters(how: How) -> None:
    plan = plan_for("detr")
    model = exported("detr", how)
    assert found("detr", how).table.fingerprint == plan.model.fingerprint
    _, wrong = compiled_and_wrong(model, found("detr", how), plan, feeds_of(CASES["detr"], model))
    assert not wrong


class Ffn(nn.Module):
    """A residual FFN behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.up = nn.Linear(32, 128)
        self.down = nn.Linear(128, 32)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(torch.relu(self.up(self.norm(x))))
        return out


@pytest.fixture
def ffn() -> Ffn:
    torch.manual_seed(0)
    return Ffn().eval()


def test_weights_are_a_snapshot(ffn: Ffn) -> None:
    model = from_torch(ffn, (torch.randn(2, 32),))
    tensor = model.graph.initializers["up.weight"].const_value
    assert tensor is not None
    before = tensor.numpy().copy()
    with torch.no_grad():
        ffn.up.weight.zero_()
    np.testing.assert_array_equal(tensor.numpy(), before)
    assert np.abs(before).max() > 0


def test_the_module_is_not_changed(ffn: Ffn) -> None:
    before = {name: tensor.clone() for name, tensor in ffn.state_dict().items()}
    plan = inarch.make_plan(Example(ffn, (torch.randn(2, 32),)), keep=0.7, method="magnitude")
    inarch.compile(Example(ffn, (torch.randn(2, 32),)), plan)
    assert before.keys() == ffn.state_dict().keys()
    assert all(torch.equal(tensor, ffn.state_dict()[name]) for name, tensor in before.items())
    assert not ffn.training


def test_sizes_bear_the_names_that_were_asked_for(ffn: Ffn) -> None:
    model = from_torch(
        ffn,
        (torch.randn(2, 5, 32),),
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},),
        axis_names={"x": {0: "batch"}},
        output_names=["y"],
    )
    assert [str(value.shape) for value in (*model.graph.inputs, *model.graph.outputs)] == ["[batch,d1,32]", "[batch,d1,32]"]


def test_nothing_tells_where_it_was_exported(ffn: Ffn) -> None:
    text = ir.to_proto(from_torch(ffn, (torch.randn(2, 32),))).SerializeToString()
    assert b"pkg.torch" not in text
    assert str(Path(__file__).parent).encode() not in text


def onnx_program(module: nn.Module, x: Tensor) -> Any:
    """What torch's own exporter returns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.onnx.export(module, (x,), dynamo=True, optimize=False, verbose=False)


def test_every_kind_of_model_in_memory_is_taken(ffn: Ffn, tmp_path: Path) -> None:
    x = torch.randn(2, 32)
    program = onnx_program(ffn, x)
    model = program.model
    proto: onnx.ModelProto = program.model_proto
    before = proto.SerializeToString()
    sources: list[Any] = [model, proto, program, torch.export.export(ffn, (x,)), Example(ffn, (x,))]
    prints = {inarch.discover(source).table.fingerprint for source in sources}
    assert len(prints) == 1
    assert len(inarch.discover(sources[0]).table.sites) == 1
    plan = inarch.make_plan(proto, keep=0.6, method="magnitude")
    inarch.compile(proto, plan, tmp_path / "c.onnx")
    assert proto.SerializeToString() == before
    assert inarch.verify(proto, plan, tmp_path / "c.onnx").ok


def test_what_holds_no_model_is_refused() -> None:
    with pytest.raises(inarch.InarchError, match="Linear holds no model"):
        inarch.discover(cast(Any, nn.Linear(2, 2)))


def test_a_module_without_inputs_is_refused(ffn: Ffn) -> None:
    with pytest.raises(ModelError, match="exported by running it"):
        from_torch(ffn)


class Branching(nn.Module):
    """Control flow that depends on data."""

    def forward(self, x: Tensor) -> Tensor:
        sys.stderr.write("a branch\n")
        return x if x.sum() > 0 else -x


def test_what_torch_cannot_export_is_one_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match="torch cannot export it") as caught:
        from_torch(Branching(), (torch.randn(3),))
    assert caught.value.hint is not None
    with pytest.raises(ModelError, match="torch cannot export it"):
        from_torch(nn.Linear(2, 2, device="meta"), (torch.randn(3, 2, device="meta"),))
    assert capsys.readouterr() == ("", "")


class Speaking(nn.Linear):
    """It says something whenever it is run."""

    def forward(self, x: Tensor) -> Tensor:
        sys.stderr.write("a line\n")
        return super().forward(x)


def test_what_a_module_says_is_heard(capsys: pytest.CaptureFixture[str]) -> None:
    from_torch(Speaking(2, 2), (torch.randn(3, 2),))
    assert "a line" in capsys.readouterr().err


def test_a_model_in_memory_is_checked_like_a_file(ffn: Ffn) -> None:
    program = onnx_program(ffn, torch.randn(2, 32))
    proto = program.model_proto
    proto.graph.node[0].input[0] = "nowhere"
    with pytest.raises(ModelError, match="nowhere"):
        inarch.discover(proto)
    proto = program.model_proto
    proto.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    proto.graph.initializer[0].external_data.add(key="location", value="weights.bin")
    with pytest.raises(ModelError, match="has no folder"):
        inarch.discover(proto)


class Decoder(nn.Module):
    """Self-attention of queries whose values start from zeros, as in DETR's first decoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(5, 32))
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        start = torch.zeros(x.shape[0], 5, 32)
        asked = start + self.queries
        q, k, v = (part.reshape(-1, 5, 4, 8).transpose(1, 2) for part in (self.q(asked), self.k(asked), self.v(start)))
        mixed = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v
        out: Tensor = start + self.o(mixed.transpose(1, 2).reshape(-1, 5, 32)) + x
        return out


def test_values_of_a_constant_batch_are_values() -> None:
    torch.manual_seed(0)
    model = from_torch(Decoder().eval(), (torch.randn(2, 5, 32),))
    (site,) = inarch.discover(model).table.sites
    assert dict(site.sizes) == {"head": 4, "qk": 8, "vo": 8}
    plan = inarch.make_plan(model, keep=0.7, method="magnitude", minimum=0.1)
    assert inarch.verify(model, plan, inarch.compile(model, plan, cost=COST).model).ok


class Cross(nn.Module):
    """Attention to keys and values that are as wide as they please."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.MultiheadAttention(64, 4, kdim=32, vdim=48, batch_first=True) for _ in range(2))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x, keys, values, need_weights=False)[0]
        return x


def test_queries_keys_and_values_of_different_widths() -> None:
    torch.manual_seed(0)
    any_size = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    inputs = torch.randn(2, 5, 64), torch.randn(2, 7, 32), torch.randn(2, 7, 48)
    model = from_torch(Cross().eval(), inputs, dynamic_shapes=(any_size, any_size, any_size))
    sites = inarch.discover(model).table.sites
    assert [{role: member.width for role, member in site.members.items() if member.is_matrix} for site in sites] == [
        {"q": 64, "k": 32, "v": 48, "o": 64}
    ] * 2
    plan = inarch.make_plan(model, keep=0.75, method="similarity", share_fraction=1.0)
    compiled = inarch.compile(model, plan)
    assert compiled.lowered.segments
    assert inarch.verify(model, plan, compiled.model).ok
