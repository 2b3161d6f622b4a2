"""Tasks by name: the same samples as learning judges by, read without torch; what does not fit is refused by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("PIL")

from inarch.learning.tasks.aims import Aim
from inarch.learning.tasks.glip_boxes import levels_of
from inarch.learning.tasks.scenes.words import SCENES
from inarch.learning.tasks.sprites import package
from inarch.learning.tasks.sprites.words import SPRITES
from inarch.runtime.accuracy import Arrays, Task, evaluate
from inarch.runtime.face import Face, face_of, runner
from inarch.runtime.session import Session
from inarch.structure.errors import DataError, InarchError, RuntimeFailure
from inarch.tools import tasks
from inarch.tools.subject import Subject, Wanted
from inarch.tools.tasks import NAMES, open_subject

from tests.learning.tasks.emoji import make_packages
from tests.learning.tasks.small import BY_TYPE, COCO, GQA, REFERRING, Json, word_tokenizer, write, write_images
from tests.tools import deployed

Corners = tuple[float, float, float, float]

DATA = {"level": "easy", "held_out": 8, "judged": 2, "side": 64, "seed": 3}


def opened(wanted: Wanted, model: ir.Model) -> Subject:
    with Session(model) as session:
        face = face_of(model, "model.onnx")
        return open_subject(wanted, face, runner(session, face, face.outputs))


def judge(subject: Subject, model: ir.Model) -> Any:
    with Session(model) as session:
        return evaluate(runner(session, face_of(model, "m"), subject.outputs), subject.task, batch=3)


def run_folder(folder: Path, world: str = "scenes", **data: Any) -> Path:
    """What of a run is read: its configuration."""
    folder.mkdir(exist_ok=True)
    drawn = DATA if world != "easy-vqa" else {}
    document = {"model": "small", "data": {"task": world, **drawn, **data}}
    (folder / "config.json").write_text(json.dumps(document))
    return folder


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task without a run has a few samples only."""
    monkeypatch.setattr(tasks, "_DRAWN", {"level": "easy", "held_out": 8, "judged": 2, "seed": 0})


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Made-up packages, which the environment leads to."""
    home = make_packages(tmp_path_factory.mktemp("emoji"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INARCH_SPRITES", str(home))
        patch.setattr(package, "PINS", package.measure(home))
        yield


def same(mine: Task, theirs: Task, model: ir.Model) -> None:
    """The two tasks have the same samples, and judge a model's outputs alike."""
    assert (mine.name, mine.samples, mine.headline) == (theirs.name, theirs.samples, theirs.headline)
    rows = np.arange(mine.samples)
    first, second = mine.feeds(rows), theirs.feeds(rows)
    assert set(first) == set(second)
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
    with Session(model) as session:
        outputs = session.run(first)
    said, others = mine.predict(rows, outputs), theirs.predict(rows, outputs)
    for name, array in said.items():
        np.testing.assert_array_equal(array, others[name])
    for name, array in mine.score(rows, said).items():
        np.testing.assert_array_equal(array, theirs.score(rows, others)[name])
    assert mine.overall(said) == theirs.overall(others)


Case = tuple[str, Aim, str, str]
CASES: list[Case] = [
    ("scenes", "referring", "test", "mdetr"),
    ("scenes", "grounding", "unseen", "mdetr"),
    ("scenes", "vqa", "test", "mdetr"),
    ("scenes", "referring", "test", "glip"),
    ("scenes", "grounding", "test", "glip"),
    ("scenes", "detection", "unseen", "glip"),
    ("sprites", "referring", "style", "mdetr"),
    ("sprites", "vqa", "concept", "mdetr"),
    ("sprites", "grounding", "test", "glip"),
]


