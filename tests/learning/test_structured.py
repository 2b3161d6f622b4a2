"""A plan on a module: fewer parameters, the reference's outputs, the gradients of what is shared, and the way back."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from inarch.compiler.compile import compile_model
from inarch.compiler.reference import apply_by_values
from inarch.compiler.values import parameter_tensors
from inarch.frontends.canonicalize import canonicalize, discover_canonical
from inarch.learning.families import families
from inarch.learning.gates import GateSpace
from inarch.learning.models.mdetr import Mdetr
from inarch.learning.models.registry import build
from inarch.learning.structured import Structured
from inarch.structure.discover import Discovery, discover
from inarch.structure.errors import BindingError, LoweringError, PlanError
from inarch.structure.lowering import planned_parameters
from inarch.structure.plan import Plan
from inarch.structure.planners import make_plan
from inarch.structure.resolve import AxisDecision, build_plan, resolve

from tests.learning.exported import exported
from tests.learning.tables import Bare, bare, ffn, glip_like, mdetr_like, msa, odd_ones, table_of, tied
from tests.learning.tiny import MDETR
from tests.zoo import build as build_zoo
from tests.zoo.check import LEVELS, RELATIVE, float_numbers, inputs_of, ort
from tests.zoo.model import ZooModel
from tests.zoo.plans import random_plan
from tests.zoo.styles import STYLES

Arrays = Mapping[str, npt.NDArray[np.float32]]

FORMS = "two_tower head_splits swiglu packed_gqa rotary_half decoder_in_proj bi_attention swin_constant_bias".split()


def numbers(value: ir.Value) -> npt.NDArray[np.float32]:
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy(), np.float32).copy()


def with_weights(model: ir.Model, weights: Mapping[str, Tensor]) -> ir.Model:
    """A copy with other values for the parameters of these names."""
    result = model.clone()
    for name, value in weights.items():
        result.graph.initializers[name].const_value = ir.tensor(value.detach().numpy(), name=name)
    return result


def reference_weights(found: Discovery, plan: Plan) -> dict[str, Tensor]:
    """The parameters as the compiler's reference has them."""
    made = apply_by_values(found.model, found.table, resolve(plan, found.table), found.uses)
    floats = {str(name): value for name, value in made.graph.initializers.items() if value.dtype == ir.DataType.FLOAT}
    return {name: torch.from_numpy(numbers(value)) for name, value in floats.items()}


def outputs(model: ir.Model, feeds: Mapping[str, npt.NDArray[Any]], level: str = "off") -> Arrays:
    """What ONNX Runtime computes."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = LEVELS[level]
    data = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, dict(feeds)), strict=True))


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def plans(found: Discovery, part: int) -> Iterator[Plan]:
    """Every other style that tests of the compiler know: chains, permuted heads, empty axes, dead heads that are read."""
    for style in itertools.islice(STYLES, part % 2, None, 2):
        yield random_plan(np.random.default_rng(part), found.table, style)


def apart(one: Arrays, other: Arrays) -> float:
    """The largest difference, relative to the output's scale."""
    assert one.keys() == other.keys()
    return max(float(np.abs(one[n] - other[n]).max() / max(float(np.abs(other[n]).max()), 1e-6)) for n in one)


# Models of every form, run by ONNX Runtime on the structured module's weights


@dataclass(frozen=True, eq=False)
class Zoo:
    """A model of the zoo and a module that holds its parameters."""

    zoo: ZooModel
    found: Discovery
    module: Bare


@cache
def zoo(form: str) -> Zoo:
    # Some seeds write parameters as Constant nodes, which are no initializers to be replaced.
    for seed in itertools.count():
        made = build_zoo(form, seed)
        if made.notes["weights"] == "initializer":
            break
    found = discover(canonicalize(made.model))
    params = {member.param for site in found.table.sites for member in site.members.values()}
    held = {name: value for name, value in found.model.graph.initializers.items() if name in params}
    tensors = parameter_tensors(found.model)
    parameters = {name: torch.from_numpy(np.array(tensors[name].numpy())) for name in held}
    # Biases are drawn as zeros here and there.
    rng = torch.Generator().manual_seed(0)
    moved = {name: value + 0.01 * torch.randn(value.shape, generator=rng) for name, value in parameters.items()}
    for name, value in moved.items():
        found.model.graph.initializers[name].const_value = ir.tensor(value.numpy(), name=name)
    return Zoo(made, found, Bare(moved))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_and_plan_computes_what_the_reference_does(form: str) -> None:
    made = zoo(form)
    table = made.found.table
    case = inputs_of(made.zoo, 0)[0]
    for plan in plans(made.found, FORMS.index(form)):
        structured = Structured(made.module, table, plan)
        planned = table.parameters - size(made.module) + size(structured)
        assert planned == planned_parameters(table, resolve(plan, table))
        dense = structured.dense()
        assert dense.keys() == dict(made.module.named_parameters()).keys()
        want = outputs(with_weights(made.found.model, reference_weights(made.found, plan)), case)
        got = outputs(with_weights(made.found.model, dense), case)
        assert apart(got, want) <= 1e-6, plan.provenance


