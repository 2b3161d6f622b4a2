"""What structure learning minimises, and how weights come to the structure."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inarch.compiler.reference import apply_by_values
from inarch.learning.families import families
from inarch.learning.gates import GateSpace, Hard
from inarch.learning.objective import align, alignment, budget, effective_rows
from inarch.learning.unit_rows import UnitRows
from inarch.structure.demand import unit_axes
from inarch.structure.resolve import build_plan, resolve

from tests.learning.tables import bare, drawn_logits, ffn, glip_like, mdetr_like, odd_ones, parameters_of, table_of

TABLES = {"mdetr": mdetr_like(), "glip": glip_like(), "odd": odd_ones()}


@cache
def space(name: str) -> GateSpace:
    return GateSpace(TABLES[name], families(TABLES[name]))


CASES = st.sampled_from(sorted(TABLES)).flatmap(lambda name: st.tuples(st.just(name), drawn_logits(space(name))))


def nearest(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max()) / max(float(b.abs().max()), 1e-6) if a.numel() else 0.0


# The budget


@pytest.mark.parametrize(("count", "target"), [(60.0, 60.0), (90.0, 60.0), (40.0, 60.0), (228_000_001.0, 137_000_000.0)])
def test_the_budget_is_a_ratio_on_both_sides(count: float, target: float) -> None:
    given = torch.tensor(count, dtype=torch.float64, requires_grad=True)
    lost = budget(given, target)
    assert lost.dtype == torch.float32, "it is summed with losses"
    assert float(lost.detach()) == pytest.approx(abs(math.log(count / target)), rel=1e-6)
    torch.autograd.backward(lost)
    assert given.grad is not None
    assert float(given.grad) == pytest.approx(float(np.sign(count - target)) / count, rel=1e-6)


# Weights under gates


def naive_rows(gates: GateSpace, units: UnitRows, hard: Hard, parameters: dict[str, Tensor]) -> dict[tuple[str, str], Tensor]:
    """Unit by unit: the base's, else its own; where it is pruned, without the vector that its output goes through."""
    result = {}
    for key, spec in gates.axes.items():
        own = units.read(key, parameters)
        rows = np.zeros(tuple(own.shape), np.float32)
        for unit in range(len(rows)):
            if hard.share[key][unit]:
                assert spec.base is not None
                rows[unit] = units.read(spec.base, parameters)[unit].numpy()
            else:
                rows[unit] = own[unit].numpy()
            if not hard.keep[key][unit]:
                rows[unit, : units.slots[key][0].columns] = 0
        result[key] = torch.from_numpy(rows)
    return result


@settings(max_examples=15)
@given(CASES)
def test_effective_rows_are_the_naive_ones(case: tuple[str, Tensor]) -> None:
    name, logits = case
    gates = space(name)
    module = bare(TABLES[name])
    units, parameters = UnitRows(TABLES[name], module), parameters_of(module)
    made = gates.gates(logits)
    rows, factors = effective_rows(gates, units, made, parameters)
    expected = naive_rows(gates, units, made.hard, parameters)
    for key in gates.axes:
        assert torch.equal(rows[key], expected[key])
        assert torch.equal(factors[key], torch.from_numpy(made.hard.keep[key]).float())


def test_the_dense_start_changes_no_weight() -> None:
    gates, table = space("mdetr"), TABLES["mdetr"]
    module = bare(table)
    units, parameters = UnitRows(table, module), parameters_of(module)
    rows, factors = effective_rows(gates, units, gates.gates(gates.offsets(3, 1, 3)), parameters)
    written = units.write(rows, factors, parameters)
    assert all(torch.equal(value, parameters[name]) for name, value in written.items())


def test_a_loss_on_the_weights_reaches_all_logits_and_the_weights() -> None:
    gates, table = space("mdetr"), TABLES["mdetr"]
    module = bare(table)
    units, parameters = UnitRows(table, module), dict(module.named_parameters())
    logits = gates.offsets(1, 1, 1).requires_grad_()
    rows, factors = effective_rows(gates, units, gates.gates(logits), parameters)
    written = units.write(rows, factors, parameters)
    rng = torch.Generator().manual_seed(0)
    torch.autograd.backward(
        torch.stack([(value * torch.randn(value.shape, generator=rng)).sum() for value in written.values()]).sum()
    )
    assert logits.grad is not None
    assert bool((logits.grad != 0).all())
    assert all(p.grad is not None for name, p in parameters.items() if not name.endswith("table"))


