"""``inarch learn`` and ``inarch tune`` on a model of a second's training; and the accuracy benchmark's table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from inarch.runtime.session import Session
from inarch.structure.plan import load_plan
from inarch.tools.benchmarks.accuracy_grid import FIRST, STORE, Cell, grid, key_of, method_key, stored
from inarch.tools.benchmarks.accuracy_report import compare, pack, table_rows, unpack, write_report

from tests.tools.conftest import Run

pytest.importorskip("torch")
pytest.importorskip("accelerate")

SMALL = ["--model", "small", "--level", "easy", "--steps", "4,6", "--keep", "0.75"]
SETS = ["data.scenes=60", "data.held_out=8", "data.texts=2", "data.judged=2", "data.images=4", "data.each=2", "dense.warmup=1"]
OPTIONS = [*SMALL, "--distil", "2", *(part for setting in SETS for part in ("--set", setting))]


@pytest.fixture(scope="module", autouse=True)
def small_presets() -> Iterator[None]:
    from inarch.learning import runs, workshop

    from tests.learning import tiny
    from tests.learning.exported import export

    with tiny.presets(), pytest.MonkeyPatch.context() as patch:
        for module in (runs, workshop):
            patch.setattr(module, "export_model", export)
        yield


@pytest.fixture
def learned(tmp_path: Path, inarch: Run) -> Path:
    folder = tmp_path / "run"
    done = inarch("learn", *OPTIONS, "--out", folder)
    assert done.code == 0, done.err
    assert "parameters stored" in done.out
    assert "inarch tune" in done.out
    return folder


def test_the_whole_way(learned: Path, tmp_path: Path, inarch: Run) -> None:
    config = json.loads((learned / "config.json").read_text())
    assert (config["model"], config["structure"]["keep"], config["data"]["scenes"]) == ("small", 0.75, 60)
    assert config["distil"] == 2
    assert (learned / "teacher.safetensors").exists()
    assert (config["dense"]["steps"], config["learning"]["steps"], config["dense"]["warmup"]) == (4, 6, 1)
    assert all((learned / name).stat().st_size for name in ("plan.json", "weights.safetensors", "curves.png", "structure.png"))

    again = inarch("learn", "--out", learned, "--resume", "--json")
    assert again.code == 0, again.err
    document = json.loads(again.out)
    plan = load_plan(learned / "plan.json")
    assert plan.expect is not None
    assert document["format"] == "inarch.learn/1"
    assert document["config"] == config
    assert document["stored"] == plan.expect.parameters
    assert document["backbones_kept"] <= document["backbones"] < document["parameters"]

    tuned = inarch("tune", learned, "--task", "referring", "--steps", "3", "--json")
    assert tuned.code == 0, tuned.err
    document = json.loads(tuned.out)
    assert (document["format"], document["task"]) == ("inarch.tune/1", "scenes/referring")
    assert document["headline"] == "precision@1"
    assert list(document["splits"]) == ["test", "unseen"]
    assert all("precision@1" in metrics for metrics in document["splits"].values())
    written = json.loads((learned / "referring" / "evaluation.json").read_text())
    assert written == {name: document[name] for name in ("task", "headline", "splits")}
    model = Path(document["model"])
    assert model == learned / "referring" / "model.onnx"

    out = tmp_path / "compiled.onnx"
    assert inarch("compile", model, learned / "plan.json", "--out", out).code == 0
    assert Session(out).outputs == Session(model).outputs
    refused = inarch("tune", learned, "--task", "vqa", "--steps", "2", "--distil", "0.5", "--out", tmp_path / "vqa")
    assert refused.code == 2
    assert "there is no teacher for vqa here" in refused.err
    made = inarch("tune", learned, "--task", "vqa", "--steps", "2", "--dense", "--out", tmp_path / "dense")
    assert made.code == 0, made.err
    taught = ("--distil", "0.5", "--teacher", tmp_path / "dense")
    shown = inarch("tune", learned, "--task", "vqa", "--steps", "2", *taught, "--out", tmp_path / "vqa")
    assert shown.code == 0, shown.err
    head, *rows = (line.split() for line in shown.out.splitlines() if line.strip())
    assert head == ["metric", "test", "unseen"]
    assert next(row for row in rows if row[0] == "accuracy")[2::2] == ["%", "%"]
    assert (tmp_path / "vqa" / "model.onnx").exists()


TINY = [
    "--steps",
    "2,3",
    "--keep",
    "0.8",
    *(part for name in ("images=4", "each=2", "held_out=6") for part in ("--set", f"data.{name}")),
]
DRAWN = [*TINY, "--level", "easy", *(part for name in ("scenes=60", "texts=2", "judged=2") for part in ("--set", f"data.{name}"))]


@pytest.fixture
def emoji(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages of made-up emoji, where the environment says."""
    pytest.importorskip("PIL")
    from inarch.learning.tasks.sprites import package
    from inarch.learning.tasks.sprites.package import measure

    from tests.learning.tasks.emoji import make_packages

    home = make_packages(tmp_path / "emoji")
    monkeypatch.setenv("INARCH_SPRITES", str(home))
    monkeypatch.setattr(package, "PINS", measure(home))


