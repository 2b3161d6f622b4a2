"""``inarch bench`` beyond two models on one size: parts of a plan, sweeps, and providers. No time is looked at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inarch.runtime import latency, placement, providers
from inarch.runtime.placement import Placement
from inarch.structure.cost import DEFAULT_COST, save_cost
from inarch.structure.errors import InarchError
from inarch.tools import bench

from tests.tools.conftest import Run

GPU = "WebGpuExecutionProvider"


def test_a_plans_parts_are_measured_beside_it(inarch: Run, model: Path, plan: Path, compiled: Path) -> None:
    done = inarch("bench", model, compiled, "--threads", "1", "--parts", plan, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    stored = {name: found[name]["size"]["stored"] for name in ("dense", "pruned", "shared", "compiled")}
    assert (
        stored["compiled"] < min(stored["pruned"], stored["shared"]) < max(stored["pruned"], stored["shared"]) < stored["dense"]
    )
    saved = {name: stored["dense"] - count for name, count in stored.items()}
    assert saved["compiled"] <= saved["pruned"] + saved["shared"]
    for name in ("pruned", "shared"):
        assert found[name]["memory"]["model_anonymous"] is not None
        assert [item["threads"] for item in found[name]["latency"]] == [1]
    assert found["latency"][0]["dense"] == found["pruned"]["latency"][0]["dense"], "all of them in the same rounds"
    table = inarch("bench", model, compiled, "--threads", "1", "--parts", plan).out
    assert all(len(line) <= 80 for line in table.splitlines())
    for word in ("dense", "pruned", "shared", "both", "pruned, 1 thread"):
        assert word in table


def test_parts_have_to_be_those_of_the_compiled_model(inarch: Run, model: Path, compiled: Path, tmp_path: Path) -> None:
    other, cost = tmp_path / "other.json", tmp_path / "cost.json"
    assert inarch("plan", "make", model, "--keep", "0.8", "--method", "uniform", "--out", other).code == 0
    done = inarch("bench", model, compiled, "--parts", other)
    assert done.code == 2
    assert "was not compiled with this plan" in done.err
    mine = DEFAULT_COST.model_copy(update={"balanced": DEFAULT_COST.latency})
    save_cost(mine, cost)
    assert inarch("compile", model, other, "--cost", cost, "--out", tmp_path / "own.onnx").code == 0
    done = inarch("bench", model, tmp_path / "own.onnx", "--parts", other)
    assert done.code == 2
    assert "was compiled with another cost table" in done.err


def test_batches_and_lengths_are_swept(inarch: Run, model: Path, compiled: Path) -> None:
    done = inarch("bench", model, compiled, "--threads", "1", "--batches", "1,3", "--lengths", "2,5", "--json")
    assert done.code == 0, done.err
    cases = [item["case"] for item in json.loads(done.out)["latency"]]
    assert cases == ["batch 1, length 2", "batch 1, length 5", "batch 3, length 2", "batch 3, length 5"]
    done = inarch("bench", model, compiled, "--images", "64")
    assert done.code == 2
    assert "axis for image size" in done.err
    done = inarch("bench", model, compiled, "--batches", "1,many")
    assert done.code == 2
    assert "--batches" in done.err


def test_a_provider_that_is_not_there_is_refused_with_what_is(inarch: Run, model: Path, plan: Path, compiled: Path) -> None:
    for command in (("bench", model, compiled), ("verify", model, plan, compiled)):
        done = inarch(*command, "--provider", "cuda")
        assert done.code == 2
        assert "has no provider 'cuda'; it has" in done.err
        assert "onnxruntime-gpu" in done.err


def test_the_cpu_by_its_short_name(inarch: Run, model: Path, plan: Path, compiled: Path) -> None:
    found = json.loads(inarch("verify", model, plan, compiled, "--provider", "CPU", "--json").out)
    assert found["ok"]
    assert found["provider"] == "CPUExecutionProvider"
    assert found["placement"] is None


def test_what_another_provider_ran_is_noted_and_a_program_is_not_timed(
    model: Path, compiled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """WebGPU over a software driver, played by the CPU."""

    def placed(path: object, feeds: object, provider: str) -> Placement:
        return Placement(GPU, {GPU: {"MatMul": 3}, "CPUExecutionProvider": {"MatMul": 1, "Shape": 4}})

    monkeypatch.setattr(providers, "resolve_provider", lambda name: "CPUExecutionProvider")
    monkeypatch.setattr(providers, "CPU", "another provider")
    monkeypatch.setattr(providers, "software_device", lambda name: "WebGPU runs on the CPU")
    monkeypatch.setattr(placement, "measure_placement", placed)
    monkeypatch.setattr(latency, "measure_side_by_side", lambda *unused, **more: pytest.fail("it was timed"))
    found = bench.measure(model, compiled, pairs=30, provider="webgpu", report=lambda *step: None)
    assert found.compiled.latency == ()
    assert "latency is reported from a real GPU alone: WebGPU runs on the CPU" in found.notes
    assert "dense: 3 of 8 node runs on webgpu, 5 on cpu" in found.notes
    assert any(note.startswith("WARNING: compiled: 1 of 4 heavy operators (25%)") for note in found.notes)
    data = json.loads(json.dumps(bench.as_data(found)))
    assert data["latency"] == []
    assert data["compiled"]["placement"]["counts"] == {GPU: 3, "CPUExecutionProvider": 5}
    bench.show(found)
    assert "WARNING" in capsys.readouterr().out


def test_fp16_on_a_cpu_is_said_to_be_for_gpus(inarch: Run, model: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.onnx"
    assert inarch("quantize", model, "--to", "fp16", "--out", half, "--pairs", "0").code == 0
    notes = json.loads(inarch("bench", half, half, "--threads", "1", "--json").out)["notes"]
    assert notes == ["fp16 files are for GPUs: the CPU casts their weights, those that are shared in every run"]
    notes = json.loads(inarch("bench", model, half, "--threads", "1", "--json").out)["notes"]
    assert "weights are fp32 in dense, fp16 in compiled" in notes


@pytest.mark.parametrize("text", ["", "1,", "0", "a", "1;2", "-1"])
def test_sizes_are_positive_integers(text: str) -> None:
    with pytest.raises(InarchError, match=r"--images: .* is not a list of sizes"):
        bench.numbers(text, "--images")


def test_sizes_in_the_users_order() -> None:
    assert bench.numbers("4,1,16", "--batches") == (4, 1, 16)
    assert bench.thread_counts("1,2") == (1, 2)
    with pytest.raises(InarchError, match="100000 threads are more than"):
        bench.thread_counts("1,100000")
