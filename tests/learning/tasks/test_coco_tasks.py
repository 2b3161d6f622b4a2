from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("PIL")

from inarch.learning.tasks.boxes import corners_to_coco
from inarch.learning.tasks.coco.files import BoxRow, read_answers_by_type, read_coco, read_gqa, read_referring
from inarch.learning.tasks.coco.images import Preparation
from inarch.learning.tasks.coco.scores import average_precision, coco_metrics
from inarch.learning.tasks.coco.tasks import Detected, Detection, Frame, Gqa, Referring, Source
from inarch.runtime.accuracy import Arrays, Task, evaluate
from inarch.structure.errors import DataError, RuntimeFailure

from tests.learning.tasks.small import BY_TYPE, COCO, GQA, REFERRING, Json, changed, tokenizer, write, write_images

SMALL = Preparation(short=20, longest=32)
ALL = np.arange(2)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    pytest.importorskip("transformers")
    write_images(tmp_path)
    return Source(tmp_path, tokenizer(), SMALL)


def referring(tmp_path: Path, source: Source, document: Json = REFERRING) -> Referring:
    return Referring(read_referring(write(tmp_path, document, "refs_val.json")), source)


def queries(boxes: Sequence[Sequence[Sequence[float]]], scores: Sequence[Sequence[float]]) -> dict[str, npt.NDArray[Any]]:
    """MDETR's outputs that have these boxes (COCO's form, relative) and probabilities of an object."""
    xywh = np.asarray(boxes, np.float32)
    centres = np.concatenate((xywh[..., :2] + xywh[..., 2:] / 2, xywh[..., 2:]), -1)
    objects = np.asarray(scores, np.float32)
    # Two token slots share what the object has.
    return {"logits": np.log(np.stack((objects * 0.3, objects * 0.7, 1 - objects), -1)), "boxes": centres}


def test_referring_feeds(tmp_path: Path, source: Source) -> None:
    task = referring(tmp_path, source)
    feeds = task.feeds(ALL)
    assert {name: value.shape for name, value in feeds.items()} == {
        "pixel_values": (2, 3, 32, 30),
        "pixel_mask": (2, 32, 30),
        "input_ids": (2, 7),
        "attention_mask": (2, 7),
    }
    assert feeds["pixel_mask"].sum((1, 2)).tolist() == [600, 512]
    assert feeds["attention_mask"].sum(1).tolist() == [5, 7]
    assert (task.name, task.samples, task.headline) == ("referring/refs_val", 2, "precision@1")
    assert set(task.feeds(ALL[:1])) == set(feeds)


def test_referring_scores(tmp_path: Path, source: Source) -> None:
    task = referring(tmp_path, source)
    # Image 60 x 40 with the target [0, 0, 10, 10]; image 30 x 60 with [5, 10.5, 10, 20].
    near = [1.8 / 60, 1.8 / 40, 10 / 60, 10 / 40]  # IoU 0.506, GIoU 0.460
    wrong = [0.5, 0.5, 0.4, 0.4]
    exact = [5 / 30, 10.5 / 60, 10 / 30, 20 / 60]
    outputs = queries([[wrong, near, wrong], [exact, wrong, wrong]], [[0.2, 0.9, 0.3], [0.5, 0.7, 0.6]])
    predictions = task.predict(ALL, outputs)
    assert predictions["boxes"].shape == (2, 3, 4)
    np.testing.assert_allclose(predictions["boxes"][1, 2], [5, 10.5, 15, 30.5], atol=1e-4)
    np.testing.assert_allclose(predictions["scores"], [[0.9, 0.3, 0.2], [0.7, 0.6, 0.5]], atol=1e-6)
    np.testing.assert_allclose(predictions["margin"], [0.6, 0.1], atol=1e-6)
    alone = task.predict(ALL, queries([[wrong], [exact]], [[0.2], [0.5]]))
    np.testing.assert_allclose(alone["margin"], [0.2, 0.5], atol=1e-6)
    scores = {name: values.tolist() for name, values in task.score(ALL, predictions).items()}
    assert scores == {
        "precision@1": [1, 0],
        "precision@5": [1, 1],
        "precision@10": [1, 1],
        "giou_precision@1": [0, 0],
        "giou_precision@5": [0, 1],
        "giou_precision@10": [0, 1],
    }


