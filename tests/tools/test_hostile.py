"""Hostile input as a user meets it: one clear error, exit code 2, no traceback, nothing half written, the input untouched."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.tools.conftest import HIDDEN, WIDTH, Done, Run, two_ffns

Content = dict[str, tuple[int, bytes]]


def content(folder: Path) -> Content:
    """Every file below a folder: its size and its first and last bytes, which is enough to see a change and cheap for holes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                head = file.read(1 << 20)
                file.seek(-min(path.stat().st_size, 1 << 20), os.SEEK_END)
                found[str(path.relative_to(folder))] = (path.stat().st_size, head + file.read())
    return found


def refused(run: Run, folder: Path, arguments: list[str | Path], *words: str) -> None:
    """The command refuses with one error that says ``words``, as text and as JSON, and leaves the folder as it was."""
    before = content(folder)
    for options in ([], ["--json"]):
        done = run(*arguments, *options)
        assert done.code == 2, done.err
        assert "Traceback" not in done.err
        assert done.out == ""
        if options:
            said = " ".join(str(part) for part in json.loads(done.err)["error"].values())
        else:
            assert done.err.count("error:") == 1
            said = " ".join(done.err.split())
        for word in words:
            assert word in said, said
        assert content(folder) == before


def compiling(model: Path, plan: Path) -> list[str | Path]:
    return ["compile", model, plan, "-o", model.with_name("out.onnx")]


def external(path: Path, **entries: str) -> Path:
    """The two FFNs with their weights in a file beside it; ``entries`` replace what is said about the first large one."""
    proto = two_ffns()
    onnx.save(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=1024)
    if entries:
        proto = onnx.load(path, load_external_data=False)
        tensor = next(t for t in proto.graph.initializer if t.data_location == TensorProto.EXTERNAL)
        for entry in tensor.external_data:
            entry.value = entries.get(entry.key, entry.value)
        path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize("part", [0, 1, 17, 0.3, 0.9, -1])
def test_a_truncated_file(inarch: Run, model: Path, plan: Path, part: float) -> None:
    whole = model.read_bytes()
    model.write_bytes(whole[: int(part * len(whole)) if 0 < part < 1 else int(part)])
    refused(inarch, model.parent, ["inspect", model], "model.onnx")
    refused(inarch, model.parent, compiling(model, plan), "model.onnx")
    refused(inarch, model.parent, ["plan", "make", model, "--keep", "0.6", "-o", model.with_name("p.json")], "model.onnx")


@pytest.mark.parametrize("size", [0, 40_000])
def test_truncated_external_data(inarch: Run, tmp_path: Path, plan: Path, size: int) -> None:
    path = external(tmp_path / "external.onnx")
    os.truncate(tmp_path / "weights.bin", size)
    refused(inarch, tmp_path, compiling(path, plan), "weights.bin")


def test_missing_external_data(inarch: Run, tmp_path: Path, plan: Path) -> None:
    path = external(tmp_path / "external.onnx")
    (tmp_path / "weights.bin").unlink()
    refused(inarch, tmp_path, ["inspect", path], "weights.bin")
    refused(inarch, tmp_path, compiling(path, plan), "weights.bin")


@pytest.mark.parametrize("location", ["../outside.bin", "/etc/hostname", "sub/../../outside.bin", ""])
def test_a_path_that_leaves_the_models_folder(inarch: Run, tmp_path: Path, plan: Path, location: str) -> None:
    (tmp_path / "inner").mkdir()
    path = external(tmp_path / "inner" / "external.onnx", location=location)
    (tmp_path / "outside.bin").write_bytes((tmp_path / "inner" / "weights.bin").read_bytes())
    refused(inarch, tmp_path, compiling(path, plan), "external.onnx")


@pytest.mark.parametrize("dtype", [TensorProto.INT32, TensorProto.INT8, TensorProto.STRING])
def test_a_weight_of_another_dtype(inarch: Run, model: Path, plan: Path, dtype: int) -> None:
    """The file is no valid graph any more, or its FFN no site: in no case is the plan carried out on it."""
    proto = onnx.load(model)
    tensor = next(t for t in proto.graph.initializer if t.name == "layer.0.up.weight")
    if dtype == TensorProto.STRING:
        values = TensorProto(name=tensor.name, data_type=dtype, dims=tensor.dims, string_data=[b"w"] * (WIDTH * HIDDEN))
    else:
        array = np.ones((WIDTH, HIDDEN), np.int32 if dtype == TensorProto.INT32 else np.int8)
        values = numpy_helper.from_array(array, tensor.name)
    tensor.CopyFrom(values)
    onnx.save(proto, model)
    refused(inarch, model.parent, compiling(model, plan), "layer.0")


