"""What fills a run folder."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from inarch.structure.cost import SHIPPED, cost_hash
from inarch.structure.errors import InarchError
from inarch.tools import report_page, report_run
from inarch.tools.report_provenance import cost_options, file_facts


def a_model(path: Path) -> None:
    """One product, its weight in a file of its own."""
    weight = numpy_helper.from_array(np.ones((40, 40), np.float32), "w")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 40]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", values[:1], values[1:], [weight])
    model = helper.make_model(graph)
    onnx.save(model, path, save_as_external_data=True, location="weights.data", size_threshold=0)


def test_a_models_hash_is_over_its_data_too(tmp_path: Path) -> None:
    a_model(tmp_path / "m.onnx")
    size, digest = file_facts(tmp_path / "m.onnx")
    content = (tmp_path / "m.onnx").read_bytes() + (tmp_path / "weights.data").read_bytes()
    assert (size, digest) == (len(content), hashlib.sha256(content).hexdigest())
    (tmp_path / "weights.data").write_bytes(bytes(40 * 40 * 4))
    assert file_facts(tmp_path / "m.onnx")[1] != digest


def test_an_earlier_run_is_taken_away_and_nothing_else(tmp_path: Path) -> None:
    kept = ("config.json", "plan.json", "compiled.onnx")
    for name in (*report_run.WRITTEN, *kept):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    report_run.clear(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    report_run.clear(tmp_path)


def test_a_run_says_how_it_was_made(tmp_path: Path) -> None:
    a_model(tmp_path / "m.onnx")
    report_run.write_run(
        tmp_path,
        title="t",
        about="a",
        model="m.onnx",
        commands=report_run.commands("m.onnx", "dense.onnx", "judge", parts=True),
        files=("m.onnx",),
        seconds={"compile": 1.26},
        settings={"seed": 3},
    )
    document = json.loads((tmp_path / report_run.RUN).read_bytes())
    assert document["format"] == "inarch.run/1"
    assert document["seconds"] == {"compile": 1.3}
    assert document["files"]["m.onnx"]["sha256"] == file_facts(tmp_path / "m.onnx")[1]
    assert document["machine"]["cores"] >= 1
    assert "inarch bench dense.onnx compiled.onnx --parts plan.json --json > bench.json" in document["commands"]
    assert str(tmp_path) not in json.dumps(document)
    assert not list(tmp_path.glob("*.part"))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InarchError, match="cannot be written"):
        report_run.write(tmp_path / "absent", "a.json", {})


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "jinja2" else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(InarchError, match=r"inarch\[report\]"):
        report_page._environment()


@pytest.mark.parametrize(
    ("cost", "options"),
    [
        (None, ""),
        (cost_hash(SHIPPED["cpu"]), ""),
        (f"{cost_hash(SHIPPED['cpu'])}:latency", " --prefer latency"),
        (cost_hash(SHIPPED["gpu"]), " --cost gpu"),
        (f"{'0' * 64}:size", " --cost TABLE.json --prefer size"),
    ],
)
def test_what_chooses_the_cost_table_is_repeated(cost: str | None, options: str) -> None:
    assert cost_options({} if cost is None else {"inarch.cost": cost}) == options