def test_referring_keeps_ten(tmp_path: Path, source: Source) -> None:
    task = referring(tmp_path, source)
    wrong, exact = [0.5, 0.5, 0.4, 0.4], [0, 0, 10 / 60, 10 / 40]
    ranks = np.linspace(0.9, 0.1, 12).tolist()
    for rank, wanted in [(0, [1, 1, 1]), (1, [0, 1, 1]), (4, [0, 1, 1]), (5, [0, 0, 1]), (9, [0, 0, 1]), (10, [0, 0, 0])]:
        boxes = [wrong] * 12
        boxes[rank] = exact
        predictions = task.predict(ALL[:1], queries([boxes], [ranks]))
        assert predictions["boxes"].shape == (1, 10, 4)
        scores = task.score(ALL[:1], predictions)
        assert [scores[f"precision@{k}"][0] for k in (1, 5, 10)] == wanted


def test_referring_is_a_task(tmp_path: Path, source: Source) -> None:
    task: Task = referring(tmp_path, source)

    def model(feeds: Arrays) -> Arrays:
        assert feeds["pixel_values"].dtype == np.float32
        return queries([[[0, 0, 10 / 60, 10 / 40]]] * len(feeds["input_ids"]), [[0.9]] * len(feeds["input_ids"]))

    for batch in (1, 2):
        found = evaluate(model, task, batch=batch)
        assert found.value == 0.5
        assert found.overall["precision@1/refcoco"] == 1
        assert found.overall["giou_precision@10/refcoco+"] == 0
    one = evaluate(model, task, limit=1)
    assert one.overall == {f"{kind}precision@{k}": 1 for kind in ("", "giou_") for k in (1, 5, 10)}


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ({"boxes": np.zeros((2, 3, 4))}, "no output 'logits'"),
        ({"logits": np.zeros((2, 3))}, r"'logits' has the shape \[2, 3\], wanted \[2, any, any\]"),
        ({"logits": np.zeros((2, 3, 9)), "boxes": np.zeros((2, 4, 4))}, r"'boxes' has the shape \[2, 4, 4\], wanted \[2, 3, 4\]"),
    ],
)
def test_referring_refuses_other_outputs(tmp_path: Path, source: Source, outputs: Arrays, said: str) -> None:
    with pytest.raises(RuntimeFailure, match=said):
        referring(tmp_path, source).predict(ALL, outputs)


def test_inputs_as_the_model_takes_them(tmp_path: Path, source: Source) -> None:
    with pytest.raises(DataError, match="need a tokenizer"):
        referring(tmp_path, Source(tmp_path)).feeds(ALL[:1])
    with pytest.raises(DataError, match="more than the model's 6"):
        referring(tmp_path, Source(tmp_path, source.tokenizer, longest=6)).feeds(ALL)
    assert set(referring(tmp_path, Source(tmp_path, source.tokenizer, mask=False)).feeds(ALL[:1])) == {
        "pixel_values",
        "input_ids",
        "attention_mask",
    }


def gqa(tmp_path: Path, source: Source, by_type: Json = BY_TYPE) -> Gqa:
    answers = read_answers_by_type(write(tmp_path, by_type, "answers.json"))
    return Gqa(read_gqa(write(tmp_path, GQA, "gqa_val.json")), answers, source)


def says(kinds: Sequence[int], classes: Sequence[int]) -> dict[str, npt.NDArray[Any]]:
    """Outputs that say, for each sample, this type and, in every head alike, this class."""
    columns = {"obj": 3, "attr": 3, "rel": 3, "global": 3, "cat": 3}
    heads = {f"answer_{kind}": np.eye(width)[list(classes)] for kind, width in columns.items()}
    return heads | {"answer_type": np.eye(5)[list(kinds)]}


def test_gqa_wants_type_and_answer(tmp_path: Path, source: Source) -> None:
    task = gqa(tmp_path, source)
    rows = np.arange(3)
    # Truth: attr "yes" (class 1), cat "ball" (1), cat "zebra", which is unknown (2).
    for kinds, classes, accuracy, typed, text in [
        ([1, 4, 4], [1, 1, 2], [1, 1, 1], [1, 1, 1], [1, 1, 0]),
        ([1, 4, 4], [0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 0, 0]),
        ([4, 1, 1], [1, 1, 2], [0, 0, 0], [0, 0, 0], [0, 0, 0]),
        ([0, 2, 3], [0, 1, 2], [0, 0, 0], [0, 0, 0], [1, 0, 0]),  # "yes" by the head of another type; classes without a word
    ]:
        predictions = task.predict(rows, says(kinds, classes))
        assert predictions["type"].tolist() == kinds
        scores = task.score(rows, predictions)
        assert {name: values.tolist() for name, values in scores.items()} == {
            "accuracy": accuracy,
            "type_accuracy": typed,
            "text_accuracy": text,
        }