def test_inputs_of_another_dtype(inarch: Run, model: Path, plan: Path, compiled: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=np.ones((1, 2, WIDTH), np.int64))
    refused(inarch, tmp_path, ["verify", model, plan, compiled, "--inputs", tmp_path / "in.npz"], "x", "int64")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_or_infinity_in_a_weight_that_changes(inarch: Run, model: Path, plan: Path, value: float) -> None:
    proto = onnx.load(model)
    tensor = next(t for t in proto.graph.initializer if t.name == "layer.1.up.weight")
    array = numpy_helper.to_array(tensor).copy()
    array[3, :] = value
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, model)
    refused(inarch, model.parent, compiling(model, plan), "layer.1.up.weight")


def test_infinity_in_a_weight_that_does_not_change(inarch: Run, model: Path, plan: Path) -> None:
    proto = onnx.load(model)
    mask = numpy_helper.from_array(np.full((1, 1, WIDTH), -np.inf, np.float32), "mask")
    proto.graph.initializer.append(mask)
    proto.graph.node.append(helper.make_node("Max", ["y", "mask"], ["z"]))
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", "tokens", WIDTH]))
    onnx.save(proto, model)
    assert inarch(*compiling(model, plan)).code == 0


def test_a_cyclic_graph(inarch: Run, model: Path, plan: Path) -> None:
    proto = onnx.load(model)
    proto.graph.node[0].input[0] = proto.graph.node[-1].output[0]
    model.write_bytes(proto.SerializeToString())
    refused(inarch, model.parent, ["inspect", model], "cycle")
    refused(inarch, model.parent, compiling(model, plan), "cycle")


def test_a_graph_of_100_000_nodes(inarch: Run, tmp_path: Path) -> None:
    """Two FFNs with a chain of 100,000 nodes before them, deeper than any recursion."""
    proto = two_ffns()
    chain = [helper.make_node("Neg", ["x" if i == 0 else f"n{i - 1}"], [f"n{i}"]) for i in range(100_000)]
    body = list(proto.graph.node)
    for node in body:
        node.input[:] = [chain[-1].output[0] if name == "x" else name for name in node.input]
    del proto.graph.node[:]
    proto.graph.node.extend([*chain, *body])
    path, plan = tmp_path / "long.onnx", tmp_path / "long.json"
    onnx.save(proto, path)
    assert "2 sites" in inarch("inspect", path).out
    assert inarch("plan", "make", path, "--keep", "0.6", "--method", "similarity", "-o", plan).code == 0
    done = inarch(*compiling(path, plan), "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["stored_parameters"] < json.loads(done.out)["parameters"]
    assert len(onnx.load(tmp_path / "out.onnx").graph.node) > 100_000


def test_a_plan_for_another_model(inarch: Run, model: Path, plan: Path, tmp_path: Path) -> None:
    proto = two_ffns()
    for tensor in proto.graph.initializer:
        if tensor.name.startswith("layer.1") and HIDDEN in tensor.dims:
            array = numpy_helper.to_array(tensor)
            narrow = array[..., :128] if tensor.dims[-1] == HIDDEN else array[:128]
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(narrow), tensor.name))
    other = tmp_path / "other.onnx"
    onnx.save(proto, other)
    refused(inarch, tmp_path, compiling(other, plan), "another model")


Change = Callable[[dict[str, object]], None]


def _first(document: dict[str, object]) -> dict[str, object]:
    sites = document["sites"]
    assert isinstance(sites, dict)
    name = next(iter(sites))
    axis: dict[str, object] = sites[name]["axes"]["hidden"]
    return axis


MALFORMED: dict[str, tuple[Change, str]] = {
    "unknown key": (lambda d: d.update(extra=1), "extra"),
    "wrong format": (lambda d: d.update(format="inarch.plan/9"), "format"),
    "no sites": (lambda d: d.__delitem__("sites"), "sites"),
    "out of range": (lambda d: _first(d).update(keep="0-999"), "keep"),
    "no range": (lambda d: _first(d).update(keep="7-3"), "keep"),
    "other size": (lambda d: _alone(d).update(size=255, keep="0-7", share=[]), "255"),
    "unknown base": (
        lambda d: _alone(d).update(keep="0-255", share=[{"base": "nowhere", "units": "0", "base_units": "0"}]),
        "nowhere",
    ),
    "unknown site": (lambda d: _sites(d).update(nowhere={"kind": "ffn", "axes": {"hidden": {"size": 256}}}), "nowhere"),
    "pruned and shared": (lambda d: _first(d).update(share=[{"base": "layer.1.ffn", "units": "255", "base_units": "0"}]), "255"),
    "shared with itself": (
        lambda d: _alone(d).update(keep="0-255", share=[{"base": "layer.0.ffn", "units": "0", "base_units": "1"}]),
        "layer.0.ffn",
    ),
}


