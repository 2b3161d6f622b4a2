"""``inarch quantize``: what it writes, measures and says, and what it refuses. (How weights become int8: tests/runtime.)"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxruntime")

from inarch.compiler.metadata import SHARED
from inarch.frontends.onnx_file import load_model
from inarch.runtime import sharing
from inarch.runtime.sharing import SharedTensor, SharingReport
from inarch.tools import tasks

from tests.tools import deployed
from tests.tools.conftest import Done, Run
from tests.tools.test_hostile import refused

FAST = ("--pairs", "0")


def data(done: Done, code: int = 0) -> Any:
    assert done.code == code, done.err
    document = json.loads(done.out)
    assert document["format"] == "inarch.quantized/1"
    return document


def readers(path: Path) -> dict[str, int]:
    """Shared tensor -> nodes that read it, by the file alone."""
    model = onnx.load(path)
    props = {entry.key: entry.value for entry in model.metadata_props}
    names = json.loads(props[SHARED])
    assert names
    assert set(names) <= {tensor.name for tensor in model.graph.initializer}
    return {name: sum(name in node.input for node in model.graph.node) for name in names}


@pytest.mark.parametrize("to", ["int8", "fp16"])
def test_what_is_shared_stays_shared(to: str, model: Path, compiled: Path, tmp_path: Path, inarch: Run) -> None:
    out = tmp_path / f"{to}.onnx"
    before = compiled.read_bytes()
    found = data(inarch("quantize", compiled, "--to", to, "-o", out, "--against", model, *FAST, "--json"))
    assert compiled.read_bytes() == before
    names = {name: f"{name}_quantized" if to == "int8" else name for name in readers(compiled)}
    assert readers(out) == {names[name]: count for name, count in readers(compiled).items()}
    assert all(tensor["copies"] == 1 for tensor in found["sharing"]["tensors"])
    sizes = {name: onnx.numpy_helper.to_array(t).itemsize for t in onnx.load(out).graph.initializer for name in [t.name]}
    assert {sizes[name] for name in names.values()} == {1 if to == "int8" else 2}
    whole = {
        path: path.stat().st_size + sum(p.stat().st_size for p in tmp_path.glob(f"{path.stem}.*.data"))
        for path in (model, compiled, out)
    }
    assert found["files"] == {"dense": whole[model], "model": whole[compiled], "result": whole[out]}
    assert found["of_dense"] == pytest.approx(whole[out] / whole[model])
    assert 0 < found["outputs"][0]["relative"] < (0.02 if to == "int8" else 0.002)
    assert (found["latency"], found["accuracy"]) == ([], None)


def test_what_is_shown(model: Path, compiled: Path, tmp_path: Path, inarch: Run) -> None:
    done = inarch("quantize", compiled, "--to", "int8", "-o", tmp_path / "int8.onnx", "--against", model)
    assert done.code == 0, done.err
    text = " ".join(done.out.split())
    for part in ("dense", "latency at 1 thread:", "shared tensors", "each stored once", "wrote"):
        assert part in text
    assert all(len(line) <= 80 or "wrote" in line for line in done.out.splitlines())
    done = inarch("quantize", compiled, "--to", "fp16", "-o", tmp_path / "fp16.onnx", *FAST)
    assert "on a CPU, ONNX Runtime casts fp16 weights to fp32" in " ".join(done.out.split())


@pytest.mark.parametrize("to", ["int8", "fp16"])
def test_the_result_can_be_inspected(to: str, compiled: Path, tmp_path: Path, inarch: Run) -> None:
    out = tmp_path / f"{to}.onnx"
    assert inarch("quantize", compiled, "--to", to, "-o", out, *FAST).code == 0
    done = inarch("inspect", out, "--json")
    assert done.code == 0, done.err
    sites = {site["name"]: site["kind"] for site in json.loads(done.out)["sites"]}
    original = {site["name"]: site["kind"] for site in json.loads(inarch("inspect", compiled, "--json").out)["sites"]}
    # Products of integers are no sites; fp16 is a model like any other.
    assert sites == (original if to == "fp16" else {})
    kept, props = load_model(compiled).metadata_props, load_model(out).metadata_props
    assert {key: props[key] for key in ("inarch.plan", "inarch.cost", "inarch.stored")} == {
        key: kept[key] for key in ("inarch.plan", "inarch.cost", "inarch.stored")
    }
    assert json.loads(props["inarch.quantised"])["to"] == to


def test_verifying_a_quantised_model_says_so(model: Path, plan: Path, compiled: Path, tmp_path: Path, inarch: Run) -> None:
    out = tmp_path / "int8.onnx"
    assert inarch("quantize", compiled, "--to", "int8", "-o", out, *FAST).code == 0
    done = inarch("verify", model, plan, out)
    assert done.code == 1
    assert "it was quantised to int8: verify it as it was before that" in " ".join(done.out.split())
    assert "quantised" not in inarch("verify", model, plan, compiled).out


def test_a_quantised_model_replaces_another_whole(compiled: Path, tmp_path: Path, inarch: Run) -> None:
    out = tmp_path / "out.onnx"
    for to in ("fp16", "int8", "int8"):
        assert inarch("quantize", compiled, "--to", to, "-o", out, *FAST).code == 0
    assert len(list(tmp_path.glob("out.*.data"))) <= 1
    assert not list(tmp_path.glob("*.partial"))
    assert readers(out)


def test_kept_weights(compiled: Path, tmp_path: Path, inarch: Run) -> None:
    for to, dtype in (("int8", np.float32), ("fp16", np.float32)):
        out = tmp_path / f"{to}.onnx"
        assert inarch("quantize", compiled, "--to", to, "-o", out, "--keep", "segment*", *FAST).code == 0
        stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(out).graph.initializer}
        assert readers(out) == readers(compiled)
        assert all(stored[name].dtype == dtype for name in readers(out))


def test_latency_is_of_interleaved_pairs(compiled: Path, tmp_path: Path, inarch: Run) -> None:
    found = data(inarch("quantize", compiled, "--to", "int8", "-o", tmp_path / "o.onnx", "--threads", "1,2", "--json"))
    assert [(item["threads"], item["pairs"]) for item in found["latency"]] == [(1, 30), (2, 30)]
    assert all(item["low"] <= item["ratio"] <= item["high"] for item in found["latency"])


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that answers questions, of which there are a few."""
    pytest.importorskip("PIL")
    monkeypatch.setattr(tasks, "_DRAWN", {"level": "easy", "held_out": 30, "judged": 2, "seed": 0})
    return deployed.saved(deployed.mdetr(answers=28), tmp_path / "model.onnx")


