"""Latency, memory and size: what is reported is what was measured. Nothing here depends on how fast the machine is."""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from inarch.runtime import latency, memory_probe
from inarch.runtime.inputs import Case
from inarch.runtime.latency import measure_latency, measure_side_by_side, order_of, summarise
from inarch.runtime.memory import Footprint, MemoryReport, measure_memory
from inarch.runtime.precision import precision_of, stored_in
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


@dataclass
class Watched:
    """Sessions that note what is done with them, in one list."""

    order: list[str]
    names: dict[int, str]
    threads: list[int] = field(default_factory=list)

    def __call__(self, model: ir.Model, options: SessionOptions) -> WatchedSession:
        self.threads.append(options.threads)
        return WatchedSession(self, self.names[id(model)])


@dataclass
class WatchedSession:
    """One of them; bound, it is itself, in small letters."""

    owner: Watched
    name: str

    def run(self, feeds: object = None) -> None:
        self.owner.order.append(self.name)

    def bind(self, feeds: object) -> WatchedSession:
        return WatchedSession(self.owner, self.name.lower())

    def __enter__(self) -> WatchedSession:
        return self

    def __exit__(self, *unused: object) -> None:
        self.owner.order.append(f"-{self.name}")


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> tuple[list[ir.Model], Watched]:
    models = [encoder(seed).model for seed in range(3)]
    seen = Watched([], {id(model): name for model, name in zip(models, "ABC", strict=True)})
    monkeypatch.setattr(latency, "Session", seen)
    return models, seen


def test_pairs_are_interleaved_and_alternate(watched: tuple[list[ir.Model], Watched]) -> None:
    (a, b, _), seen = watched
    reports = measure_latency(a, b, CASE, threads=(1, 2), pairs=32, warm_up=2)
    assert [report.threads for report in reports] == [1, 2]
    assert seen.threads == [1, 1, 2, 2]
    assert "".join(seen.order) == 2 * ("AABB" + "ABBABAAB" * 8 + "-B-A")


def test_several_models_are_timed_in_one_round(watched: tuple[list[ir.Model], Watched]) -> None:
    (a, b, c), seen = watched
    progress: list[tuple[int, int]] = []
    found = measure_side_by_side(a, (b, c), CASE, rounds=30, warm_up=0, progress=lambda *step: progress.append(step))
    assert [len(reports) for reports in found] == [1, 1]
    assert "".join(seen.order) == ("ABC" + "BCA" + "CAB" + "CBA" + "ACB" + "BAC") * 5 + "-C-B-A"
    assert progress[-1] == (30, 30)
    assert all(reports[0].dense == found[0][0].dense for reports in found)


def test_every_model_has_every_place_equally_often() -> None:
    rounds = [order_of(number, 4) for number in range(8)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in rounds)
    for place in range(4):
        assert sorted(order[place] for order in rounds) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_gpu_is_warmed_up_for_longer_and_its_inputs_are_bound(watched: tuple[list[ir.Model], Watched]) -> None:
    (a, b, _), seen = watched
    measure_latency(a, b, CASE, threads=(0,), providers=("CUDAExecutionProvider",))
    assert "".join(seen.order) == "a" * 10 + "b" * 10 + ("abbabaab" * 8)[:60] + "-b-a-B-A", "bindings end first"


def test_a_program_that_acts_as_a_gpu_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "software_device", lambda provider: "a software driver")
    with pytest.raises(RuntimeFailure, match="latency is reported from a real GPU alone: a software driver"):
        measure_latency(encoder().model, encoder().model, CASE, providers=("WebGpuExecutionProvider",))


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


class Driver:
    """A CUDA driver with 1,000 bytes, of which each look at it takes 100 more; ``broken`` names a call that fails."""

    def __init__(self, broken: str = "") -> None:
        self.broken, self.looks, self.calls = broken, 0, list[str]()

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name == "cuMemGetInfo_v2":
                self.looks += 1
                for reference, value in zip(arguments, (1000 - 100 * self.looks, 1000), strict=True):
                    reference._obj.value = value
            return 999 if name == self.broken else 0

        return call


def test_the_cuda_driver_is_asked_for_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    device = memory_probe.DeviceMemory()
    assert driver.calls == ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent"]
    assert [device.used(), device.used()] == [100, 200]
    assert not device.why_not


@pytest.mark.parametrize("missing", [True, False])
def test_why_a_gpus_memory_is_not_known_is_told(monkeypatch: pytest.MonkeyPatch, missing: bool) -> None:
    def find(name: str) -> Driver:
        if missing:
            raise OSError(f"{name}: no such file")
        return Driver("cuInit")

    monkeypatch.setattr(ctypes, "CDLL", find)
    device = memory_probe.DeviceMemory()
    assert device.used() is None
    assert ("libcuda.so.1: no such file" if missing else "cuInit returned 999") in device.why_not


def test_what_a_model_takes_of_a_gpu() -> None:
    before, loaded, ran = (Footprint(10, 10, 10, device) for device in (400, 1000, 1100))
    report = MemoryReport(before, loaded, ran, peak_anonymous=20, peak_rss=20, threads=1, case="x")
    assert report.model_device == 600
    assert report.to_json()["model_device"] == 600
    assert replace(report, before=Footprint(10, 10, 10)).model_device is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is measured on Linux alone")
def test_bf16_goes_into_the_probe_by_its_bits() -> None:
    x, y = (ir.Value(name=name, type=ir.TensorType(ir.DataType.BFLOAT16), shape=ir.Shape(["n", 2])) for name in "xy")
    wide = ir.node("Cast", [x], {"to": ir.DataType.FLOAT})
    back = ir.Node("", "Cast", list(wide.outputs), [ir.AttrInt64("to", int(ir.DataType.BFLOAT16))], outputs=[y])
    graph = ir.Graph([x], [y], nodes=[wide, back], opset_imports={"": 20}, name="g")
    report = measure_memory(ir.Model(graph, ir_version=10), Case("ones", {"x": np.ones((3, 2), ml_dtypes.bfloat16)}))
    assert report.ran.rss > 0
    assert report.model_device is None
    assert not report.device_unknown


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


def test_quantised_matrices_are_counted_and_their_zero_points_are_not() -> None:
    make = Builder(np.random.default_rng(0))
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", 8]))
    weight = make.param("weight", np.ones((8, 4), np.int8))
    scales, zeros = make.param("scales", np.ones(4, np.float32)), make.param("zeros", np.zeros(4, np.int8))
    out = make.op("MatMul", x, make.op("DequantizeLinear", weight, scales, zeros, axis=1))
    out.type, out.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["n", 4])
    graph = ir.Graph([x], [out], nodes=make.nodes, initializers=list(make.params.values()), opset_imports={"": 20}, name="g")
    model = ir.Model(graph, ir_version=10)
    assert measure_size(model).stored == 8 * 4 + 4
    assert (stored_in(model), precision_of(model).name) == ("int8", "fp32")
