"""The benchmarks' own parts: models, hand-made plans, counting and targets. Nothing here is timed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from inarch.runtime.latency import LatencyReport, Timing
from inarch.runtime.size import SizeReport
from inarch.structure.discover import discover
from inarch.structure.plan import Plan
from inarch.structure.resolve import identity, resolve
from inarch.structure.sites import SiteTable
from inarch.tools.benchmarks import machine, models, sharing
from inarch.tools.benchmarks.twin import INPUTS, OUTPUT, TwinEncoders, draw, feeds
from inarch.tools.demo_towers import count_savings

TINY = TwinEncoders(layers=2, width=48, heads=12, hidden=96)


@pytest.fixture(scope="module")
def table() -> SiteTable:
    return discover(TINY.build()).table


def test_weights_depend_on_name_and_seed_alone() -> None:
    first = draw("a.weight", (4, 8), 0)
    np.testing.assert_array_equal(first, draw("a.weight", (4, 8), 0))
    assert not np.array_equal(first, draw("b.weight", (4, 8), 0))
    assert not np.array_equal(first, draw("a.weight", (4, 8), 1))
    assert abs(draw("x.norm.weight", (400,), 0).mean() - 1) < 0.01


def test_equal_arguments_give_equal_bytes(tmp_path: Path) -> None:
    first, second = (TINY.save(tmp_path / name) for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert first.with_suffix(".data").read_bytes() == second.with_suffix(".data").read_bytes()
    assert first.name != replace(TINY, seed=1).save(tmp_path / "a").name


def test_the_model_is_the_size_that_its_name_says() -> None:
    model = TwinEncoders().build()  # lazy weights: nothing large is made
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    assert round(size / 2**20) == 649


def test_the_model_adds_its_towers_on_every_shape(tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(TINY.save(tmp_path), providers=["CPUExecutionProvider"])
    assert [item.name for item in session.get_inputs()] == list(INPUTS)
    for rows in ((1, 5), (3, 2)):
        inputs = feeds(TINY, rows)
        (both,) = session.run([OUTPUT], inputs)
        (other,) = session.run([OUTPUT], {**inputs, INPUTS[0]: inputs[INPUTS[0]] + 1})
        assert both.shape == (*rows, TINY.width)
        assert np.isfinite(both).all()
        assert np.abs(both - other).max() > 1e-3


def test_every_layer_has_two_sites_a_tower(table: SiteTable) -> None:
    assert [site.kind for site in table.sites] == ["msa", "ffn"] * 4
    assert not table.rejected


def test_half_shared_shares_half_of_the_text_tower(table: SiteTable) -> None:
    plan = sharing.half_shared(table, "twin")
    savings = count_savings(plan, table)
    assert savings["pruned"].units == savings["layer-wise"].units == 0
    assert plan.expect is not None
    assert table.parameters - plan.expect.parameters == savings["cross-modal"].parameters
    # 2 layers: half of 96 FFN units, and half of 48 units on qk and on vo.
    assert savings["cross-modal"].units == 2 * (48 + 24 + 24)


def test_pruned_keeps_seven_heads_of_twelve(table: SiteTable) -> None:
    plan = sharing.pruned(table, "twin")
    resolved = resolve(plan, table)
    for site in table.sites:
        for name, axis in resolved.axes[site.name].items():
            kept = int((~axis.pruned).sum())
            assert kept == (round(96 * 1840 / 3072) if name == "hidden" else 7 * 4)


def test_multiplications_of_the_dense_model(table: SiteTable) -> None:
    tokens, length = 3 * 5, 5
    layer = tokens * (4 * 48 * 48 + 2 * 48 * 96) + 2 * tokens * length * 48
    assert sharing.multiplications(table, identity(table), 3, length) == 4 * layer


@pytest.mark.parametrize(("make", "fraction"), [(sharing.half_shared, 1.0), (sharing.pruned, None)])
def test_only_pruning_saves_multiplications(make: object, fraction: float | None, table: SiteTable) -> None:
    assert callable(make)
    plan = make(table, "twin")
    assert isinstance(plan, Plan)
    ratio = sharing.multiplications(table, resolve(plan, table), 1, 8) / sharing.multiplications(table, identity(table), 1, 8)
    assert ratio == fraction if fraction is not None else 0.58 < ratio < 0.61


def row(**changes: Any) -> sharing.Row:
    size = SizeReport(None, 100, 100, 1005, 1000, 1000, 1000)
    timing = Timing(1.0, 1.0, 0.0)
    latency = tuple(LatencyReport(n, 30, timing, timing, 1.0, 0.99, 1.01, "x") for n in (1, 2))
    good = sharing.Row("p", 0.75, True, False, size, 750, 0.97, 1.0, latency)
    return replace(good, **changes)


def timed(ratio: float, high: float, threads: int) -> tuple[LatencyReport, ...]:
    timing = Timing(1.0, 1.0, 0.0)
    return (LatencyReport(threads, 30, timing, timing, ratio, ratio - 0.01, high, "x"),)


def test_a_row_that_meets_the_targets() -> None:
    assert sharing.check(row()) == ()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"size": SizeReport(None, 100, 100, 1011, 1000, 1000, 1000)}, "larger than its unique bytes"),
        ({"memory_share": 0.949}, "94.9%"),
        ({"latency": timed(1.0, 1.021, 1)}, "1.021 at 1 thread"),
        ({"latency": timed(1.0, 1.031, 2)}, "1.031 at 2 threads"),
        ({"prunes": True, "ideal": 0.6, "latency": timed(0.631, 0.66, 1)}, "allowed 0.630"),
    ],
)
def test_each_target_can_be_missed(changes: dict[str, object], word: str) -> None:
    (sentence,) = sharing.check(row(**changes))
    assert word in sentence


def test_two_threads_may_cost_a_little_more() -> None:
    assert sharing.check(row(latency=timed(1.0, 1.029, 2))) == ()


def test_the_page_holds_every_row_and_miss() -> None:
    bad = row(memory_share=0.5)
    bad = replace(bad, missed=sharing.check(bad))
    dense = sharing.Dense(row().size, 1000, timed(1.0, 1.01, 1))
    text = sharing.as_text([row(), bad], dense, {"cpu": "a processor"})
    assert text.count("| p |") == 2
    assert "Targets missed" in text
    assert "50.0%" in text
    assert "All targets are met" in sharing.as_text([row()], dense, {})


def test_a_record_is_whole_and_readable(tmp_path: Path) -> None:
    written = machine.record(tmp_path / "new", "name", {"a": 1, "b": [1.5, None]}, "text\n")
    assert json.loads(written[0].read_text()) == {"a": 1, "b": [1.5, None]}
    assert written[1].read_text() == "text\n"
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["name.json", "name.md"]


def test_the_machine_is_described() -> None:
    about = machine.describe()
    assert about["cpu"]
    assert "numpy" in str(about["packages"])
    assert isinstance(about["cores"], int)
    assert about["cores"] >= 1


def test_unknown_plans_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        sharing.main(["--out", str(tmp_path), "--layers", "1", "--plans", "nonsense"])
    assert stop.value.code == 2
    assert "nonsense" in capsys.readouterr().err


def test_lazy_weights_are_made_when_asked_for() -> None:
    value = TINY.build().graph.initializers["text.layer.0.intermediate.dense.weight"]
    assert isinstance(value.const_value, ir.LazyTensor)
    assert value.const_value.numpy().shape == (48, 96)


def test_the_slowest_model_gives_the_verdict() -> None:
    def bench(*ratios: float) -> dict[str, Any]:
        return {"latency": [{"threads": threads, "ratio": ratio} for threads, ratio in enumerate(ratios, 1)]}

    good = models.verdict({"small": bench(0.9, 1.01), "large": bench(0.8, 0.7)})
    assert good == "No model is slower than dense by more than 2%: the slowest is small at 2 threads, 1.010."
    bad = models.verdict({"small": bench(0.9, 1.01), "large": bench(1.03, 0.7)})
    assert bad == "A model is slower than dense by more than 2%: the slowest is large at 1 thread, 1.030."


def test_a_plans_parts_have_limits_of_their_own() -> None:
    def part(ratio: float, work: int) -> dict[str, Any]:
        latency = [{"threads": 1, "ratio": ratio, "low": ratio - 0.01, "high": ratio + 0.01}]
        memory = {"model_anonymous": work}
        return {"latency": latency, "multiplications": work, "size": {"unique_bytes": work}, "memory": memory}

    def bench(shared: float, pruned: float, compiled: float) -> dict[str, Any]:
        found = {"dense": part(1.0, 100), "shared": part(shared, 100), "pruned": part(pruned, 60), "compiled": part(compiled, 60)}
        return {**found, "latency": found["compiled"]["latency"]}

    assert models.missed(bench(1.02, 0.63, 0.9)) == []
    (slow,) = models.missed(bench(1.03, 0.6, 0.9))
    assert slow == "latency of shared: 1 thread 1.030 [1.020, 1.040], allowed 1.020"
    (slow,) = models.missed(bench(1.0, 0.64, 0.9))
    assert slow == "latency of pruned: 1 thread 0.640 [0.630, 0.650], allowed 0.630"
    (slow,) = models.missed(bench(1.0, 0.6, 1.05))
    assert slow.startswith("latency of compiled")
    assert models.parts(bench(1.0, 0.61, 0.6)) == [
        "- sharing alone: latency 1 thread 1.000 [0.990, 1.010]; multiplications 1.000",
        "- pruning alone: latency 1 thread 0.610 [0.600, 0.620]; multiplications 0.600",
        "- both: multiplications 0.600",
    ]
