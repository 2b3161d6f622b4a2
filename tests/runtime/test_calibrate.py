"""Timing kernels: the forms are the compiler's own, rounds are interleaved, intervals are right. No test looks at real time."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from inarch.compiler.compile import compile_model
from inarch.runtime import calibrate
from inarch.runtime.binding import Binding
from inarch.runtime.calibrate import MIN_ROUNDS, ratio_interval, time_kernels, widest
from inarch.runtime.kernels import SHAPES, Shape, Variant, kernel_feeds, kernel_model, variants, widths
from inarch.runtime.placement import Placement
from inarch.runtime.session import Session, SessionOptions
from inarch.structure.cost import CostTable, Limits
from inarch.structure.discover import discover
from inarch.structure.errors import RuntimeFailure
from inarch.structure.resolve import AxisDecision, build_plan

FFN = Shape("ffn", 8, 256, 1, 3)
MSA = Shape("msa", 8, 32, 4, 3)
FREE = Limits(multiple=1, rounding=0.0, min_segment=1, max_segments=16)


class Machine:
    """A clock that runs only while a model does, by one second a run, and notes what ran."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cost: float = 1.0) -> None:
        self.now = 0.0
        self.ran: list[Binding] = []
        real = Binding.run

        def run(bound: Binding) -> None:
            real(bound)
            self.ran.append(bound)
            self.now += cost

        monkeypatch.setattr(Binding, "run", run)

    def __call__(self) -> float:
        return self.now


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def test_every_form_of_a_site_computes_what_the_dense_one_does_where_nothing_is_pruned() -> None:
    for shape in (FFN, MSA):
        feeds = kernel_feeds(shape)
        results = {}
        for form in variants(shape):
            with Session(kernel_model(shape, form), SessionOptions(threads=1)) as session:
                results[form] = session.run(feeds)["y"]
        dense = results[Variant("dense", shape.units)]
        for form, y in results.items():
            assert y.shape == dense.shape
            assert np.allclose(y, dense, atol=1e-4) == (form.stored == shape.units), form


@pytest.mark.parametrize(("shape", "form"), [(FFN, "split"), (MSA, "split"), (MSA, "inside")])
def test_a_split_site_runs_the_operators_of_a_compiled_one(shape: Shape, form: str) -> None:
    dense = kernel_model(shape, Variant("dense", shape.units), depth=2)
    table = discover(dense).table
    base, reader = table.sites
    decisions = {}
    for name, axis in base.axes.items():
        if name == "head" and form == "split":
            units = np.arange(axis.heads // 2, dtype=np.int64)
        elif name == "hidden" or (name != "head" and form == "inside"):
            half = np.arange(axis.per_head // 2, dtype=np.int64)
            units = (np.arange(axis.heads, dtype=np.int64)[:, None] * axis.per_head + half).ravel()
        else:
            continue
        decisions[name] = AxisDecision(share=((base.name, units, units),))
    plan = build_plan(table, {reader.name: decisions}, "kernel", {})
    cost = CostTable(format="inarch.cost/1", description="free", balanced=FREE, size=FREE, latency=FREE)
    compiled = compile_model(dense, plan, cost=cost).model
    timed = kernel_model(shape, Variant("split" if form == "split" else "inside", shape.units, 2), depth=2)
    assert operators(timed) == operators(compiled)
    assert operators(timed)["MatMul"] > operators(dense)["MatMul"]


def test_the_sites_that_are_timed_have_a_width_of_every_multiple_that_their_heads_allow() -> None:
    assert [units & -units for units in widths(SHAPES[0])][1:-1] == [1, 2, 4, 8, 16, 32]
    assert [units & -units for units in widths(SHAPES[1])][1:-1] == [4, 8, 16, 32]
    for shape in SHAPES:
        assert all(units % shape.heads == 0 and units <= shape.units for units in widths(shape))
        low, *_, high = widths(shape)
        assert low % 64 == high % 64 == 0


def test_every_round_runs_every_form_once_in_an_order_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    found = time_kernels(seconds=0, shapes=(FFN,), warm_up=1, clock=machine)
    forms = len(variants(FFN))
    rounds = [tuple(map(id, machine.ran[i : i + forms])) for i in range(forms, len(machine.ran), forms)]
    assert len(rounds) == MIN_ROUNDS == found.figures[0].rounds
    assert {frozenset(order) for order in rounds} == {frozenset(map(id, machine.ran[:forms]))}
    assert len(set(rounds)) > 1
    assert found.seconds == forms * (MIN_ROUNDS + 1)


def test_figures_say_what_was_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = time_kernels(seconds=0, shapes=(MSA, FFN), warm_up=0, clock=Machine(monkeypatch, cost=0.25))
    assert [(f.kind, f.threads, f.form, f.stored, f.blocks) for f in found.figures] == [
        (shape.kind, 1, v.form, v.stored, v.blocks) for shape in (MSA, FFN) for v in variants(shape)
    ]
    assert {(f.milliseconds, f.spread, f.ratio, f.low, f.high) for f in found.figures} == {(250.0, 0.0, 1.0, 1.0, 1.0)}
    assert found.tight
    assert found.noise == 0


def test_rounds_end_once_the_intervals_are_tight_and_the_rest_of_the_time_is_not_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    assert time_kernels(seconds=1e6, shapes=(FFN,), clock=machine).figures[0].rounds == MIN_ROUNDS


def test_a_scattering_machine_is_timed_until_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    rng = np.random.default_rng(0)
    monkeypatch.setattr(Machine, "__call__", lambda self: self.now + float(rng.uniform(0, 0.9)))
    found = time_kernels(seconds=400, shapes=(FFN,), warm_up=0, clock=machine)
    assert found.figures[0].rounds == -(-400 // len(variants(FFN)))
    assert not found.tight
    assert found.noise > 0.01


def test_the_interval_of_a_median_covers_it_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    trials = [ratio_interval(rng.lognormal(0.0, 0.3, 40)) for _ in range(500)]
    covered = sum(low <= 1.0 <= high for _, low, high in trials)
    assert 0.93 * 500 <= covered <= 0.99 * 500
    assert ratio_interval(np.ones(15)) == (1.0, 1.0, 1.0)
    assert widest(np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])) == 1.0


def test_fp16_is_not_measured_where_it_is_not_computed() -> None:
    with pytest.raises(RuntimeFailure, match="fp32 on a CPU"):
        time_kernels(seconds=0, precision="fp16")


def test_a_gpu_that_is_a_program_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "software_device", lambda provider: "it is a program")
    with pytest.raises(RuntimeFailure, match="it is a program"):
        time_kernels("WebGpuExecutionProvider", seconds=0)


def test_a_provider_that_leaves_products_to_another_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    strayed = Placement("CUDAExecutionProvider", {"CUDAExecutionProvider": {"Add": 1}, "CPUExecutionProvider": {"MatMul": 2}})
    monkeypatch.setattr(calibrate, "measure_placement", lambda *given: strayed)
    with pytest.raises(RuntimeFailure, match=r"FFN 8 x 256: 2 of 2 heavy operators .* did not run on cuda"):
        time_kernels("CUDAExecutionProvider", seconds=0, shapes=(FFN,))


def test_a_model_in_fp16_is_one_throughout() -> None:
    model = kernel_model(MSA, Variant("split", 32, 2), precision="fp16")
    assert {v.dtype for v in (*model.graph.inputs, *model.graph.outputs)} == {ir.DataType.FLOAT16}
    assert kernel_feeds(MSA, "fp16")["x"].dtype == np.float16