def answers_of(world: str) -> int:
    return len({"scenes": SCENES, "sprites": SPRITES}[world].answers)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_runs_samples_are_those_that_it_is_judged_by(case: Case, tmp_path: Path, emoji: None) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("pycocotools")
    from inarch.learning.data_config import ScenesSettings, SpritesSettings
    from inarch.learning.tasks.worlds import open_world

    from tests.learning.tiny import GLIP, MDETR

    world, kind, split, family = case
    model = deployed.glip() if family == "glip" else deployed.mdetr(64, answers=answers_of(world))
    settings = (ScenesSettings if world == "scenes" else SpritesSettings).model_validate(DATA)
    theirs = open_world(settings, GLIP if family == "glip" else MDETR).task(kind, split)
    mine = opened(Wanted(task=kind, run=run_folder(tmp_path / "run", world), split=split), model)
    same(mine.task, theirs, model)
    assert mine.samples == {"world": world, "kind": kind, "split": split, **DATA}
    assert all(mine.texts(mine.task.samples))


def test_a_run_of_easy_vqa(tmp_path: Path) -> None:
    pytest.importorskip("easy_vqa")
    run = run_folder(tmp_path / "run", "easy-vqa", held_out=3)
    subject = opened(Wanted(run=run), deployed.mdetr(64, answers=13))
    assert subject.task.name == "easy-vqa/vqa"
    assert subject.samples == {"world": "easy-vqa", "split": "test", "images": 3}
    assert subject.text(0).endswith("?")
    assert 0 <= judge(subject, deployed.mdetr(64, answers=13)).value <= 1
    assert opened(Wanted(task="easy-vqa/vqa", split="val"), deployed.mdetr(64, answers=13)).samples["images"] == 400
    with pytest.raises(InarchError, match=r"no split 'style' .*train, val, test"):
        opened(Wanted(run=run, split="style"), deployed.mdetr(64, answers=13))
    with pytest.raises(RuntimeFailure, match="'answer' has 12 classes, and easy-vqa/vqa has 13"):
        opened(Wanted(run=run), deployed.mdetr(64, answers=12))


def test_what_a_run_is_tuned_for_is_its_task_unless_another_is_asked_for(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    assert opened(Wanted(run=run), deployed.mdetr(64)).task.name == "scenes/referring"
    assert opened(Wanted(run=run, task="scenes/grounding"), deployed.mdetr(64)).task.name == "scenes/grounding"


@pytest.mark.parametrize("side", [48, 64])
def test_the_model_says_how_large_images_are(side: int, few: None) -> None:
    subject = opened(Wanted("scenes/referring"), deployed.mdetr(side))
    assert subject.task.feeds(np.arange(2))["pixel_values"].shape == (2, 3, side, side)
    assert subject.samples["side"] == side
    free = opened(Wanted("scenes/referring", side=80), deployed.anywhere())
    assert free.task.feeds(np.arange(1))["pixel_values"].shape == (1, 3, 80, 80)
    patches = deployed.anywhere()
    pixels = next(value for value in patches.graph.inputs if value.name == "pixel_values")
    pixels.shape = ir.Shape(["B", 3, "8*height", "8*width"])
    with pytest.raises(InarchError, match=r"--side: images of 20 pixels are none .*a multiple of 8"):
        opened(Wanted("scenes/referring", side=20), patches)
    assert opened(Wanted("scenes/referring"), deployed.anywhere()).samples["side"] == 48


def test_options_of_scenes(few: None) -> None:
    subject = opened(Wanted("scenes/referring", level="hard", seed=7, split="unseen"), deployed.mdetr())
    assert (subject.task.name, subject.samples["level"], subject.samples["seed"]) == ("scenes-unseen/referring", "hard", 7)
    assert subject.text(0).startswith("the ")


def test_a_mask_may_be_missing(few: None) -> None:
    model = deployed.mdetr(masked=False)
    assert judge(opened(Wanted("scenes/referring"), model), model).scores["precision@1"].shape == (16,)


def test_a_fixed_batch_is_filled_up(few: None) -> None:
    fixed, free = deployed.mdetr(batch="5"), deployed.mdetr()
    first, second = (judge(opened(Wanted("scenes/referring"), model), model) for model in (free, fixed))
    np.testing.assert_allclose(first.predictions["boxes"], second.predictions["boxes"], atol=1e-6)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Wanted(), f"--task: say what the model is judged by .*{NAMES[0]}.*coco"),
        (Wanted("nosuch"), f"there is no task 'nosuch' .*{', '.join(NAMES[:3])}.*refcoco, gqa, coco"),
        (Wanted("scenes/detection"), "no detection with MDETR .*referring, grounding, vqa"),
        (Wanted("scenes/referring", level="odd"), "--level: there is no level 'odd' .*easy, medium, hard"),
        (Wanted("scenes/referring", split="style"), "--split: there is no split 'style' .*train, test, unseen"),
        (Wanted("scenes/referring", annotations=Path("a")), "--annotations: says nothing with --task scenes/referring .*--split"),
        (Wanted("easy-vqa/vqa", level="easy"), "--level: says nothing with --task easy-vqa/vqa .*there is --split"),
        (Wanted("refcoco", images=Path("a"), tokenizer=Path("b")), "--annotations: is missing .*--task refcoco needs it"),
        (Wanted("gqa", annotations=Path("nowhere.json"), images=Path("a")), "--tokenizer: is missing"),
        (Wanted("scenes/referring", side=64), r"'pixel_values' has the sizes \[B, 3, 48, 48\], and scenes/referring gives"),
        (Wanted("scenes/vqa"), "reads the output 'answer', which the model does not have .*there are logits, boxes"),
    ],
)
def test_what_is_asked_for_wrongly(wanted: Wanted, message: str, few: None) -> None:
    with pytest.raises(InarchError, match=message):
        opened(wanted, deployed.mdetr())


