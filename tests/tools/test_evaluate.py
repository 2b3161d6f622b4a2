"""``inarch evaluate``: a model alone, two of them, and stored predictions; what is shown, what fails, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("PIL")

from inarch.runtime import placement
from inarch.runtime.accuracy import Evaluation, compare, paired
from inarch.runtime.predictions import Predictions, load_predictions
from inarch.structure.errors import InarchError
from inarch.tools import evaluate, report_examples, tasks

from tests.tools import deployed
from tests.tools.conftest import Done, Run
from tests.tools.test_hostile import refused

SAMPLES = 60


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task has a few samples only."""
    monkeypatch.setattr(tasks, "_DRAWN", {"level": "easy", "held_out": 30, "judged": 2, "seed": 0})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return deployed.saved(deployed.mdetr(answers=28), tmp_path / "model.onnx")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A model that says something else about some samples."""
    return deployed.saved(deployed.near(deployed.mdetr(answers=28)), tmp_path / "other.onnx")


VQA = ("--task", "scenes/vqa")


def data(done: Done, code: int = 0) -> Any:
    assert done.code == code, done.err
    document = json.loads(done.out)
    assert document["format"] == "inarch.evaluation/1"
    return document


def test_a_model_alone(model: Path, inarch: Run) -> None:
    found = data(inarch("evaluate", model, *VQA, "--json"))
    assert (found["ok"], found["task"], found["headline"], found["count"]) == (True, "scenes/vqa", "accuracy", SAMPLES)
    assert found["samples"] == {
        "world": "scenes", "kind": "vqa", "split": "test", "level": "easy", "held_out": 30, "judged": 2, "seed": 0, "side": 48,
    }  # fmt: skip
    assert found["model"]["model"] == "model.onnx"
    assert found["model"]["provider"] == "CPUExecutionProvider"
    assert 0 <= found["model"]["overall"]["accuracy"] <= 1
    done = inarch("evaluate", model, *VQA)
    assert done.code == 0
    assert f"{100 * found['model']['overall']['accuracy']:.2f} %" in done.out
    assert f"scenes/vqa, {SAMPLES} samples" in done.out
    assert all(len(line) <= 80 for line in done.out.splitlines())


def test_two_models_are_compared_in_pairs(model: Path, other: Path, tmp_path: Path, inarch: Run) -> None:
    mine, theirs = tmp_path / "mine.npz", tmp_path / "theirs.npz"
    found = data(inarch("evaluate", model, "--against", other, *VQA, "--predictions", mine, "--json"))
    data(inarch("evaluate", other, *VQA, "--predictions", theirs, "--json"))
    second, first = load_predictions(mine), load_predictions(theirs)
    scores = [side.evaluation.scores["accuracy"] for side in (first, second)]
    wanted = paired(*scores)
    comparison = found["comparison"]
    assert comparison["metric"] == "accuracy"
    assert comparison["metrics"]["accuracy"] == pytest.approx(vars(wanted))
    assert comparison["better"] == np.flatnonzero(scores[1] > scores[0]).tolist()
    assert comparison["worse"] == np.flatnonzero(scores[1] < scores[0]).tolist()
    assert comparison["better"] or comparison["worse"], "the two models have to differ for this to say anything"
    assert found["against"]["model"] == "other.onnx"
    assert found["against"]["overall"]["accuracy"] == pytest.approx(scores[0].mean())

    # The same from what was stored, wholly or in part.
    for arguments in (["--from", mine, "--against", theirs], [model, *VQA, "--against", theirs]):
        again = data(inarch("evaluate", *arguments, "--json"))
        assert again["comparison"] == comparison
    back = data(inarch("evaluate", "--from", theirs, "--against", mine, "--json"))["comparison"]
    assert (back["better"], back["worse"]) == (comparison["worse"], comparison["better"])


def test_what_is_shown_of_two_models(model: Path, other: Path, inarch: Run) -> None:
    found = data(inarch("evaluate", model, "--against", other, *VQA, "--json"))["comparison"]
    done = inarch("evaluate", model, "--against", other, *VQA, "--changed", "3")
    changed = [*found["worse"], *found["better"]]
    assert f"{len(changed)} of {SAMPLES} samples changed by accuracy" in done.out
    assert f"{len(found['better'])} better, {len(found['worse'])} worse" in done.out.replace("\n", " ")
    rows = [line.split(maxsplit=2) for line in done.out.splitlines() if line.split()[1:2] in (["worse"], ["better"])]
    assert [int(row[0]) for row in rows] == changed[:3]
    assert all(row[2].endswith("?") for row in rows), "each with its question"
    assert all(len(line) <= 80 for line in done.out.splitlines())


def test_samples_to_look_at(model: Path, other: Path, tmp_path: Path, inarch: Run) -> None:
    path = tmp_path / "examples.json"
    found = data(inarch("evaluate", model, "--against", other, *VQA, "--examples", path, "--json"))["comparison"]
    document = json.loads(path.read_text())
    assert (document["format"], document["task"], document["samples"]) == ("inarch.examples/1", "scenes/vqa", SAMPLES)
    assert document["changed"] == len(found["better"]) + len(found["worse"])
    for item in document["examples"]:
        assert (item["row"] in found["better"]) == (item["compiled"]["right"] and not item["dense"]["right"])
        assert (item["row"] in found["worse"]) == (item["dense"]["right"] and not item["compiled"]["right"])
    theirs, again = tmp_path / "theirs.npz", tmp_path / "again.json"
    inarch("evaluate", other, *VQA, "--predictions", theirs)
    data(inarch("evaluate", model, "--against", theirs, *VQA, "--examples", again, "--json"))
    assert again.read_text() == path.read_text()


def test_a_task_without_pictures_has_no_samples_to_look_at(
    model: Path, tmp_path: Path, inarch: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_examples, "pictures_of", lambda task: None)
    done = inarch("evaluate", model, "--against", model, *VQA, "--examples", tmp_path / "examples.json")
    assert done.code == 2
    assert "samples of scenes/vqa have no pictures" in done.err.replace("\n", " ")
    assert not (tmp_path / "examples.json").exists()


def test_only_the_first_samples(model: Path, other: Path, tmp_path: Path, inarch: Run) -> None:
    whole, part = tmp_path / "whole.npz", tmp_path / "part.npz"
    inarch("evaluate", model, *VQA, "--predictions", whole)
    inarch("evaluate", other, *VQA, "--predictions", part, "--limit", "20")
    done = inarch("evaluate", "--from", whole, "--against", part)
    assert done.code == 2
    assert "--limit 20 compares those that both have" in done.err.replace("\n", " ")
    found = data(inarch("evaluate", "--from", whole, "--against", part, "--limit", "20", "--json"))
    assert found["count"] == 20
    straight = data(inarch("evaluate", model, "--against", other, *VQA, "--limit", "20", "--json"))
    assert straight["comparison"] == found["comparison"]


@pytest.mark.parametrize("batch", ["1", "7", "1000"])
def test_batches_change_nothing(batch: str, model: Path, inarch: Run) -> None:
    whole = data(inarch("evaluate", model, *VQA, "--json"))
    assert data(inarch("evaluate", model, *VQA, "--batch", batch, "--json"))["model"] == whole["model"]


def test_losing_more_than_is_allowed_fails(model: Path, other: Path, inarch: Run) -> None:
    arguments = ["evaluate", model, "--against", other, *VQA]
    lost = -100 * data(inarch(*arguments, "--json"))["comparison"]["metrics"]["accuracy"]["low"]
    assert lost > 0
    found = data(inarch(*arguments, "--at-most-lost", f"{lost - 0.01:f}", "--json"), code=1)
    assert (found["ok"], len(found["failed"])) == (False, 1)
    done = inarch(*arguments, "--at-most-lost", f"{lost - 0.01:f}")
    assert done.code == 1
    assert f"FAILED: up to {lost:.2f} points of accuracy may be lost" in done.out.replace("\n", " ")
    assert data(inarch(*arguments, "--at-most-lost", f"{lost + 0.01:f}", "--json"))["failed"] == []


def test_agreement_outside_of_a_margin(model: Path, other: Path, tmp_path: Path, inarch: Run) -> None:
    arguments = ["evaluate", model, "--against", other, *VQA]
    found = data(inarch(*arguments, "--agree", "0", "--json"), code=1)
    changed = sorted([*found["comparison"]["better"], *found["comparison"]["worse"]])
    assert found["comparison"]["disagreements"] == changed
    assert f"{len(changed)} samples differ outside a margin of 0" in found["failed"][0]
    assert data(inarch(*arguments, "--agree", "1000", "--json"))["comparison"]["disagreements"] == []
    assert data(inarch("evaluate", model, "--against", model, *VQA, "--agree", "0", "--json"))["ok"]


def test_other_samples_are_not_compared(model: Path, tmp_path: Path, inarch: Run) -> None:
    for seed in ("0", "1"):
        inarch("evaluate", model, *VQA, "--seed", seed, "--predictions", tmp_path / f"{seed}.npz")
    done = inarch("evaluate", "--from", tmp_path / "0.npz", "--against", tmp_path / "1.npz")
    assert done.code == 2
    assert "judged on other samples: they differ in seed" in done.err


def test_a_glip(tmp_path: Path, inarch: Run) -> None:
    pytest.importorskip("pycocotools")
    first, second = deployed.glip(), deployed.near(deployed.glip())
    paths = [deployed.saved(one, tmp_path / f"{name}.onnx") for name, one in (("a", first), ("b", second))]
    examples = tmp_path / "examples.json"
    found = data(
        inarch("evaluate", *paths[:1], "--against", paths[1], "--task", "scenes/detection", "--examples", examples, "--json")
    )
    assert (found["headline"], found["comparison"]["metric"], found["count"]) == ("mAP", "AP@50/image", 30)
    for item in json.loads(examples.read_text())["examples"]:
        assert item["truth"]["answer"].split()[0] == str(len(item["truth"]["boxes"]))
        assert all(0 <= left <= right <= 1 for left, _, right, _ in item["truth"]["boxes"])
        assert item["compiled"]["answer"].startswith("AP50 ")
    done = inarch("evaluate", *paths[:1], "--against", paths[1], "--task", "scenes/grounding")
    assert done.code == 0, done.err
    assert "recall@1" in done.out


def test_where_it_ran_is_said_of_other_providers(model: Path, inarch: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no other provider here: the CPU stands for one, and so does what its profile says."""
    from inarch.runtime import providers

    monkeypatch.setattr(providers, "CPU", "another")
    found = data(inarch("evaluate", model, *VQA, "--json"))
    assert found["placement"]["counts"]["CPUExecutionProvider"] > 5
    assert "node runs on cpu" in inarch("evaluate", model, *VQA).out

    def nothing(*_: object, **__: object) -> placement.Placement:
        return placement.require(placement.Placement("CUDAExecutionProvider", {"CPUExecutionProvider": {"MatMul": 3}}))

    monkeypatch.setattr(placement, "measure_placement", nothing)
    done = inarch("evaluate", model, *VQA)
    assert done.code == 2
    assert "ran none of the model's nodes" in done.err