@pytest.mark.parametrize("form", FORMS)
def test_weights_that_were_written_back_are_structured_alike(form: str) -> None:
    made = zoo(form)
    for plan in plans(made.found, FORMS.index(form) + 1):
        structured = Structured(made.module, made.found.table, plan)
        with torch.no_grad():
            for parameter in structured.parameters():
                parameter.add_(torch.randn_like(parameter))
        copy = Bare({name: value.detach().clone() for name, value in made.module.named_parameters()})
        structured.write_back(copy)
        again = Structured(copy, made.found.table, plan)
        one, two = structured.state_dict(), again.state_dict()
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one), plan.provenance
        dense = structured.dense()
        assert all(torch.equal(value, copy.get_parameter(name)) for name, value in dense.items())


# MDETR: the module itself


@cache
def mdetr() -> tuple[Mdetr, Discovery]:
    module = build(MDETR, seed=1)
    assert isinstance(module, Mdetr)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            # Fresh biases are 0 and fresh norms 1: who swapped two of them would not be seen.
            parameter.add_((0.1 if parameter.ndim == 1 else 0.02) * torch.randn(parameter.shape, generator=rng))
    return module, discover_canonical(exported(MDETR, dict(module.named_parameters())))


def planned_in_many_ways() -> dict[str, Plan]:
    module, found = mdetr()
    weights = {name: parameter.detach().numpy() for name, parameter in module.named_parameters()}
    made: dict[str, Plan] = {}
    for method, keep in (("magnitude", 0.5), ("uniform", 0.7), ("similarity", 0.6)):
        made[method] = make_plan(found.table, lambda name: weights[name], keep=keep, method=method, name="m").plan
    gates = GateSpace(found.table, families(found.table))
    for seed, offsets in enumerate(((1.0, 1.0, 1.0), (0.5, -1.0, 3.0), (-1.0, 0.0, 0.5))):
        noise = torch.randn(gates.logits, generator=torch.Generator().manual_seed(seed))
        decisions = gates.decisions(gates.gates(noise + gates.offsets(*offsets)).hard)
        made[f"gates {seed}"] = build_plan(found.table, decisions, "m", {})
    for style in ("share-chain", "share-heads-permuted", "share-dead-base", "share-nested-pruned", "empty-shared", "empty-qk"):
        made[style] = random_plan(np.random.default_rng(3), found.table, style)
    return made


NAMES = ("magnitude", "uniform", "similarity", "gates 0", "gates 1", "gates 2")
STYLED = ("share-chain", "share-heads-permuted", "share-dead-base", "share-nested-pruned", "empty-shared", "empty-qk")


@pytest.fixture(scope="module")
def made() -> dict[str, Plan]:
    return planned_in_many_ways()


@pytest.mark.parametrize("name", [*NAMES, *STYLED])
def test_the_module_gives_what_it_gives_on_the_reference_weights(made: dict[str, Plan], name: str) -> None:
    module, found = mdetr()
    plan = made[name]
    structured = Structured(module, found.table, plan)
    beyond = found.table.parameters - size(module)  # tables that only the graph has, less what no output depends on
    assert size(structured) + beyond == planned_parameters(found.table, resolve(plan, found.table))
    assert plan.expect is None or size(structured) + beyond == plan.expect.parameters
    reference = reference_weights(found, plan)
    weights = {n: reference.get(n, parameter.detach()) for n, parameter in module.named_parameters()}
    feeds = module.example(2, 48, 64, 7, seed=5)
    with torch.no_grad():
        want, got = functional_call(module, weights, (), feeds), structured(**feeds)
    assert apart({n: v.numpy() for n, v in got.items()}, {n: v.numpy() for n, v in want.items()}) <= 1e-6


