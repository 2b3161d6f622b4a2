"""Samples to look at: what dense and compiled say of the same images, some of those on which they differ among them."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from inarch.tools import render
from inarch.tools.report_pictures import Pictures, pictures_of

if TYPE_CHECKING:
    from inarch.runtime.accuracy import Evaluation, Task

MOST = 15
"""Examples of one task: enough to look through, and little beside the page's other contents."""

CHANGED = 8
"""At most so many of them are samples on which the two models differ."""

SIDE = 256
"""Larger images are made smaller: they stand in the page."""


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
    first, second = dense.compared, compiled.compared
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
        "examples": [_example(pictures, row, dense, compiled) for row in rows],
    }


def write_examples(path: Path, task: Task, dense: Evaluation, compiled: Evaluation, *, seed: int = 0) -> bool:
    """Write :func:`examples_of` to a JSON file, whole or not at all; False, and no file, where there are none.

    Raises:
        InarchError: the file cannot be written.
    """
    examples = examples_of(task, dense, compiled, seed=seed)
    if examples is None:
        return False
    render.write_json(path, examples)
    return True


def choose(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64], *, seed: int, most: int) -> list[int]:
    """Places of samples: up to :data:`CHANGED` on which two models' scores [N] differ, then others."""
    rng = np.random.default_rng(seed)
    differ = rng.permutation(np.flatnonzero(first != second))[: min(CHANGED, most)]
    same = rng.permutation(np.flatnonzero(first == second))[: most - len(differ)]
    return [int(row) for row in (*differ, *same)]


def _example(pictures: Pictures, row: int, dense: Evaluation, compiled: Evaluation) -> dict[str, Any]:
    shown = pictures.show(row)
    said: dict[str, Any] = {"truth": {"boxes": _plain(shown.boxes), "answer": shown.answer}}
    for name, found in (("dense", dense), ("compiled", compiled)):
        said[name] = {
            "boxes": _plain(pictures.boxes(found.predictions, row)),
            "answer": pictures.answer(found.predictions, row),
            "right": _right(float(found.compared[row])),
        }
    height, width = shown.image.shape[:2]
    return {
        "row": row,
        "text": shown.text,
        "sort": shown.sort,
        "image": image_uri(shown.image),
        "width": width,
        "height": height,
        **said,
        "changed": bool(dense.compared[row] != compiled.compared[row]),
    }


def _right(score: float) -> bool | None:
    """Whether a score is that of a right answer; None between right and wrong."""
    return bool(score) if score in (0.0, 1.0) else None


def image_uri(image: npt.NDArray[np.uint8]) -> str:
    """An image [height, width, 3] in a ``data:`` URI, at most :data:`SIDE` pixels a side: exact, or a JPEG of a larger one."""
    from PIL import Image

    picture = Image.fromarray(image)
    form = "PNG" if max(picture.size) <= SIDE else "JPEG"
    picture.thumbnail((SIDE, SIDE))
    with io.BytesIO() as file:
        picture.save(file, form, optimize=True)
        return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def _plain(boxes: npt.NDArray[np.floating[Any]]) -> list[list[float]]:
    return [[round(float(value), 4) for value in box] for box in boxes]