@pytest.mark.parametrize(
    ("options", "kind", "splits"),
    [
        ([*DRAWN, "--model", "small", "--task", "sprites"], "referring", ["test", "style", "concept"]),
        ([*TINY, "--model", "small", "--task", "easy-vqa", "--set", "data.scenes=60"], "vqa", ["test"]),
    ],
    ids=["sprites", "easy-vqa"],
)
def test_every_task_goes_the_whole_way(
    tmp_path: Path, inarch: Run, emoji: None, options: list[str], kind: str, splits: list[str]
) -> None:
    if kind == "vqa":
        pytest.importorskip("easy_vqa")
    run, out = tmp_path / "run", tmp_path / "compiled.onnx"
    done = inarch("learn", *options, "--out", run)
    assert done.code == 0, done.err
    assert f"inarch tune {run} --task {kind}" in " ".join(done.out.split())
    config = json.loads((run / "config.json").read_text())
    assert config["data"].get("side", 64) == 64
    tuned = inarch("tune", run, "--steps", "2", "--json")
    assert tuned.code == 0, tuned.err
    document = json.loads(tuned.out)
    assert document["task"] == f"{config['data']['task']}/{kind}"
    assert list(document["splits"]) == splits
    assert inarch("compile", document["model"], run / "plan.json", "--out", out).code == 0
    assert Session(out).outputs == Session(document["model"]).outputs


@pytest.mark.parametrize(("task", "model"), [("refcoco", "small"), ("gqa", "small"), ("coco", "small-glip")])
def test_files_of_ones_own_go_the_whole_way(tmp_path: Path, inarch: Run, task: str, model: str) -> None:
    for package in ("PIL", "tokenizers", "pycocotools"):
        pytest.importorskip(package)
    from tests.learning.tasks.annotated import make_files

    files = make_files(tmp_path)
    given = {"train": f"{task}-train.json", "held-out": f"{task}-test.json", "images": "", "tokenizer": "tokenizer.json"}
    given |= {"answers": "answers.json"} if task == "gqa" else {}
    options = [part for name, file in given.items() for part in (f"--{name}", str(files / file))]
    side = ["--set", "data.short=64" if model == "small-glip" else "data.short=48", "--set", "data.longest=96"]
    run, out = tmp_path / "run", tmp_path / "compiled.onnx"
    start = ["--model", model, "--task", task, *options, *side, "--steps", "2,3", "--keep", "0.85"]
    done = inarch("learn", *start, "--out", run)
    assert done.code == 0, done.err
    tuned = inarch("tune", run, "--steps", "2", "--json")
    assert tuned.code == 0, tuned.err
    document = json.loads(tuned.out)
    assert document["splits"].keys() == {"test"}
    assert inarch("compile", document["model"], run / "plan.json", "--out", out).code == 0
    judged = inarch("evaluate", out, "--run", run, "--json")
    assert judged.code == 0, judged.err
    found = json.loads(judged.out)
    assert found["task"] == document["task"]
    for name, value in document["splits"]["test"].items():
        assert found["model"]["overall"][name] == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("task", ["sprites", "easy-vqa"])
def test_without_its_data_a_task_says_what_to_fetch(
    tmp_path: Path, inarch: Run, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    from inarch.learning.tasks import easy_vqa

    monkeypatch.delenv("INARCH_SPRITES", raising=False)
    monkeypatch.setattr(easy_vqa, "find_spec", lambda name: None)
    done = inarch("learn", "--model", "small", "--task", task, "--out", tmp_path / "run")
    assert done.code == 2
    said = " ".join(done.err.split())
    assert all(word in said for word in {"sprites": ("npm install", "INARCH_SPRITES"), "easy-vqa": ("pip install",)}[task])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["learn", "tune"])
def test_help_explains_every_option(inarch: Run, command: str) -> None:
    done = inarch(command, "--help")
    assert done.code == 0
    assert "--json" in done.out
    assert all(len(line) <= 80 for line in done.out.splitlines())