@pytest.mark.parametrize("name", [*NAMES, "share-chain", "share-dead-base", "empty-shared"])
def test_the_compiled_model_computes_and_stores_the_same(made: dict[str, Plan], name: str) -> None:
    module, found = mdetr()
    plan = made[name]
    structured = Structured(module, found.table, plan)
    with torch.no_grad():
        rng = torch.Generator().manual_seed(2)
        for parameter in structured.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=rng))
    tuned = build(MDETR)
    structured.write_back(tuned)
    graph = exported(MDETR, dict(tuned.named_parameters()))
    result = compile_model(graph, plan)
    feeds = module.example(2, 48, 64, 7, seed=5)
    with torch.no_grad():
        want = {n: v.numpy() for n, v in structured(**feeds).items()}
    got = outputs(result.model, {n: v.numpy() for n, v in feeds.items()}, "on")
    assert apart(got, want) <= RELATIVE
    lost = float_numbers(graph) - found.table.parameters  # small constants of the graph itself
    # Where all of a site goes, scales that stood in its nodes go too.
    empty = sum(not site.groups for site in result.lowered.sites)
    assert 0 <= result.lowered.stored - (float_numbers(result.model) - lost) <= 4 * empty
    assert size(structured) <= size(module)


def test_dense_weights_come_from_the_stored_ones_in_the_modules_order() -> None:
    module, found = mdetr()
    plan = build_plan(found.table, {}, "m", {})
    structured = Structured(module, found.table, plan)
    dense = structured.dense()
    assert dense.keys() == dict(module.named_parameters()).keys()
    assert all(torch.equal(dense[name], parameter) for name, parameter in module.named_parameters())


def test_a_model_inside_a_module_has_a_prefix() -> None:
    module, found = mdetr()

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = module
            self.head = nn.Linear(2, 2)

        def forward(self, **feeds: Tensor) -> Tensor:
            boxes: Tensor = self.model(**feeds)["boxes"]
            return self.head(boxes[..., :2]).sum()  # type: ignore[no-any-return]

    plan = planned_in_many_ways()["gates 1"]
    wrapped = Wrapped()
    structured = Structured(wrapped, found.table, plan, "model.")
    assert structured.dense().keys() == dict(wrapped.named_parameters()).keys()
    assert size(structured) - size(wrapped.head) == size(Structured(module, found.table, plan))
    loss = structured(**module.example(2, 48, 64, 7))
    torch.autograd.backward(loss)
    assert structured.rest["head|weight"].grad is not None
    before = {name: value.clone() for name, value in wrapped.state_dict().items()}
    structured.write_back(wrapped)
    assert any(not torch.equal(value, before[name]) for name, value in wrapped.state_dict().items())
    Structured(module, found.table, build_plan(found.table, {}, "m", {})).write_back(module)
    module.load_state_dict({name.removeprefix("model."): value for name, value in before.items() if name.startswith("model.")})


def test_the_skeleton_is_in_the_mode_that_is_asked_for() -> None:
    table = table_of([ffn("a", 4, 16)])
    module = nn.Sequential()
    module.add_module("a", bare(table).get_submodule("a"))
    module.add_module("drop", nn.Dropout())
    module.eval()
    structured = Structured(module, table, build_plan(table, {}, "m", {}))
    assert not structured.training
    structured.train()
    assert module.get_submodule("drop").training
    structured.eval()
    assert not module.get_submodule("drop").training


# What the parameters are


def pair() -> tuple[Bare, Plan, Structured]:
    """A base of 8 units, a reader whose units 0-3 are the base's 4-7 and that prunes 6 and 7; another reads the reader's."""
    table = table_of([ffn(f"text.layer.{n}.ffn", 4, 8) for n in range(3)], 0)
    everything = np.arange(8)
    decisions = {
        "text.layer.1.ffn": {"hidden": AxisDecision(everything[:6], [("text.layer.0.ffn", everything[:4], everything[4:])])},
        "text.layer.2.ffn": {"hidden": AxisDecision(None, [("text.layer.1.ffn", everything[:2], everything[3:5])])},
    }
    plan = build_plan(table, decisions, "m", {})
    module = bare(table)
    return module, plan, Structured(module, table, plan)


def test_every_vector_is_stored_once() -> None:
    _, plan, structured = pair()
    rows = {name: tuple(value.shape) for name, value in structured.rows.items()}
    assert rows == {"text|layer|0|ffn/hidden": (8, 8), "text|layer|1|ffn/hidden": (2, 8), "text|layer|2|ffn/hidden": (6, 8)}
    assert plan.expect is not None
    assert size(structured) == plan.expect.parameters == 16 * 8 + 8 + 6 + 8