def test_gqa_answers_from_the_head_of_the_chosen_type(tmp_path: Path, source: Source) -> None:
    outputs = says([4], [0])
    outputs["answer_cat"] = np.asarray([[0.1, 0.2, 0.9]])
    predictions = gqa(tmp_path, source).predict(ALL[:1], outputs)
    assert predictions["answer"].tolist() == [2]
    np.testing.assert_allclose(predictions["margin"], [0.7])
    outputs["answer_type"] = np.asarray([[0.0, 0.0, 0.0, 0.1, 0.2]])
    np.testing.assert_allclose(gqa(tmp_path, source).predict(ALL[:1], outputs)["margin"], [0.1])


def test_gqa_is_a_task(tmp_path: Path, source: Source) -> None:
    task: Task = gqa(tmp_path, source)
    found = evaluate(lambda feeds: says([1] * len(feeds["input_ids"]), [1] * len(feeds["input_ids"])), task, batch=2)
    assert found.overall == pytest.approx({"accuracy": 1 / 3, "type_accuracy": 1 / 3, "text_accuracy": 1 / 3})


def test_gqa_refuses(tmp_path: Path, source: Source) -> None:
    with pytest.raises(DataError, match=r"images\[2\]\.answer: the answers of type 'cat' have neither 'zebra' nor 'unknown'"):
        gqa(tmp_path, source, changed(BY_TYPE, "answer_cat", "unknown", ...))
    outputs = says([1], [1])
    with pytest.raises(RuntimeFailure, match="'answer_obj' has 3 classes, its vocabulary 8"):
        gqa(tmp_path, source, changed(BY_TYPE, "answer_obj", "maybe", 7)).predict(ALL[:1], outputs)
    del outputs["answer_cat"]
    with pytest.raises(RuntimeFailure, match="no output 'answer_cat'"):
        gqa(tmp_path, source).predict(ALL[:1], outputs)


Box = tuple[float, float, float, float, float, int]
"""x1, y1, x2, y2, score, category."""

RIGHT: list[list[Box]] = [
    [(10, 10, 30, 30, 0.9, 18), (35, 5, 55, 35, 0.8, 44)],
    [(2, 40, 22, 55.5, 0.7, 44), (4, 4, 10, 10, 0.95, 18)],  # the second lies in a crowd
]


def detected(boxes: Sequence[Box]) -> Detected:
    table = np.asarray(boxes, np.float64).reshape(-1, 6)
    return Detected(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))


def detection(tmp_path: Path, found: Sequence[Sequence[Box]], document: Json = COCO, **more: Any) -> Detection:
    """A task whose model says, by its output ``row``, which detections it has."""
    write_images(tmp_path)

    def decode(outputs: Arrays, frames: Sequence[Frame]) -> list[Detected]:
        return [detected(found[row]) for row in outputs["row"]]

    return Detection(read_coco(write(tmp_path, document, "instances.json")), Source(tmp_path, preparation=SMALL), decode, **more)


def rows_of(feeds: Arrays) -> Arrays:
    """The image of 60 x 40 is row 0."""
    return {"row": np.asarray([0 if mask.any(0).sum() > mask.any(1).sum() else 1 for mask in feeds["pixel_mask"]])}


def test_detection_feeds_and_frames(tmp_path: Path) -> None:
    task = detection(tmp_path, RIGHT, constants={"input_ids": np.asarray([[1, 5, 2]])})
    feeds = task.feeds(ALL)
    assert feeds["pixel_values"].shape == (2, 3, 32, 30)
    assert feeds["input_ids"].tolist() == [[1, 5, 2]] * 2
    assert task.frames(ALL) == [Frame((40, 60), (20, 30), (32, 30)), Frame((60, 30), (32, 16), (32, 30))]
    assert task.frames(ALL[1:]) == [Frame((60, 30), (32, 16), (32, 16))]