def test_an_unknown_provider(model: Path, inarch: Run) -> None:
    done = inarch("evaluate", model, *VQA, "--provider", "abacus")
    assert done.code == 2
    assert "no provider 'abacus'; it has" in done.err.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["MODEL"], ["--task", "scenes/referring", "easy-vqa/vqa", "coco"]),
        (["MODEL", "--task", "nosuch"], ["there is no task 'nosuch'", "scenes/referring", "refcoco"]),
        (["MODEL", "--task", "scenes/detection"], ["no detection with MDETR"]),
        (["MODEL", *VQA, "--side", "64"], ["model.onnx", "'pixel_values' has the sizes [B, 3, 48, 48]"]),
        (["MODEL", *VQA, "--at-most-lost", "1"], ["--at-most-lost", "nothing to compare with"]),
        (["MODEL", *VQA, "--agree", "1"], ["--agree", "nothing to compare with"]),
        (["MODEL", *VQA, "--examples", "a.json"], ["--examples", "nothing to compare with"]),
        (["--from", "a.npz", "--against", "b.npz", "--examples", "a.json"], ["--examples", "stored predictions have no images"]),
        (["MODEL", "--run", "nowhere"], ["there is no run here"]),
        (["nowhere.onnx", *VQA], ["nowhere.onnx"]),
        ([], ["give either a model or --from"]),
        (["MODEL", "--from", "a.npz", *VQA], ["give either a model or --from"]),
        (["--from", "a.npz", *VQA], ["stored predictions have a task already"]),
        (["--from", "a.npz", "--against", "MODEL"], ["compared with stored ones"]),
        (["--from", "nowhere.npz"], ["nowhere.npz", "cannot be read"]),
        (["MODEL", *VQA, "--against", "MODEL.npz"], ["MODEL.npz"]),
    ],
)
def test_what_is_refused(arguments: list[str], words: list[str], model: Path, tmp_path: Path, inarch: Run) -> None:
    given = [str(model) if part == "MODEL" else part for part in arguments]
    refused(inarch, tmp_path, ["evaluate", *given], *words)