def test_a_shared_vector_gets_the_gradients_of_all_that_read_it() -> None:
    module, _, structured = pair()
    dense = structured.dense()
    rng = torch.Generator().manual_seed(0)
    weight = {name: torch.randn(value.shape, generator=rng) for name, value in dense.items()}
    torch.autograd.backward(torch.stack([(dense[name] * weight[name]).sum() for name in dense]).sum())
    base = structured.rows["text|layer|0|ffn/hidden"].grad
    assert base is not None

    def row(site: int, unit: int) -> Tensor:
        """As rows are read: the column of down, then the row of up."""
        name = f"text.layer.{site}.ffn"
        return torch.cat((weight[f"{name}.down.weight"][:, unit], weight[f"{name}.up.weight"][unit]))

    # 2 reads 1's units 3 and 4: of these 3 is the base's 7, and 4 is 1's own.
    expected = [row(0, unit) for unit in range(8)]
    for unit in range(4):
        expected[4 + unit] = expected[4 + unit] + row(1, unit)
    expected[7] = expected[7] + row(2, 0)
    torch.testing.assert_close(base, torch.stack(expected))
    middle = structured.rows["text|layer|1|ffn/hidden"].grad
    assert middle is not None
    torch.testing.assert_close(middle, torch.stack([row(1, 4) + row(2, 1), row(1, 5)]))
    assert not any(parameter.grad is not None for parameter in module.parameters())


def test_what_another_reads_from_a_dead_head_comes_back_in_its_place() -> None:
    table = table_of([msa(f"text.layer.{n}.attn", 4, 2, 8) for n in range(2)])
    one, every = np.arange(8), np.arange(16)
    decisions = {
        "text.layer.0.attn": {"vo": AxisDecision(one)},  # the second head puts nothing out
        "text.layer.1.attn": {"qk": AxisDecision(None, [("text.layer.0.attn", every, every)])},
    }
    plan = build_plan(table, decisions, "m", {})
    module = bare(table)
    structured = Structured(module, table, plan)
    dense = structured.dense()
    for part in ("q", "k"):
        assert torch.equal(dense[f"text.layer.0.attn.{part}.weight"], module.get_parameter(f"text.layer.0.attn.{part}.weight"))
    structured.write_back(module)
    again = Structured(module, table, plan)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in structured.state_dict().items())


@pytest.mark.parametrize("name", ["mdetr", "narrow", "glip", "odd"])
def test_gates_structures_hold_as_many_parameters_as_they_count(name: str) -> None:
    made = {"mdetr": mdetr_like, "narrow": lambda: mdetr_like(inner=16), "glip": glip_like, "odd": odd_ones}[name]()
    # A bias that two sites read is asked for two things.
    sites = [s for s in made.sites if s.name not in ("text.layer.1.ffn", "text.layer.2.ffn") or name != "odd"]
    table = table_of(sites, 0)
    module = bare(table)
    gates = GateSpace(table, families(table))
    for seed in range(4):
        noise = torch.randn(gates.logits, generator=torch.Generator().manual_seed(seed))
        hard = gates.gates(noise + gates.offsets(0.5 - 0.5 * seed, 0.0, 0.5))
        plan = build_plan(table, gates.decisions(hard.hard), "m", {})
        assert size(Structured(module, table, plan)) == int(gates.count(hard))


def test_what_does_not_learn_does_not_learn_structured() -> None:
    table = table_of([ffn(f"text.layer.{n}.ffn", 4, 8) for n in range(2)])
    module = bare(table)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("layer.1" in name)
    structured = Structured(module, table, build_plan(table, {}, "m", {}))
    learns = {name: parameter.requires_grad for name, parameter in structured.named_parameters()}
    assert learns == {name: "layer|1" in name for name in learns}


def test_tables_that_only_the_graph_has_stay_as_they_are() -> None:
    site = msa("text.layer.0.attn", 4, 2, 8, table=9)
    table = table_of([site], 0)
    module = bare(table_of([msa("text.layer.0.attn", 4, 2, 8)]))
    plan = build_plan(table, {site.name: {"vo": AxisDecision(np.arange(8)), "qk": AxisDecision(np.arange(8))}}, "m", {})
    assert plan.expect is not None
    assert size(Structured(module, table, plan)) == plan.expect.parameters - 9


