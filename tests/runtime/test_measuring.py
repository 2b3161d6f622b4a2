"""Latency, memory and size: what is reported is what was measured. Nothing here depends on how fast the machine is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from inarch.runtime import latency
from inarch.runtime.inputs import Case
from inarch.runtime.latency import measure_latency, summarise
from inarch.runtime.memory import measure_memory
from inarch.runtime.session import SessionOptions
from inarch.runtime.size import PLANNED_KEY, file_bytes, measure_size
from inarch.structure.errors import RuntimeFailure

from tests.runtime.handmade import Builder, encoder

CASE = Case("three words", {"input_ids": np.array([[1, 2, 3]]), "attention_mask": np.ones((1, 3), np.int64)})


def test_the_ratio_and_its_interval() -> None:
    rng = np.random.default_rng(0)
    dense = 10 + rng.random(60)
    report = summarise(np.stack([dense, dense * 0.5], axis=1), 1, "x")
    assert report.ratio == pytest.approx(0.5)
    assert report.low <= report.ratio <= report.high
    assert report.high - report.low < 1e-9, "what slows both runs of a pair alike does not widen the interval"
    assert report.dense.median == pytest.approx(float(np.median(dense)))
    assert report.dense.p95 == pytest.approx(float(np.quantile(dense, 0.95)))
    apart = summarise(np.stack([dense, rng.permutation(dense)], axis=1), 1, "x")
    assert apart.low < 1 < apart.high
    assert apart.to_json()["pairs"] == 60


def test_pairs_are_interleaved_and_alternate(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = encoder(0).model, encoder(1).model
    order: list[str] = []
    threads: list[int] = []

    class Watched:
        def __init__(self, model: ir.Model, options: SessionOptions) -> None:
            self.name = "A" if model is a else "B"
            threads.append(options.threads)

        def run(self, feeds: object) -> None:
            order.append(self.name)

        def __enter__(self) -> Watched:
            return self

        def __exit__(self, *unused: object) -> None:
            """Nothing was opened."""

    monkeypatch.setattr(latency, "Session", Watched)
    reports = measure_latency(a, b, CASE, threads=(1, 2), pairs=30, warm_up=2)
    assert [report.threads for report in reports] == [1, 2]
    assert threads == [1, 1, 2, 2]
    assert "".join(order) == 2 * ("AABB" + "ABBA" * 15)


def test_latency_of_real_sessions() -> None:
    model = encoder().model
    (report,) = measure_latency(model, model, CASE, threads=(1,), pairs=30)
    assert report.pairs == 30
    assert 0 < report.dense.median <= report.dense.p95
    json.dumps(report.to_json())
    with pytest.raises(RuntimeFailure, match="too few"):
        measure_latency(model, model, CASE, pairs=5)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is measured on Linux alone")
def test_memory_grows_with_the_model() -> None:
    reports = []
    for megabytes in (1, 33):
        make = Builder(np.random.default_rng(0))
        x = ir.Value(name="file", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", 512]))
        out = x
        for number in range(megabytes):
            out = make.op("MatMul", out, make.param(f"w{number}", np.full((512, 512), number + 1, np.float32)))
        out.type, out.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["n", 512])
        graph = ir.Graph([x], [out], nodes=make.nodes, initializers=list(make.params.values()), opset_imports={"": 20}, name="g")
        reports.append(measure_memory(ir.Model(graph, ir_version=10), Case("row", {"file": np.zeros((1, 512), np.float32)})))
    small, large = reports
    assert 28 << 20 < large.model_anonymous - small.model_anonymous < 80 << 20
    for report in reports:
        assert report.before.anonymous < report.loaded.anonymous <= report.peak_anonymous
        assert report.ran.rss <= report.peak_rss
        assert report.loaded.pss <= report.loaded.rss
        json.dumps(report.to_json())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is measured on Linux alone")
def test_a_model_that_does_not_run_in_the_probe_is_refused_with_orts_reason() -> None:
    with pytest.raises(RuntimeFailure, match=r"could not be measured: .*attention_mask"):
        measure_memory(encoder().model, Case("half", {"input_ids": np.array([[1, 2]])}))


def test_sizes_count_a_shared_tensor_once_and_a_copy_twice(tmp_path: Path) -> None:
    make = Builder(np.random.default_rng(0))
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", 8]))
    one = make.weight("one", 8, 8)
    tensor = one.const_value
    assert tensor is not None
    out = make.op("MatMul", make.op("Relu", make.op("MatMul", x, one)), one)
    out = make.op("MatMul", make.op("Relu", out), make.param("again", tensor.numpy().copy()))
    out = make.op("Reshape", out, make.ints(-1, 8))
    out.type, out.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["n", 8])
    graph = ir.Graph([x], [out], nodes=make.nodes, initializers=list(make.params.values()), opset_imports={"": 20}, name="g")
    model = ir.Model(graph, ir_version=10, metadata_props={PLANNED_KEY: "77"})
    path = tmp_path / "m.onnx"
    ir.save(model, path, external_data="m.data", size_threshold_bytes=16)
    report = measure_size(path)
    assert (report.stored, report.unique, report.planned) == (128, 64, 77)
    assert report.tensor_bytes == 2 * 256 + 16
    assert report.unique_bytes == 256 + 16
    assert report.file_bytes == file_bytes(path) == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert report.optimised_bytes >= 2 * 256
    assert measure_size(path, planned=5).planned == 5