def _sites(document: dict[str, object]) -> dict[str, object]:
    sites = document["sites"]
    assert isinstance(sites, dict)
    return sites


def _alone(document: dict[str, object]) -> dict[str, object]:
    """The first site's axis; all other sites are dropped."""
    axis, sites = _first(document), _sites(document)
    document["sites"] = {name: sites[name] for name in list(sites)[:1]}
    return axis


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_plan(inarch: Run, model: Path, plan: Path, name: str) -> None:
    change, word = MALFORMED[name]
    document = json.loads(plan.read_text())
    change(document)
    plan.write_text(json.dumps(document))
    refused(inarch, model.parent, compiling(model, plan), word)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_a_full_disk_while_writing(inarch: Run, model: Path, plan: Path) -> None:
    with largest_file(16_384):
        refused(inarch, model.parent, compiling(model, plan), "out.onnx")
        refused(inarch, model.parent, ["plan", "make", model, "--keep", "1", "-o", "/dev/full"], "/dev/full")


def test_a_full_disk_under_the_temporary_files(inarch: Run, model: Path, plan: Path, compiled: Path) -> None:
    with largest_file(4_096):
        refused(inarch, model.parent, ["verify", model, plan, compiled], "temporary")


def test_a_full_disk_leaves_the_old_model(inarch: Run, model: Path, plan: Path, compiled: Path) -> None:
    before = content(model.parent)
    with largest_file(16_384):
        assert inarch("compile", model, plan, "-o", compiled).code == 2
    assert content(model.parent) == before


def start(*arguments: str | Path, **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "inarch", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | environment)


def test_a_killed_process_leaves_nothing_that_looks_like_a_model(inarch: Run, plan: Path, tmp_path: Path) -> None:
    """Killed as soon as something appears in the output's folder; the next run cleans up and succeeds."""
    model, out = tmp_path / "model.onnx", tmp_path / "out" / "c.onnx"
    out.parent.mkdir()
    before = content(tmp_path)
    process = start("compile", model, plan, "-o", out)
    while process.poll() is None and not any(out.parent.iterdir()):
        time.sleep(0.001)
    process.kill()
    process.communicate()
    if out.exists():  # it was done before it was killed: then the pair is whole
        assert inarch("verify", model, plan, out).code == 0
    assert {name: kept for name, kept in content(tmp_path).items() if not name.startswith("out/")} == before
    assert inarch("compile", model, plan, "-o", out).code == 0
    assert inarch("verify", model, plan, out).code == 0
    assert not [path.name for path in out.parent.iterdir() if path.name.endswith(".partial")]


def test_a_process_that_is_asked_to_end_cleans_up(inarch: Run, plan: Path, tmp_path: Path) -> None:
    model, out, temporary = tmp_path / "model.onnx", tmp_path / "out" / "c.onnx", tmp_path / "tmp"
    for folder in (out.parent, temporary):
        folder.mkdir()
    assert inarch("compile", model, plan, "-o", out).code == 0
    before = content(tmp_path)
    process = start("verify", model, plan, out, TMPDIR=str(temporary))
    while process.poll() is None and not list(temporary.glob("inarch*")):
        time.sleep(0.001)
    process.terminate()
    process.communicate()
    assert process.returncode in (143, 0)  # 0: it was done before
    assert {name: kept for name, kept in content(tmp_path).items() if not name.startswith("tmp/")} == before
    assert not list(temporary.glob("inarch*"))


def sparse_table(path: Path, rows: int) -> None:
    """The two FFNs behind an embedding of more than 2 GB, whose data are a hole in the file."""
    proto = two_ffns()
    table = TensorProto(name="table", data_type=TensorProto.FLOAT, dims=[rows, WIDTH], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "table.bin"), ("offset", "0"), ("length", str(4 * WIDTH * rows))):
        table.external_data.add(key=key, value=value)
    proto.graph.initializer.append(table)
    proto.graph.input[0].CopyFrom(helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "tokens"]))
    gather = helper.make_node("Gather", ["table", "ids"], ["x"])
    body = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([gather, *body])
    onnx.save(proto, path)
    with path.with_name("table.bin").open("wb") as file:
        file.truncate(4 * WIDTH * rows)


def test_more_than_2_gb(inarch: Run, tmp_path: Path, plan: Path) -> None:
    path = tmp_path / "large.onnx"
    sparse_table(path, (2_200_000_000 // (4 * WIDTH)) + 1)
    assert "2 sites" in inarch("inspect", path).out
    done: Done = inarch("compile", path, plan, "--dry-run", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["parameters"] > 550_000_000