def test_questions_and_answers_have_to_be_the_models(few: None) -> None:
    with pytest.raises(RuntimeFailure, match="the model's output 'logits' has room for 9 tokens, and scenes/grounding has"):
        opened(Wanted("scenes/grounding"), deployed.mdetr(slots=9))
    with pytest.raises(RuntimeFailure, match="the model's output 'answer' has 9 classes, and scenes/vqa has 28"):
        opened(Wanted("scenes/vqa"), deployed.mdetr(answers=9))
    with pytest.raises(InarchError, match="no vqa with GLIP"):
        opened(Wanted("scenes/vqa"), deployed.glip())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no run here"),
        ("{", "is not the configuration of a run"),
        ('{"kind": "referring"}', "is not the configuration of a run .*not one of inarch tune"),
        ('{"data": {"task": "nosuch"}}', r"config\.json: data.*: there is no such task; there are scenes"),
        ('{"data": {"held_out": "many"}}', r"config\.json: data\.held_out: Input should be a valid integer"),
        ('{"data": {"held_out": 0}}', r"data\.held_out: Input should be greater than or equal to 1"),
        ('{"data": {"seed": 1.5}}', r"data\.seed: Input should be a valid integer"),
        ('{"data": {"level": ["easy"]}}', r"data\.level: Input should be a valid string"),
        ('{"data": {"task": "gqa", "short": "x"}}', r"data\.train: Field required"),
    ],
)
def test_folders_that_are_no_runs(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(InarchError, match=message):
        opened(Wanted(run=tmp_path), deployed.mdetr())


def test_what_a_run_does_not_have(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", "sprites")
    with pytest.raises(InarchError, match=r"no detection on sprites .*referring, grounding, vqa"):
        opened(Wanted(run=run, task="detection"), deployed.mdetr(64))
    with pytest.raises(InarchError, match=r"--level: says nothing with --run .*there is --split"):
        opened(Wanted(run=run, level="easy"), deployed.mdetr(64))


def test_a_glip_that_is_none() -> None:
    with pytest.raises(RuntimeFailure, match="gives 169 cells for an image of 64 x 128 pixels"):
        levels_of(169, 128, 64)
    assert [levels_of(cells, 128, 64) for cells in (128, 160, 168, 170, 171)] == [1, 2, 3, 4, 5]


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "accelerate", "torchvision"):
            raise ImportError(name)
sys.meta_path.insert(0, Block())
from inarch.tools.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("kind", ["grounding", "vqa"])
def test_nothing_needs_torch(kind: str, tmp_path: Path) -> None:
    model = deployed.saved(deployed.mdetr(64, answers=answers_of("scenes")), tmp_path / "model.onnx")
    arguments = ["evaluate", str(model), "--run", str(run_folder(tmp_path / "run")), "--task", kind, "--json"]
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *arguments], capture_output=True, text=True, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["task"] == f"scenes/{kind}"