def test_what_the_model_said_is_kept_where_the_other_one_fails(model: Path, tmp_path: Path, inarch: Run) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\x08")
    done = inarch("evaluate", model, "--against", broken, *VQA, "--predictions", tmp_path / "mine.npz")
    assert done.code == 2
    assert len(load_predictions(tmp_path / "mine.npz").texts) == SAMPLES


def test_help_explains_every_option(inarch: Run) -> None:
    done = inarch("evaluate", "--help")
    assert done.code == 0
    assert all(len(line) <= 80 for line in done.out.splitlines())
    for name in ("--against", "--from", "--run", "--predictions", "--at-most-lost", "--agree", "--provider"):
        assert name in done.out
    assert evaluate.run.__doc__ is not None


def test_agreement_is_refused_where_no_choice_has_a_margin() -> None:
    scores = {"mAP": np.asarray([0.5, 0.25, 1.0])}
    found = Predictions(Evaluation("detection/val", "mAP", {"boxes": np.zeros((3, 1, 4))}, scores, {"mAP": 0.5}), {}, (), {})
    outcome = evaluate.Outcome(found, found, compare(found.evaluation, found.evaluation))
    assert not evaluate.judged(outcome, 0.0, None).failed
    with pytest.raises(InarchError, match="--agree: detection/val does not say how close its choices were"):
        evaluate.judged(outcome, None, 0.1)