def test_a_tied_parameter_is_stored_once() -> None:
    table = table_of([ffn("a", 4, 6)], 0)
    module = bare(table)
    module.add_module("again", module.get_submodule("a"))
    renamed = {role: replace(m, param=m.param.replace("a.", "again.", 1)) for role, m in table.sites[0].members.items()}
    again = table_of([replace(table.sites[0], members=renamed)], 0)
    structured = Structured(module, again, build_plan(again, {"a": {"hidden": AxisDecision(np.arange(3))}}, "m", {}))
    assert size(structured) == 27
    assert structured.dense().keys() == dict(module.named_parameters()).keys()
    structured.write_back(module)
    assert not module.get_parameter("again.up.weight")[3:].any()


def test_a_bias_of_two_sites_that_keep_the_same_is_stored_once() -> None:
    one, two = (ffn(f"text.layer.{n}.ffn", 4, 8) for n in range(2))
    two = replace(two, members={**two.members, "up_bias": one.members["up_bias"]})
    table = table_of([one, two], 0)
    module = bare(table)
    some, other = AxisDecision(np.arange(4)), AxisDecision(np.arange(1, 5))
    plan = build_plan(table, {one.name: {"hidden": some}, two.name: {"hidden": some}}, "m", {})
    structured = Structured(module, table, plan)
    assert plan.expect is not None
    assert size(structured) == plan.expect.parameters == 2 * 4 * 8 + 4
    assert structured.dense()["text.layer.0.ffn.up.bias"].count_nonzero() == 4
    with pytest.raises(LoweringError, match="do not keep the same"):
        Structured(module, table, build_plan(table, {one.name: {"hidden": some}, two.name: {"hidden": other}}, "m", {}))


def test_a_table_of_two_sites_is_whole_where_either_wants_it() -> None:
    one, two = (msa(f"text.layer.{n}.attn", 4, 2, 8, table=3) for n in range(2))
    two = replace(two, members={**two.members, "rider:0": one.members["rider:0"]})
    table = table_of([one, two], 0)
    module = bare(table)
    head = AxisDecision(np.arange(8))
    plan = build_plan(table, {one.name: {"qk": head, "vo": head}}, "m", {})
    structured = Structured(module, table, plan)
    assert torch.equal(structured.dense()["text.layer.0.attn.table"], module.get_parameter("text.layer.0.attn.table"))
    assert plan.expect is not None
    assert size(structured) == plan.expect.parameters


# What is refused


def test_tied_sites_may_be_there_but_not_changed_and_not_read() -> None:
    table = tied()
    module = bare(table)
    some = np.arange(32)
    free = build_plan(table, {"text.layer.1.ffn": {"hidden": AxisDecision(some)}}, "m", {})
    structured = Structured(module, table, free)
    assert free.expect is not None
    assert size(structured) == free.expect.parameters - 1000
    changed = {name: {"hidden": AxisDecision(some)} for name in ("text.layer.0.ffn", "text.layer.9.ffn")}
    with pytest.raises(LoweringError, match="changes a site with tied weights"):
        Structured(module, table, build_plan(table, changed, "m", {}))
    reads = {"text.layer.1.ffn": {"hidden": AxisDecision(None, [("text.layer.0.ffn", some, some)])}}
    with pytest.raises(LoweringError, match="reads from a site with tied weights"):
        Structured(module, table, build_plan(table, reads, "m", {}))


def test_another_models_plan_and_another_module_are_refused() -> None:
    module, plan, _ = pair()
    other = table_of([ffn("text.layer.0.ffn", 4, 9)])
    with pytest.raises(PlanError):
        Structured(bare(other), other, plan)
    three = table_of([ffn(f"text.layer.{n}.ffn", 4, 8) for n in range(3)], 0)
    with pytest.raises(BindingError, match="is missing"):
        Structured(Bare({"text.layer.0.ffn.up.weight": module.get_parameter("text.layer.0.ffn.up.weight")}), three, plan)


def test_a_parameter_that_is_cut_both_ways_is_refused() -> None:
    one, two = ffn("text.layer.0.ffn", 4, 8), msa("text.layer.1.attn", 4, 2, 8, table=2)
    crossed = replace(two.members["rider:0"], param=one.members["up"].param, axis=1, shape=(8, 4), factors=(("head", 2),))
    table = table_of([one, replace(two, members={**two.members, "rider:0": crossed})])
    with pytest.raises(LoweringError, match="cut along two axes"):
        Structured(bare(table), table, build_plan(table, {}, "m", {}))
