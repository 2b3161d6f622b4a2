"""Examples: which samples are shown, and that what is shown is what the models said."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from inarch.learning.tasks.boxes import to_corners
from inarch.runtime.accuracy import Arrays, evaluate
from inarch.structure.units import Indices
from inarch.tools.report_examples import CHANGED, choose, examples_of, image_uri

from tests.report.run_folder import judged


@pytest.mark.parametrize("kind", ["referring", "vqa"])
def test_what_is_shown_is_what_was_said(kind: str) -> None:
    task, first, second = judged(kind)
    document = examples_of(task, first.evaluation, second.evaluation)
    assert document is not None
    metric = first.evaluation.scores[task.headline], second.evaluation.scores[task.headline]
    assert document["changed"] == int((metric[0] != metric[1]).sum())
    assert sum(item["changed"] for item in document["examples"]) == CHANGED
    for item in document["examples"]:
        row = item["row"]
        assert item["changed"] == (item["dense"]["right"] != item["compiled"]["right"])
        for name, found in (("dense", first), ("compiled", second)):
            assert item[name]["right"] == (found.evaluation.scores[task.headline][row] == 1)
        if kind == "vqa":
            assert item["compiled"]["right"] == (item["compiled"]["answer"] == item["truth"]["answer"])
            assert item["truth"]["boxes"] == []
        else:
            target = task.texts.targets[row // 4, row % 4]
            np.testing.assert_allclose(item["truth"]["boxes"], to_corners(task.data.scenes.boxes[row // 4, target]), atol=1e-4)
            assert (item["compiled"]["boxes"] == item["truth"]["boxes"]) == item["compiled"]["right"]
        assert item["text"]


def test_the_image_is_the_samples() -> None:
    task, first, second = judged("vqa")
    document = examples_of(task, first.evaluation, second.evaluation, most=3)
    assert document is not None
    for item in document["examples"]:
        with Image.open(io.BytesIO(base64.b64decode(item["image"].partition(",")[2]))) as image:
            np.testing.assert_array_equal(np.asarray(image), task.data.images[item["row"] // 4])
            assert image.size == (item["width"], item["height"])


def test_large_images_are_made_smaller() -> None:
    uri = image_uri(np.zeros((600, 300, 3), np.uint8))
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        assert image.size == (128, 256)


def test_the_choice_is_the_seeds() -> None:
    first = np.asarray(np.arange(100) % 2, np.float64)
    second = np.asarray(np.arange(100) % 3 % 2, np.float64)
    rows = choose(first, second, seed=1, most=20)
    assert rows == choose(first, second, seed=1, most=20) != choose(first, second, seed=2, most=20)
    assert len(set(rows)) == 20
    assert int((first != second)[rows].sum()) == CHANGED
    assert len(choose(first[:3], first[:3], seed=0, most=5)) == 3


class Numbers:
    """A task without pictures."""

    name, samples, headline = "numbers", 2, "score"

    def feeds(self, rows: Indices) -> Arrays:
        return {"x": rows}

    def predict(self, rows: Indices, outputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        return dict(outputs)

    def score(self, rows: Indices, predictions: Arrays) -> dict[str, npt.NDArray[np.float64]]:
        return {"score": np.ones(len(rows))}

    def overall(self, predictions: Arrays) -> dict[str, float]:
        return {}


def test_a_task_without_pictures_has_no_examples() -> None:
    found = evaluate(lambda feeds: feeds, Numbers())
    assert examples_of(Numbers(), found, found) is None