def test_a_shared_unit_teaches_its_base() -> None:
    table = table_of([ffn(f"text.layer.{n}.ffn", 8, 64) for n in range(2)])
    gates = GateSpace(table, families(table))
    module = bare(table)
    units, parameters = UnitRows(table, module), dict(module.named_parameters())
    rows, _ = effective_rows(gates, units, gates.gates(gates.offsets(3, -3, 3)), parameters)
    torch.autograd.backward(rows["text.layer.1.ffn", "hidden"].sum())
    base, reader = (parameters[f"text.layer.{n}.ffn.up.weight"].grad for n in range(2))
    assert base is not None
    assert torch.equal(base, torch.ones_like(base))
    assert reader is None or not reader.any()


def test_weights_of_half_precision_stay_so() -> None:
    gates, table = space("mdetr"), TABLES["mdetr"]
    module = bare(table).to(torch.bfloat16)
    units, parameters = UnitRows(table, module), parameters_of(module)
    rows, factors = effective_rows(gates, units, gates.gates(gates.offsets(1, -1, 1)), parameters)
    assert all(value.dtype == torch.bfloat16 for value in units.write(rows, factors, parameters).values())


# Bringing weights to the structure


def tensor_of(value: ir.Value) -> npt.NDArray[np.float32]:
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy(), np.float32).copy()