# ---- files ----------------------------------------------------------------------------------------------------------------
@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Images, annotations of each kind, and a tokenizer of whole words."""
    pytest.importorskip("tokenizers")
    write_images(tmp_path)
    documents = {"refs": REFERRING, "gqa": GQA, "coco": COCO, "answers": BY_TYPE}
    for name, document in documents.items():
        write(tmp_path, document, f"{name}.json")
    word_tokenizer("the a red ball box on left is it what ? dog bottle .".split()).save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def of_files(folder: Path, task: str, annotations: str, **more: Any) -> Wanted:
    return Wanted(
        task, annotations=folder / annotations, images=folder, tokenizer=folder / "tokenizer.json", short=20, longest=32, **more
    )


def test_referring_expressions(files: Path) -> None:
    model = deployed.anywhere()
    subject = opened(of_files(files, "refcoco", "refs.json"), model)
    assert (subject.task.name, subject.batch, subject.texts(2)) == (
        "referring/refs",
        2,
        ["the red ball", "a box on the left"],
    )
    feeds = subject.task.feeds(np.arange(2))
    assert feeds["input_ids"].tolist() == [[1, 4, 6, 7, 2, 0, 0], [1, 5, 8, 9, 4, 10, 2]]
    found = judge(subject, model)
    assert found.predictions["boxes"].shape == (2, 10, 4)
    assert {"precision@1", "giou_precision@1", "precision@1/refcoco"} <= set(found.overall)
    changed = files / "other.json"
    changed.write_text((files / "refs.json").read_text() + " ")
    assert opened(of_files(files, "refcoco", "other.json"), model).samples != subject.samples


def test_a_run_on_files_is_judged_in_its_own_batches(files: Path, tmp_path: Path) -> None:
    """What an image is padded to depends on its batch."""
    data = {
        "task": "refcoco",
        "train": str(files / "refs.json"),
        "held_out": str(files / "refs.json"),
        "folder": str(files),
        "short": 20,
        "longest": 32,
        "images": 7,
    }
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"data": data | {"tokenizer": str(files / "tokenizer.json")}}))
    mine, theirs = (
        opened(Wanted(run=run), deployed.anywhere()),
        opened(of_files(files, "refcoco", "refs.json"), deployed.anywhere()),
    )
    assert (mine.batch, mine.samples) == (7, theirs.samples)
    # In batches of another size a model sees other padding.
    assert mine.samples_of(7) != theirs.samples_of(theirs.batch)
    same(mine.task, theirs.task, deployed.anywhere())
    assert opened(Wanted(run=run, task="referring", split="test"), deployed.anywhere()).task.name == "referring/refs"
    with pytest.raises(InarchError, match=r"no vqa on refcoco .*there is referring"):
        opened(Wanted(run=run, task="vqa"), deployed.anywhere())
    with pytest.raises(InarchError, match="there is no split 'testA'"):
        opened(Wanted(run=run, split="testA"), deployed.anywhere())


def test_questions(files: Path) -> None:
    model = deployed.anywhere(answers=-1)
    subject = opened(of_files(files, "gqa", "gqa.json", answers=files / "answers.json"), model)
    assert subject.text(0) == "is it red ?"
    assert set(judge(subject, model).scores) == {"accuracy", "type_accuracy", "text_accuracy"}
    with pytest.raises(RuntimeFailure, match="reads the output 'answer_type'"):
        opened(of_files(files, "gqa", "gqa.json", answers=files / "answers.json"), deployed.anywhere())


def glip_outputs(levels: int, size: tuple[int, int], boxes: dict[int, tuple[int, Corners]], tokens: int) -> Arrays:
    """A GLIP's outputs that have these boxes (corners in pixels) in these cells, each for the tokens from a place on."""
    from inarch.learning.models.glip_post import anchors

    places = np.concatenate(anchors(*size, levels))
    regression, logits = np.zeros((1, len(places), 4), np.float32), np.full((1, len(places), tokens), -12, np.float32)
    centre = np.full((1, len(places)), -12, np.float32)
    for cell, (token, corners) in boxes.items():
        anchor, box = places[cell], np.asarray(corners, np.float64)
        width = anchor[2:] - anchor[:2] + 1
        wanted = box[2:] - box[:2] + 1
        middle = box[:2] + (wanted - 1) / 2 - (anchor[:2] + (width - 1) / 2)
        regression[0, cell, :2] = (middle + 0) / width * 10
        regression[0, cell, 2:] = np.log(wanted / width) * 5
        logits[0, cell, token], centre[0, cell] = 6, 6
    return {"logits": logits, "boxes": regression, "centerness": centre}


