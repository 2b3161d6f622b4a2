"""The accuracy benchmark: names of its cells, what they are compared with, and its table."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from inarch.structure.errors import InarchError
from inarch.tools.benchmarks import accuracy
from inarch.tools.benchmarks.accuracy_grid import (
    FAST,
    FIRST,
    GROWN,
    STARTS,
    STORE,
    Cell,
    base_config,
    check_start,
    check_teacher,
    closed,
    dense_key,
    grid,
    key_of,
    method_key,
    stored,
)
from inarch.tools.benchmarks.accuracy_report import compare, pack, table_rows, unpack, write_report

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from inarch.learning.folders import DENSE  # noqa: E402
from inarch.learning.weights import keep_weights  # noqa: E402


def cells(seeds: int = 3, samples: int = 120) -> dict[Cell, dict[str, Any]]:
    """Dense, ours and one other on both tasks, made by hand."""
    made = {}
    for number, (method, keep, chance) in enumerate((("dense", 1.0, 0.8), ("joint", 0.6, 0.75), ("prune", 0.6, 0.6))):
        for seed in range(seeds):
            rng = np.random.default_rng([number, seed])
            for kind in ("referring", "vqa"):
                right = (rng.random(samples) < chance).astype(float)
                made[Cell(kind, method, keep, seed)] = {
                    "parameters": 1000,
                    "stored": int(1000 * keep) + seed,
                    "before": chance - 0.01 * seed,
                    "seconds": 30,
                    "learning_seconds": 60,
                    "metric": "accuracy",
                    "scores": pack(right),
                    "samples": samples,
                    "raw": right,
                } | ({"backbones": keep - 0.1} if method != "dense" else {})
    return made


def interval(first: list[Any], second: list[Any]) -> str:
    """The mean difference in per cent with the wider of two intervals, written out."""
    means = [float(np.mean(b - a)) for a, b in zip(first, second, strict=True)]
    apart = np.concatenate(second) - np.concatenate(first)
    half = 1.959963984540054 * apart.std(ddof=1) / len(apart) ** 0.5
    if len(means) > 1:
        half = max(half, float(stats.t.ppf(0.975, len(means) - 1)) * float(np.std(means, ddof=1)) / len(means) ** 0.5)
    mean = float(np.mean(means))
    return f"{100 * mean:+.2f} [{100 * (mean - half):+.2f}, {100 * (mean + half):+.2f}]"


def raw(made: dict[Cell, dict[str, Any]], method: str, kind: str) -> list[Any]:
    return [data["raw"] for cell, data in made.items() if (cell.method, cell.kind) == (method, kind)]


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("kind", ["referring", "vqa"])
def test_the_tables_figures(kind: str, seeds: int) -> None:
    made = cells(seeds)
    rows = {row[0]: row for row in table_rows(made, (FIRST, kind))}
    assert list(rows) == ["dense", "joint", "prune"]
    for method, keep, chance in (("dense", 1.0, 0.8), ("joint", 0.6, 0.75), ("prune", 0.6, 0.6)):
        middle = (seeds - 1) / 2
        inside = "" if method == "dense" else f"{100 * (keep - 0.1):.1f}"
        mine, dense, ours = (raw(made, name, kind) for name in (method, "dense", "joint"))
        assert rows[method] == [
            method,
            f"{keep:.2f}",
            f"{100 * keep + middle / 10:.1f}",
            inside,
            "0" if seeds == 1 else "0-2",
            f"{100 * chance - middle:.2f}" + ("" if method == "dense" else f" ({100 * (chance - 0.8):+.2f})"),
            f"{100 * np.mean([one.mean() for one in mine]):.2f}",
            "" if method == "dense" else interval(dense, mine),
            interval(mine, ours) if method == "prune" else "",
        ]


@pytest.mark.parametrize("name", ["unbound", "tied"])
def test_where_the_grid_has_another_of_ours_others_are_compared_with_that(name: str) -> None:
    made = {replace(cell, method=cell.method.replace("joint", name)): data for cell, data in cells(2).items()}
    rows = {row[0]: row[-1] for row in table_rows(made, (FIRST, "vqa"))}
    assert rows == {"dense": "", name: "", "prune": interval(raw(made, "prune", "vqa"), raw(made, name, "vqa"))}


def test_only_common_seeds_are_compared() -> None:
    made = cells(3)
    del made[Cell("vqa", "prune", 0.6, 1)]
    found = compare(made, ("prune", 0.6), ("joint", 0.6), (FIRST, "vqa"))
    assert found is not None
    assert found.samples == 240
    assert compare(made, ("prune", 0.5), ("joint", 0.6), (FIRST, "vqa")) is None


def test_scores_are_packed_and_unpacked() -> None:
    scores = np.random.default_rng(0).random(77)
    right = (scores < 0.5).astype(float)
    assert unpack(pack(right), 77).tolist() == right.tolist()
    assert len(pack(right)) < len(pack(scores)) / 6
    np.testing.assert_allclose(unpack(pack(scores), 77), scores, atol=0.5 / 255)


def test_a_teacher_is_in_a_cells_names() -> None:
    plain = Cell("referring", "joint", 0.6, 0)
    tuned, taught = replace(plain, distilled=True), replace(plain, distilled=True, taught=True)
    assert [one.label for one in (plain, tuned, taught)] == ["joint", "joint, distilled", "joint, distilled throughout"]
    assert len({key_of(one) for one in (plain, tuned, taught)}) == 3
    assert method_key(plain) == method_key(tuned) != method_key(taught), "tuning is all that differs at first"
    assert method_key(taught.teacher) == method_key(plain.teacher)


def test_every_cell_that_is_kept_is_in_the_grid() -> None:
    files = list(STORE.glob("*.json"))
    assert len(files) > 10
    assert len(stored(STORE)) == len(files), "a setting was changed, and with it the names of cells"
    assert {cell.about for cell in grid()} >= {("glip-tiny/scenes", "detection"), ("mdetr-tiny/easy-vqa", "vqa")}


def test_what_settings_have_apart_stays_apart(tmp_path: Path) -> None:
    made = cells()
    other = "glip-tiny/scenes"
    more = {replace(cell, setting=other): data | {"metric": "AP@50"} for cell, data in made.items() if cell.method == "dense"}
    assert table_rows(made | more, (FIRST, "vqa")) == table_rows(made, (FIRST, "vqa"))
    assert [row[0] for row in table_rows(made | more, (other, "vqa"))] == ["dense"]
    write_report(made | more, tmp_path)
    assert "## glip-tiny/scenes, vqa: AP@50 of 120 held-out samples" in (tmp_path / "accuracy.md").read_text()


def test_the_report_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_report(cells(), tmp_path)
    text = (tmp_path / "accuracy.md").read_text()
    assert "18 cells, 0.3 hours in all" in text, "what a method learned serves both tasks"
    assert "## mdetr-tiny/scenes, vqa: accuracy of 120 held-out samples" in text
    assert (tmp_path / "accuracy.png").read_bytes()[:4] == b"\x89PNG"
    assert all(f"| {method} |" in text for method in ("dense", "joint", "prune"))
    write_report({}, tmp_path / "none")
    assert "no cell is stored yet" in capsys.readouterr().out


def test_cells_of_a_seed_start_from_one_dense_model() -> None:
    first, second = Cell("referring", "joint", 0.6, 0), Cell("vqa", "prune", 0.6, 0)
    check_start(first, "a", {})
    check_start(first, "a", {second: {"dense": "a"}})
    check_start(first, "a", {replace(second, seed=1): {"dense": "b"}, replace(second, setting="mdetr-tiny/easy-vqa"): {}})
    with pytest.raises(InarchError, match=r"seed 0 here is a, that of vqa-prune-0\.60-0-.* is b"):
        check_start(first, "a", {second: {"dense": "b"}})
    assert dense_key(0, FAST) == dense_key(0)
    with pytest.raises(InarchError, match=r"that of .*3e-3-referring-joint-.* is b"):
        check_start(first, "a", {replace(first, setting=FAST): {"dense": "b"}})
    # What grew in depth is another dense model, and trained as another.
    check_start(first, "a", {replace(first, setting=GROWN): {"dense": "b"}})
    assert 0 < base_config(0, GROWN).shallow < base_config(0, GROWN).dense.steps
    assert dense_key(0, GROWN).rpartition("-")[2] != dense_key(0).rpartition("-")[2]
    assert closed(first, {second: {}})
    assert not closed(first, {second: {"dense": "b"}, replace(second, seed=1): {}})


def test_a_cell_is_taught_by_the_dense_model_that_it_is_compared_with() -> None:
    cell = Cell("referring", "prune", 0.6, 5, FAST, distilled=True, taught=True)
    check_teacher(cell, {"before": 0.9}, {})
    check_teacher(cell, {"before": 0.9}, {cell.teacher: {"before": 0.9}, replace(cell.teacher, seed=6): {"before": 0.8}})
    with pytest.raises(InarchError, match=r"is worth 0\.9000, that of .*3e-3-referring-dense-1\.00-5-.* 0\.8990"):
        check_teacher(cell, {"before": 0.9}, {cell.teacher: {"before": 0.899}})


def test_a_dense_model_is_kept_for_other_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "STARTS", tmp_path / "starts")
    shop: Any = SimpleNamespace(config=SimpleNamespace(precision="no"), pretraining=lambda: None)  # nothing is trained
    cell = Cell("referring", "joint", 0.6, 5)
    folder = dense_key(cell.seed)
    kept = tmp_path / "starts" / f"{folder}.safetensors"
    monkeypatch.setattr(accuracy, "WORK", tmp_path / "first")
    keep_weights({"a": torch.arange(3.0)}, tmp_path / "first" / folder / DENSE)
    monkeypatch.setattr(accuracy, "LARGEST_START", 10)
    accuracy.keep_start(cell)
    assert not kept.exists(), "it is too large"
    monkeypatch.setattr(accuracy, "LARGEST_START", 1000)
    accuracy.keep_start(cell)
    monkeypatch.setattr(accuracy, "WORK", tmp_path / "second")
    weights, digest = accuracy.dense_start(cell, shop)
    assert weights["a"].tolist() == [0, 1, 2]
    assert digest == hashlib.sha256(kept.read_bytes()).hexdigest()[:16]
    keep_weights({"a": torch.ones(3)}, tmp_path / "second" / folder / DENSE)
    assert accuracy.dense_start(cell, shop)[0]["a"].tolist() == [1, 1, 1], "what is there stays"


def test_kept_dense_models_are_those_of_cells() -> None:
    kept = {path.stem: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in STARTS.glob("*.safetensors")}
    digests = {dense_key(cell.seed, cell.setting): data.get("dense") for cell, data in stored(STORE).items()}
    assert {name: digests.get(name) for name in kept} == kept