def test_options_go_before_a_configuration(tmp_path: Path, inarch: Run) -> None:
    from inarch.learning.config import read_config

    from tests.learning import tiny

    path = tmp_path / "config.json"
    path.write_text(tiny.config(learning={"steps": 3}).model_dump_json())
    assert read_config(path) == tiny.config(learning={"steps": 3})
    out = tmp_path / "run"
    done = inarch("learn", "--config", path, "--seed", "2", "--sharing", "none", "--set", "structure.weight=3", "-o", out)
    assert done.code == 0, done.err
    expected = tiny.config(learning={"steps": 3}, seed=2, structure={"sharing": "none", "weight": 3.0})
    assert read_config(out / "config.json") == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "nosuch"], "no such preset"),
        (["--level", "odd"], "no level"),
        (["--set", "structure.nosuch=1"], "no such setting"),
        (["--set", "nosuch.keep=1"], "no such setting"),
        (["--set", "structure.keep.x=1"], "no such setting"),
        (["--set", "structure.keep"], "NAME=VALUE"),
        (["--set", "structure.keep=half"], "structure.keep"),
        (["--set", "structure.generator=luck"], "structure.generator"),
        (["--set", "structure.freeze=0.9", "--set", "structure.arrive=0.8"], "before the gates are frozen"),
        (["--set", "data.scenes=20"], "20 images leave 2"),
        (["--keep", "0"], "structure.keep"),
        (["--keep", "1.5"], "structure.keep"),
        (["--steps", "3"], "two numbers"),
        (["--steps", "0,3"], "dense.steps"),
        (["--seed", "-1"], "--seed"),
        (["--sharing", "all"], "--sharing"),
        (["--task", "nosuch"], "--task"),
        (["--task", "coco"], "--train: is missing"),
        (["--task", "gqa", "--train", "a", "--held-out", "b", "--images", "c", "--tokenizer", "d"], "--answers: is missing"),
        (["--train", "a.json"], "data.train: there is no such setting of scenes"),
        (["--task", "easy-vqa"], "data.level: there is no such setting of easy-vqa"),
        (["--device", "tpu"], "no device"),
        (["--weights", "nosuch.safetensors"], "nosuch.safetensors"),
        (["--config", "nosuch.json"], "nosuch.json"),
    ],
    ids=lambda value: "-".join(value).strip("-") if isinstance(value, list) else "",
)
def test_mistakes_are_named(tmp_path: Path, inarch: Run, options: list[str], message: str) -> None:
    done = inarch("learn", *OPTIONS, *options, "--out", tmp_path / "run")
    assert done.code == 2
    assert done.out == ""
    assert message in " ".join(done.err.split()), done.err
    assert not (tmp_path / "run" / "plan.json").exists()
    if "--weights" not in options:
        assert not (tmp_path / "run").exists()


def test_a_configuration_that_is_wrong(tmp_path: Path, inarch: Run) -> None:
    path = tmp_path / "config.json"
    for content, message in (('{"structure": {"kep": 1}}', "structure.kep"), ("{", "config.json"), ('{"seed": -1}', "seed")):
        path.write_text(content)
        done = inarch("learn", "--config", path, "-o", tmp_path / "run")
        assert done.code == 2
        assert message in " ".join(done.err.split())


def test_a_run_goes_on_with_its_own_settings(tmp_path: Path, inarch: Run, learned: Path) -> None:
    for arguments, message in (
        (["--out", learned, "--resume", "--keep", "0.5"], "goes on with the settings"),
        (["--out", tmp_path / "none", "--resume"], "no run here"),
        ([*OPTIONS, "--out", learned, "--seed", "3"], "another run is here, with another seed"),
    ):
        done = inarch("learn", *arguments)
        assert done.code == 2
        assert message in " ".join(done.err.split())
    for options, message in (
        (["--rate", "0"], "optimisation.rate"),
        (["--precision", "int8"], "precision"),
        (["--task", "detection"], "no detection with MDETR"),
        (["--teacher", "nosuch"], "a teacher without a weight"),
        (["--dense", "--distil", "1"], "no student of a dense model"),
        (["--set", "optimisation.averge=0.9"], "settings: optimisation.averge: there is no such setting"),
        (["--set", "optimisation.average"], "is not NAME=VALUE"),
        (["--config", "nosuch.json"], "nosuch.json: cannot be read"),
        (["--task", "captions"], "--task"),
    ):
        done = inarch("tune", learned, *options)
        assert done.code == 2, options
        assert message in " ".join(done.err.split())
    assert inarch("tune", tmp_path / "nosuch").code == 2
    assert not (learned / "referring").exists()


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


def test_a_tunings_configuration_makes_it_again(tmp_path: Path, inarch: Run, learned: Path) -> None:
    once, again = tmp_path / "once", tmp_path / "again"
    options = ["--task", "grounding", "--steps", "3", "--set", "optimisation.average=0.5", "--set", "optimisation.warmup=1"]
    assert inarch("tune", learned, *options, "--out", once).code == 0
    recorded = json.loads((once / "config.json").read_text())
    assert (recorded["kind"], recorded["optimisation"]["average"], recorded["optimisation"]["rate"]) == ("grounding", 0.5, 5e-4)
    assert inarch("tune", learned, "--config", once / "config.json", "--out", again).code == 0
    for name in ("config.json", "weights.safetensors", "evaluation.json"):
        assert (once / name).read_bytes() == (again / name).read_bytes(), name


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