def test_detection_reads_boxes_in_pixels_of_the_original(files: Path) -> None:
    pytest.importorskip("pycocotools")
    from inarch.learning.tasks.coco.tasks import Detection

    face = Face(
        "glip",
        {
            "pixel_values": (ir.DataType.FLOAT, ("B", 3, "32*h", "32*w")),
            "input_ids": (ir.DataType.INT64, ("B", "T")),
            "attention_mask": (ir.DataType.INT64, ("B", "T")),
        },
        {"logits": ("B", "N", "T"), "boxes": ("B", "N", 4), "centerness": ("B", "N")},
    )
    subject = open_subject(of_files(files, "coco", "coco.json"), face, lambda feeds: {})
    assert isinstance(subject.task, Detection)
    feeds = subject.task.feeds(np.arange(1))
    # dog and bottle, with a point between them; the image of 60 x 40 pixels becomes 30 x 20, padded to 32 x 32.
    assert feeds["input_ids"].tolist() == [[1, 15, 17, 16, 2]]
    assert feeds["pixel_values"].shape == (1, 3, 32, 32)
    said = glip_outputs(3, (32, 32), {5: (1, (5, 5, 14, 14)), 9: (3, (17, 2, 27, 17))}, 5)
    found = subject.task.predict(np.arange(1), said)
    best = found["labels"][0] >= 0
    assert dict(zip(found["labels"][0][best].tolist(), found["boxes"][0][best].round(1).tolist(), strict=True)) == {
        18: [10, 10, 30, 30],
        44: [34, 4, 56, 36],
    }
    assert subject.task.score(np.arange(1), found)["image_ap50"].tolist() == [1.0]
    assert subject.text(1) == "b.png"


def test_a_glip_finds_what_an_expression_refers_to(files: Path) -> None:
    face = Face(
        "glip",
        dict.fromkeys(("pixel_values", "input_ids", "attention_mask"), (None, None)),
        {"logits": None, "boxes": None, "centerness": None},
    )
    subject = open_subject(of_files(files, "refcoco", "refs.json"), face, lambda feeds: {})
    # The target is [0, 0, 10, 10] of 60 x 40 pixels: [0, 0, 4, 4] (last pixels) of 30 x 20.
    said = glip_outputs(2, (32, 32), {3: (2, (0, 0, 4, 4)), 8: (0, (20, 10, 30, 20))}, 5)
    found = subject.task.predict(np.arange(1), said)
    np.testing.assert_allclose(found["boxes"][0, 0], [0, 0, 10, 10], atol=0.1)
    assert subject.task.score(np.arange(1), found)["precision@1"].tolist() == [1.0]


def test_each_model_has_its_files(files: Path) -> None:
    with pytest.raises(InarchError, match=r"coco is nothing for an MDETR .*refcoco and gqa"):
        opened(of_files(files, "coco", "coco.json"), deployed.anywhere())
    with pytest.raises(InarchError, match=r"gqa is nothing for a GLIP .*refcoco and coco"):
        opened(of_files(files, "gqa", "gqa.json"), deployed.glip())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": "nowhere.json"}, r"nowhere\.json: cannot be read"),
        ({"annotations": "answers.json"}, r"answers\.json: images: is missing"),
        ({"tokenizer": "coco.json"}, r"coco\.json: is no tokenizer"),
        ({"images": "nowhere"}, r"nowhere/a\.png: cannot be read"),
    ],
)
def test_files_that_are_others(files: Path, change: Json, message: str) -> None:
    wanted = replace(of_files(files, "refcoco", "refs.json"), **{name: files / value for name, value in change.items()})
    with pytest.raises(DataError, match=message):
        opened(wanted, deployed.anywhere())
