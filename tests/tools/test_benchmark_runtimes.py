"""The parts of ``make bench-runtimes``: probes in processes of their own, what is compared, and the page. Nothing is timed."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from inarch.runtime.memory import Footprint
from inarch.tools.benchmarks import runtimes
from inarch.tools.benchmarks.runtimes_bank import WAYS, Banked, find_split, measure
from inarch.tools.benchmarks.runtimes_consumers import CONSUMERS, Cell, Consumer, data_files, fall, is_same
from inarch.tools.benchmarks.runtimes_consumers import measure as measure_consumer
from inarch.tools.benchmarks.runtimes_envs import Unavailable, python_env
from inarch.tools.benchmarks.runtimes_page import Results, as_text
from inarch.tools.benchmarks.runtimes_process import footprint, run_job
from inarch.tools.benchmarks.runtimes_subjects import Sharing, Subject, apart, make_small, sharing_of
from inarch.tools.benchmarks.runtimes_tools import TOOLS, Rewritten, Row, Tool, keeps, rewrite
from inarch.tools.benchmarks.twin import TwinEncoders

pytest.importorskip("onnxruntime")

TINY = TwinEncoders(layers=2, width=64, heads=4, hidden=512)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return make_small(tmp_path_factory.mktemp("subject"), TINY)


def test_a_small_pair_is_made_where_there_was_no_demo(subject: Subject) -> None:
    assert sharing_of(subject.dense).readers == 0
    assert sharing_of(subject.compiled).readers > 0
    assert 0.3 < subject.saved / sharing_of(subject.dense).stored < 0.45
    assert set(subject.sizes) == {"batch", "sequence"}
    assert subject.noise < 1e-5


def test_onnxruntime_in_a_process_of_its_own_computes_the_same(subject: Subject, tmp_path: Path) -> None:
    cell = measure_consumer(CONSUMERS[0], subject, "compiled", tmp_path)
    assert cell.difference == 0
    assert cell.anonymous > 0
    assert str(cell.said["version"]).startswith("onnxruntime ")


def test_fixed_sizes(subject: Subject, tmp_path: Path) -> None:
    cell = measure_consumer(Consumer("frozen", "frozen", "onnxruntime", frozen=True), subject, "compiled", tmp_path)
    assert is_same(cell.difference, subject.noise)


def test_what_cannot_be_had_says_why(subject: Subject, tmp_path: Path) -> None:
    missing = Consumer("x", "X", "", missing="there is none")
    with pytest.raises(Unavailable, match="there is none"):
        measure_consumer(missing, subject, "dense", tmp_path)
    with pytest.raises(Unavailable, match="No module named 'tract'"):
        measure_consumer(Consumer("tract", "tract", "tract"), subject, "dense", tmp_path)


def test_this_environment_is_the_one_without_packages(tmp_path: Path) -> None:
    assert python_env(tmp_path, "", ()) == Path(sys.executable)


def test_what_fails_tells_its_own_message(tmp_path: Path) -> None:
    script = tmp_path / "probe.py"
    script.write_text("print('noise')\nraise ValueError('the model is strange')\n")
    with pytest.raises(Unavailable, match="ValueError: the model is strange"):
        run_job([sys.executable, str(script)], {})
    script.write_text("import time\ntime.sleep(60)\n")
    with pytest.raises(Unavailable, match="ended by signal 9"):
        run_job([sys.executable, str(script)], {}, limit=0.2)


def test_memory_of_a_process() -> None:
    found = footprint(os.getpid())
    assert 0 < found.anonymous <= found.rss
    assert 0 < found.pss <= found.rss


def test_apart() -> None:
    right = {"a": np.array([1.0, -4.0]), "b": np.array([2, 3])}
    assert apart(right, right) == 0
    assert apart({"a": np.array([1.0, -4.2]), "b": np.array([2, 3])}, right) == pytest.approx(0.05)
    assert apart({"a": right["a"]}, right) == math.inf
    assert apart({"a": np.array([np.nan, -4.0]), "b": right["b"]}, right) == math.inf
    masked = {"a": np.array([-np.inf, 1.0])}
    assert apart(masked, masked) == 0


def test_same_allows_for_the_models_own_noise() -> None:
    assert is_same(9e-5, 0)
    assert not is_same(2e-4, 1e-5)
    assert is_same(2e-4, 1e-4)


def test_the_part_of_the_saved_bytes() -> None:
    dense, compiled = (Cell(size, size, size, 0.0, {}) for size in (100, 55))
    assert fall(dense, compiled, 50) == pytest.approx(0.9)


@pytest.mark.parametrize("key", ["onnx-save", "onnx-ir-save", "onnxscript"])
def test_a_tool_that_keeps_the_sharing(key: str, subject: Subject, tmp_path: Path) -> None:
    tool = Tool(key, key, packages=())
    forms = {form: rewrite(tool, subject, form, tmp_path) for form in ("dense", "compiled")}
    assert keeps(Row(tool, forms), subject) == "yes"
    assert is_same(forms["compiled"].difference, subject.noise)
    assert not (subject.folder / f"{key}-compiled").exists()


def test_a_tool_that_does_not_keep_it_is_seen(subject: Subject) -> None:
    before = sharing_of(subject.compiled)
    result = Rewritten(1, Sharing(0, 0, 1), 1, 1, 0.0, "x")
    assert keeps(Row(TOOLS[0], {"dense": result, "compiled": result}), subject) == "no"
    part = Rewritten(1, Sharing(1, 1, 1), 1, 1, 0.0, "x")
    assert keeps(Row(TOOLS[0], {"dense": result, "compiled": part}), subject) == f"in part: 1 of {before.readers} second readers"
    dense, other = (Rewritten(size, None, 1, 1, 0.0, "x") for size in (100, 64))
    assert keeps(Row(TOOLS[0], {"dense": dense, "compiled": other}), subject) == "yes, by its size"
    assert keeps(Row(TOOLS[0], {"dense": dense, "compiled": dense}), subject) == "no"


def test_an_unknown_tool_of_an_environment_fails_with_its_reason(subject: Subject, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="KeyError"):
        rewrite(Tool("nonsense", "nonsense", packages=()), subject, "dense", tmp_path)


def test_the_towers_are_told_apart(subject: Subject) -> None:
    split = find_split(subject.compiled)
    assert split.parts["rest"] == ["sum"]
    assert split.parts["text"] == list(split.at)


@pytest.mark.parametrize("key", ["apart-off-given", "packed"])
def test_a_way_to_have_both_parts(key: str, subject: Subject, tmp_path: Path) -> None:
    (way,) = (way for way in WAYS if way.key == key)
    banked, bank = measure(way, subject, tmp_path / "bank")
    assert is_same(banked.difference, subject.noise)
    assert bank.shared_bytes > 0
    assert banked.file_bytes > sharing_of(subject.compiled).stored
    assert not (tmp_path / "bank").exists()


def test_data_files_are_named(subject: Subject) -> None:
    (name,) = data_files(subject.compiled)
    assert (subject.folder / name).stat().st_size >= sharing_of(subject.compiled).stored * 0.95


def test_what_was_measured_is_kept_and_so_is_why_it_was_not(subject: Subject, tmp_path: Path) -> None:
    memo = runtimes.Memo(tmp_path / "kept")
    calls: list[int] = []

    def compute() -> dict[str, float]:
        calls.append(1)
        return {"difference": math.inf}

    def fail() -> dict[str, float]:
        calls.append(2)
        raise Unavailable("not here")

    for _ in range(2):
        assert memo.get(subject, "one", compute) == {"difference": math.inf}
        with pytest.raises(Unavailable, match="not here"):
            memo.get(subject, "two", fail)
    assert calls == [1, 2]
    memo.forget()
    memo.get(subject, "one", compute)
    assert calls == [1, 2, 1]


def test_the_page_holds_every_row_and_every_reason(subject: Subject) -> None:
    found = Results(subject)
    cell = Cell(10_000_000, 1, 1, 1e-6, {"version": "onnxruntime 1", "nodes": {"Cpu": 3}})
    for consumer in CONSUMERS[:2]:
        found.cells[consumer.key] = {"dense": cell, "compiled": cell}
    found.problems[CONSUMERS[2].key] = "there is none"
    rewritten = Rewritten(5_000_000, Sharing(1, 1000, 1), 7_000_000, 1, 0.5, "tool 1")
    found.tools = [Row(TOOLS[0], {"dense": rewritten, "compiled": rewritten}), Row(TOOLS[1], problems={"dense": "it broke"})]
    found.ways[WAYS[0].key] = Banked(Footprint(1, 2, 3), Footprint(4_000_000, 5_000_000, 6_000_000), 7_000_000, 0.0)
    found.shared = (3, 9_000_000)
    text = as_text([found], {"cpu": "a processor"})
    for words in (
        "| yes | 1.0e-06 | 10 | 10 | 0 % |",
        "not measured",
        "there is none",
        "it broke",
        "it moves the compiled model's outputs by 5.0e-01; the dense model's by 5.0e-01",
        "Both parts read 3 weights of 9 MB",
        "| 4 | 5 | 6 | 7 | 0 |",
    ):
        assert words in text
    data = runtimes.as_json([found], {"cpu": "a processor"})
    assert json.loads(json.dumps(data))["subjects"]["small"]["not_measured"] == {CONSUMERS[2].key: "there is none"}


def test_unknown_steps_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        runtimes.main(["--steps", "nonsense"])
    assert stop.value.code == 2
    assert "nonsense" in capsys.readouterr().err
