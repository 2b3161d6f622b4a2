"""``inarch learn`` and ``inarch tune`` on a model of a second's training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from inarch.runtime.session import Session
from inarch.structure.plan import load_plan

from tests.tools.conftest import Run

pytest.importorskip("torch")
pytest.importorskip("accelerate")

SMALL = ["--model", "small", "--level", "easy", "--steps", "4,6", "--keep", "0.75"]
SETS = ["data.scenes=60", "data.held_out=8", "data.texts=2", "data.judged=2", "data.images=4", "data.each=2", "dense.warmup=1"]
OPTIONS = [*SMALL, "--distil", "2", *(part for setting in SETS for part in ("--set", setting))]


@pytest.fixture(scope="module", autouse=True)
def small_presets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    from tests.learning import outlines, tiny

    with tiny.presets(), outlines.shared(tmp_path_factory):
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
        ([*DRAWN, "--model", "least", "--task", "sprites"], "referring", ["test", "style", "concept"]),
        ([*TINY, "--model", "least", "--task", "easy-vqa", "--set", "data.scenes=60"], "vqa", ["test"]),
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


@pytest.mark.parametrize(("task", "model"), [("refcoco", "least"), ("gqa", "least"), ("coco", "small-glip")])
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


def test_a_run_is_no_file(tmp_path: Path, inarch: Run) -> None:
    (tmp_path / "run").write_text("mine")
    done = inarch("learn", *OPTIONS, "-o", tmp_path / "run")
    assert (done.code, done.out) == (2, "")
    assert "a run is a folder" in " ".join(done.err.split())
    assert (tmp_path / "run").read_text() == "mine"


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


def test_what_a_tunings_configuration_leaves_out_suits_the_model(
    tmp_path: Path, inarch: Run, learned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inarch.learning.config.tuning_defaults", lambda model, task: {"optimisation.rate": 7e-5})
    part = tmp_path / "part.json"
    part.write_text('{"seed": 1, "optimisation": {"steps": 1, "warmup": 0}}')
    assert inarch("tune", learned, "--config", part, "--out", tmp_path / "out").code == 0
    recorded = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (recorded["seed"], recorded["optimisation"]["rate"], recorded["optimisation"]["steps"]) == (1, 7e-5, 1)
    assert inarch("tune", learned, "--config", part, "--rate", "1e-4", "--out", tmp_path / "given").code == 0
    assert json.loads((tmp_path / "given" / "config.json").read_text())["optimisation"]["rate"] == 1e-4


def test_a_tunings_configuration_makes_it_again(tmp_path: Path, inarch: Run, learned: Path) -> None:
    once, again = tmp_path / "once", tmp_path / "again"
    options = ["--task", "grounding", "--steps", "3", "--set", "optimisation.average=0.5", "--set", "optimisation.warmup=1"]
    assert inarch("tune", learned, *options, "--out", once).code == 0
    recorded = json.loads((once / "config.json").read_text())
    assert (recorded["kind"], recorded["optimisation"]["average"], recorded["optimisation"]["rate"]) == ("grounding", 0.5, 2e-3)
    assert inarch("tune", learned, "--config", once / "config.json", "--out", again).code == 0
    for name in ("config.json", "weights.safetensors", "evaluation.json"):
        assert (once / name).read_bytes() == (again / name).read_bytes(), name