def reference_of(gates: GateSpace, hard: Hard, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """The compiler's reference of the plan, on these weights."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 17})
    for name, value in parameters.items():
        tensor = ir.tensor(value.numpy().copy(), name=name)
        shape = ir.Shape(value.shape)
        graph.register_initializer(ir.Value(name=name, const_value=tensor, shape=shape, type=ir.TensorType(tensor.dtype)))
    plan = build_plan(gates.table, gates.decisions(hard), "test", {})
    made = apply_by_values(ir.Model(graph, ir_version=10), gates.table, resolve(plan, gates.table))
    return {str(name): torch.from_numpy(tensor_of(v)) for name, v in made.graph.initializers.items()}


@settings(max_examples=15)
@given(st.sampled_from(["mdetr", "glip"]).flatmap(lambda name: st.tuples(st.just(name), drawn_logits(space(name)))))
def test_aligned_weights_are_their_own_reference(case: tuple[str, Tensor]) -> None:
    name, logits = case
    gates = space(name)
    module = bare(TABLES[name])
    units, parameters = UnitRows(TABLES[name], module), parameters_of(module)
    hard = gates.gates(logits).hard
    align(gates, units, hard, parameters, 1.0)
    expected = reference_of(gates, hard, parameters)
    assert expected.keys() == parameters.keys()
    assert all(torch.equal(parameters[param], expected[param]) for param in expected)
    assert float(alignment(gates, units, hard, parameters)) == 0.0


def test_shared_units_meet_at_the_mean_and_private_ones_stay() -> None:
    table = table_of([ffn(f"text.layer.{n}.ffn", 8, 64) for n in range(3)])
    gates = GateSpace(table, families(table, block=3))
    module = bare(table)
    units, parameters = UnitRows(table, module), parameters_of(module)
    logits = gates.offsets(3, 3, 3)
    for number, count in ((1, 64), (2, 32)):
        share = gates.axes[f"text.layer.{number}.ffn", "hidden"].share
        assert share is not None
        logits[share.start : share.start + count] = 3
    hard = gates.gates(logits).hard
    before = [units.read((site.name, "hidden"), parameters) for site in table.sites]
    align(gates, units, hard, parameters, 1.0)
    after = [units.read((site.name, "hidden"), parameters) for site in table.sites]
    all_three, two = (before[0] + before[1] + before[2]) / 3, (before[0] + before[1]) / 2
    for rows in after:
        torch.testing.assert_close(rows[:32], all_three[:32])
    for rows in after[:2]:
        torch.testing.assert_close(rows[32:], two[32:])
    assert torch.equal(after[2][32:], before[2][32:])
    assert torch.equal(after[0], after[1])


def test_a_base_that_is_held_keeps_its_units() -> None:
    table = table_of([ffn(f"text.layer.{n}.ffn", 8, 64) for n in range(3)])
    gates = GateSpace(table, families(table, block=3))
    module = bare(table)
    units, parameters = UnitRows(table, module), parameters_of(module)
    before = [units.read((site.name, "hidden"), parameters) for site in table.sites]
    align(gates, units, gates.all_shared(), parameters, 0.5, held=True)
    after = [units.read((site.name, "hidden"), parameters) for site in table.sites]
    assert torch.equal(after[0], before[0])
    for own, moved in zip(before[1:], after[1:], strict=True):
        torch.testing.assert_close(moved, (own + before[0]) / 2)


@settings(max_examples=10)
@given(CASES, st.integers(2, 6))
def test_a_growing_part_of_the_way_is_a_straight_line(case: tuple[str, Tensor], steps: int) -> None:
    name, logits = case
    gates = space(name)
    start, ended = bare(TABLES[name]), bare(TABLES[name])
    units = UnitRows(TABLES[name], start)
    hard = gates.gates(logits).hard
    parameters, goal = parameters_of(start), parameters_of(ended)
    before = {param: value.clone() for param, value in parameters.items()}
    align(gates, units, hard, goal, 1.0)
    for step in range(steps):
        align(gates, units, hard, parameters, 1 / (steps - step))
        part = (step + 1) / steps
        for param, value in parameters.items():
            if param == "text.layer.2.ffn.up.bias" and name == "odd":
                continue  # two sites hold it, and each brings it along
            assert nearest(value, before[param] + part * (goal[param] - before[param])) < 2e-6
    assert float(alignment(gates, units, hard, parameters)) == 0.0


def test_the_penalty_is_the_mean_distance() -> None:
    gates, table = space("mdetr"), TABLES["mdetr"]
    module = bare(table)
    units, parameters = UnitRows(table, module), parameters_of(module)
    rng = torch.Generator().manual_seed(1)
    hard = gates.gates(torch.randn(gates.logits, generator=rng)).hard
    total = 0.0
    for site in table.sites:
        for axis in unit_axes(site):
            spec = gates.axes[site.name, axis]
            own = units.read(spec.key, parameters).numpy().astype(np.float64)
            for unit in range(len(own)):
                if not hard.keep[spec.key][unit]:
                    total += float(np.linalg.norm(own[unit]))
                elif hard.share[spec.key][unit]:
                    assert spec.base is not None
                    total += float(np.linalg.norm(own[unit] - units.read(spec.base, parameters)[unit].numpy()))
    assert float(alignment(gates, units, hard, parameters)) == pytest.approx(total / gates.units, rel=1e-5)


def test_the_penalty_pulls_reader_and_base_alike_and_the_rest_not() -> None:
    table = table_of([ffn(f"text.layer.{n}.ffn", 8, 64) for n in range(2)])
    gates = GateSpace(table, families(table))
    module = bare(table)
    units, parameters = UnitRows(table, module), dict(module.named_parameters())
    logits = gates.offsets(3, 3, 3)
    share = gates.axes["text.layer.1.ffn", "hidden"].share
    assert share is not None
    logits[share.start : share.start + 32] = 3
    torch.autograd.backward(alignment(gates, units, gates.gates(logits).hard, parameters))
    base, reader = (parameters[f"text.layer.{n}.ffn.up.weight"].grad for n in range(2))
    assert base is not None
    assert reader is not None
    torch.testing.assert_close(base[:32], -reader[:32])
    assert bool((reader[:32] != 0).all())
    assert not base[32:].any()
    assert not reader[32:].any()


def test_the_penalty_has_a_gradient_where_it_is_zero() -> None:
    table = table_of([ffn("text.layer.0.ffn", 8, 64)])
    gates = GateSpace(table, [])
    module = bare(table)
    units, parameters = UnitRows(table, module), dict(module.named_parameters())
    hard = gates.gates(gates.offsets(-3, 3, 3)).hard
    align(gates, units, hard, parameters_of(module), 1.0)
    torch.autograd.backward(alignment(gates, units, hard, parameters))
    assert all(p.grad is None or bool((p.grad == 0).all()) for p in parameters.values())


def test_a_pruned_unit_has_a_way_back() -> None:
    table = table_of([ffn("text.layer.0.ffn", 8, 64)])
    gates, module = GateSpace(table, ()), bare(table)
    units, parameters = UnitRows(table, module), parameters_of(module)
    logits = gates.offsets(3, 0, 0)
    logits[:32] = -3.0
    logits.requires_grad_()
    written = units.write(*effective_rows(gates, units, gates.gates(logits), parameters), parameters)
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    up, bias, down = (written[f"text.layer.0.ffn.{name}"] for name in ("up.weight", "up.bias", "down.weight"))
    torch.autograd.backward((torch.nn.functional.gelu(x @ up.T + bias) @ down.T).square().sum())
    assert logits.grad is not None
    assert bool((logits.grad[:32] != 0).all())