def test_accuracy_beside(judged: Path, tmp_path: Path, inarch: Run) -> None:
    arguments = ["quantize", judged, "--to", "int8", "-o", tmp_path / "o.onnx", "--task", "scenes/vqa", *FAST]
    found = data(inarch(*arguments, "--json"))["accuracy"]
    straight = json.loads(inarch("evaluate", tmp_path / "o.onnx", "--against", judged, "--task", "scenes/vqa", "--json").out)
    assert found["comparison"] == straight["comparison"]
    assert (found["model"]["model"], found["against"]["model"], found["count"]) == ("o.onnx", "model.onnx", 60)
    assert "samples changed by accuracy" in inarch(*arguments).out
    assert inarch(*arguments, "--at-most-lost", "100").code == 0


def test_losing_too_much_fails(judged: Path, tmp_path: Path, inarch: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from inarch.runtime import accuracy

    real = accuracy.compare

    def worse(first: Any, second: Any) -> Any:
        second.scores["accuracy"][:] = 0
        first.scores["accuracy"][:] = 1
        return real(first, second)

    monkeypatch.setattr(accuracy, "compare", worse)
    arguments = ["quantize", judged, "--to", "int8", "-o", tmp_path / "o.onnx", "--task", "scenes/vqa", *FAST]
    done = inarch(*arguments, "--at-most-lost", "50")
    assert done.code == 1
    assert "FAILED: up to 100.00 points of accuracy may be lost" in " ".join(done.out.split())


def test_sharing_that_does_not_hold_fails(compiled: Path, tmp_path: Path, inarch: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor that is packed twice is said; one that is there twice fails."""
    packed = SharedTensor("w", 100, 1, {"MatMulIntegerToFloat[1]": 1, "DynamicQuantizeMatMul[1]": 1}, False, "two kinds")
    twice = SharedTensor("w", 100, 2, {"MatMul[1]": 2}, False, "ONNX Runtime keeps 2 copies")
    for tensor, code, text in (
        (packed, 0, "packs 1 (100 B) once for each of two kinds"),
        (twice, 1, "w: ONNX Runtime keeps 2 copies"),
    ):
        report = SharingReport((tensor,), 100, 100, True)
        monkeypatch.setattr(sharing, "check_sharing", lambda *_, report=report, **__: report)
        done = inarch("quantize", compiled, "--to", "int8", "-o", tmp_path / "o.onnx", *FAST)
        assert done.code == code
        assert text in " ".join(done.out.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["MODEL", "--to", "fp16", "-o", "o.onnx", "--per-tensor"], ["--per-tensor", "for int8 alone"]),
        (["MODEL", "--to", "int8", "-o", "MODEL"], ["this is a file that is read"]),
        (["MODEL", "--to", "int8", "-o", "nowhere/o.onnx"], ["nowhere"]),
        (["nowhere.onnx", "--to", "int8", "-o", "o.onnx"], ["nowhere.onnx"]),
        (["MODEL", "--to", "int8", "-o", "o.onnx", "--at-most-lost", "1"], ["accuracy is not measured"]),
        (["MODEL", "--to", "int8", "-o", "o.onnx", "--keep", "*"], ["nothing to quantise"]),
        (["MODEL", "--to", "int8", "-o", "o.onnx", "--task", "nosuch"], ["there is no task 'nosuch'"]),
        (["MODEL", "--to", "int8", "-o", "o.onnx", "--task", "scenes/vqa"], ["MODEL", "nothing that scenes/vqa gives"]),
        (["MODEL", "--to", "int8", "-o", "o.onnx", "--provider", "abacus"], ["no provider 'abacus'"]),
        (["MODEL", "--to", "int8", "-o", "o.onnx", "--threads", "x"], ["is not a list of thread counts"]),
        (["MODEL", "--to", "int8", "-o", "o.onnx", "--pairs", "3"], ["3 pairs are too few"]),
        (["MODEL", "--to", "int8", "-o", "o.onnx", "--inputs", "nowhere.npz"], ["nowhere.npz"]),
    ],
)
def test_what_is_refused(arguments: list[str], words: list[str], model: Path, tmp_path: Path, inarch: Run) -> None:
    places = {"MODEL": str(model), "o.onnx": str(tmp_path / "o.onnx"), "nowhere/o.onnx": str(tmp_path / "nowhere" / "o.onnx")}
    said = [places.get(word, word) for word in words]
    refused(inarch, tmp_path, ["quantize", *(places.get(part, part) for part in arguments)], *said)


def test_a_model_is_quantised_once(compiled: Path, tmp_path: Path, inarch: Run) -> None:
    assert inarch("quantize", compiled, "--to", "fp16", "-o", tmp_path / "half.onnx", *FAST).code == 0
    for to in ("int8", "fp16"):
        arguments: list[str | Path] = ["quantize", tmp_path / "half.onnx", "--to", to, "-o", tmp_path / "o.onnx"]
        refused(inarch, tmp_path, arguments, "fp16 already" if to == "int8" else "no weight of the model is fp32")


def test_help_explains_every_option(inarch: Run) -> None:
    done = inarch("quantize", "--help")
    assert done.code == 0
    assert all(len(line) <= 80 for line in done.out.splitlines())
    assert "--at-most-lost" in done.out
