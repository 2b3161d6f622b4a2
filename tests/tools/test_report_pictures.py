"""What is shown of tasks in COCO's format: the file's image, boxes in parts of it, the words that were answered."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL")

from PIL import Image

from inarch.learning.tasks.coco.files import read_answers_by_type, read_coco, read_gqa, read_referring
from inarch.learning.tasks.coco.tasks import Detection, Gqa, Referring, Source
from inarch.runtime.accuracy import Arrays, Evaluation, Task
from inarch.tools.report_examples import examples_of, write_examples
from inarch.tools.report_files import ExamplesFile

from tests.learning.tasks.small import BY_TYPE, COCO, GQA, REFERRING, write, write_images


@pytest.fixture
def source(tmp_path: Path) -> Source:
    write_images(tmp_path)
    return Source(tmp_path)


def said(task: Task, predictions: Arrays) -> Evaluation:
    """An evaluation of all samples by what was predicted."""
    scores = task.score(np.arange(task.samples), predictions)
    return Evaluation(task.name, task.headline, predictions, scores, {})


def by_row(task: Task, dense: Arrays, compiled: Arrays) -> list[dict[str, object]]:
    document = examples_of(task, said(task, dense), said(task, compiled))
    assert document is not None
    ExamplesFile.model_validate(document)
    return sorted(document["examples"], key=lambda item: item["row"])


def test_referring_expressions(source: Source) -> None:
    task = Referring(read_referring(write(source.folder, REFERRING)), source)
    right = np.repeat(task.targets[:, None], 10, 1)
    wrong = right.copy()
    wrong[1, 0] = (20, 50, 30, 60)
    first, second = by_row(task, {"boxes": right}, {"boxes": wrong})
    assert (first["text"], first["sort"], first["changed"]) == ("the red ball", "refcoco", False)
    # [0, 0, 10, 10] of 60 x 40 pixels, and [5, 10.5, 15, 30.5] of 30 x 60.
    boxes = [[round(value, 4) for value in box] for box in ((0, 0, 10 / 60, 10 / 40), (5 / 30, 10.5 / 60, 15 / 30, 30.5 / 60))]
    for item, box in zip((first, second), boxes, strict=True):
        assert item["truth"] == {"boxes": [box], "answer": None}
        assert item["dense"] == {"boxes": [box], "answer": None, "right": True}
    assert second["changed"]
    assert second["compiled"] == {
        "boxes": [[round(20 / 30, 4), round(50 / 60, 4), 1.0, 1.0]], "answer": None, "right": False,
    }  # fmt: skip
    encoded = io.BytesIO(base64.b64decode(str(first["image"]).partition(",")[2]))
    with Image.open(encoded) as image, Image.open(source.folder / "a.png") as wanted:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(wanted))


def test_questions(source: Source) -> None:
    file = read_gqa(write(source.folder, GQA))
    task = Gqa(file, read_answers_by_type(write(source.folder, BY_TYPE, "answers.json")), source)
    dense = {"type": np.asarray([1, 4, 4]), "answer": np.asarray([1, 1, 2])}
    compiled = {"type": np.asarray([1, 4, 2]), "answer": np.asarray([2, 1, 7])}
    items = by_row(task, dense, compiled)
    assert [item["truth"] for item in items] == [{"boxes": [], "answer": word} for word in ("yes", "ball", "zebra")]
    assert [(item["dense"], item["compiled"]) for item in items] == [
        ({"boxes": [], "answer": a, "right": right}, {"boxes": [], "answer": b, "right": not changed})
        for a, b, right, changed in (("yes", "no", True, True), ("ball", "ball", True, False), ("unknown", None, True, True))
    ]
    assert [item["changed"] for item in items] == [True, False, True]


def test_detections(source: Source) -> None:
    task = Detection(read_coco(write(source.folder, COCO)), source, lambda outputs, frames: [])
    boxes = np.zeros((2, 3, 4))
    boxes[0, :2] = (10, 10, 30, 30), (35, 5, 55, 35)
    boxes[1, :2] = (2, 40, 22, 55.5), (0, 0, 30, 60)
    labels = np.asarray([[18, 44, -1], [44, 18, -1]])
    scores = np.asarray([[0.9, 0.8, 0], [0.9, 0.8, 0]])
    half = {"boxes": boxes, "labels": np.asarray([[18, 18, -1], [44, 18, -1]]), "scores": scores}
    first, second = by_row(task, {"boxes": boxes, "labels": labels, "scores": scores}, half)
    whole = [[round(value, 4) for value in box] for box in ((1 / 6, 1 / 4, 1 / 2, 3 / 4), (35 / 60, 1 / 8, 55 / 60, 35 / 40))]
    assert first["truth"] == {"boxes": whole, "answer": "2 objects"}
    assert first["dense"] == {"boxes": whole, "answer": "AP50 1.00", "right": True}
    assert first["compiled"] == {"boxes": whole, "answer": "AP50 0.50", "right": None}, "neither right nor wrong"
    assert first["changed"]
    # A crowd is no object to be found, so one box of the model is shown beside the one of the file.
    assert second["truth"] == {"boxes": [[round(2 / 30, 4), round(40 / 60, 4), round(22 / 30, 4), 0.925]], "answer": "1 object"}
    assert len(second["dense"]["boxes"]) == 1  # type: ignore[index]
    assert not second["changed"]


def test_a_photograph_is_made_small(source: Source) -> None:
    Image.fromarray(np.zeros((480, 640, 3), np.uint8)).save(source.folder / "a.png")
    document = {**GQA, "images": GQA["images"][:1]}
    answers = read_answers_by_type(write(source.folder, BY_TYPE, "answers.json"))
    task = Gqa(read_gqa(write(source.folder, document)), answers, source)
    prediction = {"type": np.asarray([1]), "answer": np.asarray([1])}
    path = source.folder / "examples.json"
    assert write_examples(path, task, said(task, prediction), said(task, prediction))
    (item,) = ExamplesFile.model_validate_json(path.read_bytes()).examples
    assert (item.width, item.height) == (640, 480)
    with Image.open(io.BytesIO(base64.b64decode(item.image.partition(",")[2]))) as image:
        assert (image.format, image.size) == ("JPEG", (256, 192))
