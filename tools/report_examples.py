"""Samples to look at: what dense and compiled say of the same images, some of those on which they differ among them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from inarch.learning.tasks.easy_vqa import EasyVqaTask
    from inarch.learning.tasks.scenes.task import ScenesTask
    from inarch.runtime.accuracy import Arrays, Evaluation, Task

MOST = 15
"""Examples of one task: enough to look through, and little beside the page's other contents."""

CHANGED = 8
"""At most so many of them are samples on which the two models differ."""

SIDE = 256
"""Larger images are made smaller: they stand in the page."""


@dataclass(frozen=True, eq=False)
class Shown:
    """One sample as a person sees it.

    Attributes:
        image: [height, width, 3], 0 to 255.
        text: the expression or the question.
        sort: what sort of text it is, or empty.
        boxes: what is looked for, [n, 4] left, top, right, bottom in parts of the image; empty for a question.
        answer: the right answer, or None.
    """

    image: npt.NDArray[np.uint8]
    text: str
    sort: str
    boxes: npt.NDArray[np.floating[Any]]
    answer: str | None = None


@dataclass(frozen=True)
class Pictures:
    """How a task's samples and a model's predictions are shown.

    Attributes:
        show: from a sample's place to what a person sees.
        boxes: from predictions and a place to a model's boxes, as in :class:`Shown`.
        answer: from predictions and a place to a model's answer.
    """

    show: Callable[[int], Shown]
    boxes: Callable[[Arrays, int], npt.NDArray[np.floating[Any]]]
    answer: Callable[[Arrays, int], str | None]


def pictures_of(task: Task) -> Pictures | None:
    """How to show a task's samples; None for a task that has no pictures here."""
    from inarch.learning.tasks.easy_vqa import EasyVqaTask
    from inarch.learning.tasks.scenes.task import ScenesTask

    if isinstance(task, ScenesTask):
        return _of_scenes(task)
    return _of_easy_vqa(task) if isinstance(task, EasyVqaTask) else None


def examples_of(task: Task, dense: Evaluation, compiled: Evaluation, *, seed: int = 0, most: int = MOST) -> dict[str, Any] | None:
    """Samples of a task with what both models say: the document of ``inarch.examples/1``.

    Args:
        task: what was judged.
        dense, compiled: on the same samples, in the task's order.
        seed: chooses among those that changed, and among the others.
        most: how many at most.

    Returns:
        None for a task that has no pictures here.
    """
    pictures = pictures_of(task)
    if pictures is None:
        return None
    first, second = dense.scores[task.headline], compiled.scores[task.headline]
    rows = choose(first, second, seed=seed, most=most)
    changed = first != second
    return {
        "format": "inarch.examples/1",
        "task": task.name,
        "chosen": (
            f"{int(changed[rows].sum())} at random of those on which the models differ, {int((~changed[rows]).sum())} at random "
            "of the others: more differ here than in the whole."
        ),
        "samples": len(first),
        "changed": int(changed.sum()),
        "examples": [_example(pictures, row, dense, compiled, task.headline) for row in rows],
    }


def choose(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64], *, seed: int, most: int) -> list[int]:
    """Places of samples: up to :data:`CHANGED` on which two models' scores [N] differ, then others."""
    rng = np.random.default_rng(seed)
    differ = rng.permutation(np.flatnonzero(first != second))[: min(CHANGED, most)]
    same = rng.permutation(np.flatnonzero(first == second))[: most - len(differ)]
    return [int(row) for row in (*differ, *same)]


def _example(pictures: Pictures, row: int, dense: Evaluation, compiled: Evaluation, headline: str) -> dict[str, Any]:
    shown = pictures.show(row)
    said: dict[str, Any] = {"truth": {"boxes": _plain(shown.boxes), "answer": shown.answer}}
    for name, found in (("dense", dense), ("compiled", compiled)):
        said[name] = {
            "boxes": _plain(pictures.boxes(found.predictions, row)),
            "answer": pictures.answer(found.predictions, row),
            "right": bool(found.scores[headline][row] >= 1),
        }
    height, width = shown.image.shape[:2]
    return {
        "row": row,
        "text": shown.text,
        "sort": shown.sort,
        "image": png_uri(shown.image),
        "width": width,
        "height": height,
        **said,
        "changed": bool(dense.scores[headline][row] != compiled.scores[headline][row]),
    }


def png_uri(image: npt.NDArray[np.uint8]) -> str:
    """An image [height, width, 3] as a PNG in a ``data:`` URI, at most :data:`SIDE` pixels a side."""
    from PIL import Image

    picture = Image.fromarray(image)
    picture.thumbnail((SIDE, SIDE))
    with io.BytesIO() as file:
        picture.save(file, "PNG", optimize=True)
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _plain(boxes: npt.NDArray[np.floating[Any]]) -> list[list[float]]:
    return [[round(float(value), 4) for value in box] for box in boxes]


_NO_BOXES = np.empty((0, 4))


def _of_scenes(task: ScenesTask) -> Pictures:
    """Scenes and sprites: pictures, words and boxes are at hand."""
    from inarch.learning.tasks.boxes import to_corners
    from inarch.learning.tasks.scenes.words import SCENES
    from inarch.learning.tasks.sprites.words import SPRITES

    language = SPRITES if task.label.startswith("sprites") else SCENES
    each = task.texts.ids.shape[1]

    def targets(row: int) -> npt.NDArray[np.int64]:
        found: npt.NDArray[np.int64] = task.texts.targets[row // each, row % each]
        return found

    def show(row: int) -> Shown:
        scene, pick = divmod(row, each)
        wanted = targets(row)
        boxes = to_corners(task.data.scenes.boxes[scene, wanted[wanted >= 0]])
        answer = int(task.texts.answers[scene, pick])
        return Shown(
            task.data.images[scene],
            language.decode(task.texts.ids[scene, pick].tolist()),
            str(task.texts.kinds[scene, pick]),
            _NO_BOXES if task.kind == "vqa" else boxes,
            language.answers[answer] if task.kind == "vqa" else None,
        )

    def boxes(said: Arrays, row: int) -> npt.NDArray[np.floating[Any]]:
        if task.kind == "vqa":
            return _NO_BOXES
        # Of an expression the best box alone; of a caption one for each phrase that there is.
        found = said["boxes"][row]
        return to_corners(found[targets(row) >= 0] if task.kind == "grounding" else found[:1])

    return Pictures(show, boxes, _answers(language.answers))


def _of_easy_vqa(task: EasyVqaTask) -> Pictures:
    data = task.data

    def show(row: int) -> Shown:
        answer = data.classes[int(data.answers[row])]
        return Shown(data.images[int(data.image[row])], data.questions[row], "", _NO_BOXES, answer)

    return Pictures(show, lambda said, row: _NO_BOXES, _answers(data.classes))


def _answers(classes: Sequence[str]) -> Callable[[Arrays, int], str | None]:
    def answer(said: Arrays, row: int) -> str | None:
        return classes[int(said["answer"][row])] if "answer" in said else None

    return answer