def test_perfect_detections(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pycocotools")
    task: Task = detection(tmp_path, RIGHT)
    for batch in (1, 2):
        found = evaluate(rows_of, task, batch=batch)
        assert found.value == pytest.approx(1)
        assert found.overall == pytest.approx({"mAP": 1, "mAP@50": 1, "mAP@75": 1, "mAP_small": 1, "image_ap50": 1})
        assert found.predictions["labels"][:, :3].tolist() == [[18, 44, -1], [18, 44, -1]]
    assert capsys.readouterr().out == ""


def test_detections_that_are_wrong(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    none = evaluate(rows_of, detection(tmp_path, [[], []]))
    assert none.overall == pytest.approx({"mAP": 0, "mAP@50": 0, "mAP@75": 0, "mAP_small": 0, "image_ap50": 0})
    # Classes swapped in the first image; the second one is right.
    swapped = evaluate(rows_of, detection(tmp_path, [[(10, 10, 30, 30, 0.6, 44)], RIGHT[1]]))
    assert swapped.scores["image_ap50"].tolist() == [0, 1]
    assert swapped.overall["mAP@50"] == pytest.approx(0.25, abs=0.01)


def test_detection_of_the_first_images(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    task = detection(tmp_path, [RIGHT[0], []])
    assert evaluate(rows_of, task, limit=1).value == pytest.approx(1)
    crowd = changed(changed(COCO, "annotations", 1, ...), "annotations", 0, "iscrowd", 1)
    with pytest.raises(RuntimeFailure, match="no annotated object"):
        evaluate(rows_of, detection(tmp_path, RIGHT, crowd), limit=1)


def test_only_the_best_are_kept(tmp_path: Path) -> None:
    task = detection(tmp_path, RIGHT, keep=1)
    predictions = task.predict(ALL, {"row": ALL})
    assert predictions["scores"].tolist() == [[0.9], [0.95]]


def test_detection_refuses(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no object is annotated"):
        detection(tmp_path, RIGHT, changed(COCO, "annotations", []))
    with pytest.raises(RuntimeFailure, match="label 5 is no category"):
        detection(tmp_path, [[(0, 0, 1, 1, 0.5, 5)]]).predict(ALL[:1], {"row": ALL[:1]})
    with pytest.raises(RuntimeFailure, match="1 lists of detections are no 2"):
        detection(tmp_path, RIGHT).predict(ALL, {"row": ALL[:1]})
    file = read_coco(tmp_path / "instances.json")
    odd = Detection(
        file, Source(tmp_path), lambda outputs, frames: [Detected(np.zeros((2, 4)), np.zeros(1), np.zeros(1, np.int64))]
    )
    with pytest.raises(RuntimeFailure, match="of 1 detections have the shapes"):
        odd.predict(ALL[:1], {})


@pytest.mark.parametrize("seed", range(12))
def test_one_image_agrees_with_pycocotools(tmp_path: Path, seed: int) -> None:
    """With one image and one class, mAP@50 is the image's own average precision, read at 101 recalls."""
    pytest.importorskip("pycocotools")
    rng = np.random.default_rng(seed)
    truth = np.concatenate((rng.uniform(0, 40, (6, 2)), rng.uniform(5, 25, (6, 2))), 1)
    annotations = [
        {"id": i, "image_id": 7, "category_id": 18, "bbox": box.tolist(), "area": float(box[2] * box[3]), "iscrowd": int(i == 5)}
        for i, box in enumerate(truth)
    ]
    file = read_coco(write(tmp_path, changed(COCO, "annotations", annotations)))
    corners = np.concatenate((truth[:, :2], truth[:, :2] + truth[:, 2:]), 1)
    boxes = np.repeat(corners, 2, 0) + rng.normal(0, 2.5, (12, 4))
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    predictions = {"boxes": boxes[None], "scores": np.linspace(1, 0.1, 12)[None], "labels": np.full((1, 12), 18)}
    theirs = coco_metrics(file, predictions, "test")["mAP@50"]
    assert average_precision(boxes, predictions["labels"][0], file.annotations, 0.5) == pytest.approx(theirs, abs=0.02)


def test_average_precision_by_hand() -> None:
    truth = np.asarray([[0.0, 0, 10, 10], [20.0, 0, 30, 10]])
    rows = [
        BoxRow.model_validate({"id": 0, "image_id": 0, "category_id": 1, "bbox": box, "area": 1, "iscrowd": 0})
        for box in corners_to_coco(truth).tolist()
    ]
    labels = np.ones(3, np.int64)
    far = np.asarray([50.0, 50, 60, 60])
    # Right, wrong, right: precision 1 at the first, 2/3 at the second.
    assert average_precision(np.stack((truth[0], far, truth[1])), labels, rows, 0.5) == pytest.approx((1 + 2 / 3) / 2)
    # An object is found once.
    assert average_precision(np.stack((truth[0], truth[0], truth[1])), labels, rows, 0.5) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(truth[:1], labels[:1], rows, 0.5) == 0.5
    assert average_precision(truth, np.asarray([2, 2]), rows, 0.5) == 0
    assert average_precision(truth, labels[:2], [], 0.5) == 1
