"""How a task's samples, and what a model says of them, are shown to a person: the image, the text, boxes and answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from inarch.learning.tasks.coco.files import BoxRow
    from inarch.learning.tasks.coco.tasks import Detection, Gqa, Referring
    from inarch.learning.tasks.easy_vqa import EasyVqaTask
    from inarch.learning.tasks.scenes.detection import DetectionTask
    from inarch.learning.tasks.scenes.task import ScenesTask
    from inarch.runtime.accuracy import Arrays, Task


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
    from inarch.learning.tasks.coco.tasks import Detection, Gqa, Referring
    from inarch.learning.tasks.easy_vqa import EasyVqaTask
    from inarch.learning.tasks.scenes.detection import DetectionTask
    from inarch.learning.tasks.scenes.task import ScenesTask

    if isinstance(task, ScenesTask):
        return _of_scenes(task)
    if isinstance(task, EasyVqaTask):
        return _of_easy_vqa(task)
    if isinstance(task, Referring):
        return _of_referring(task)
    if isinstance(task, Gqa):
        return _of_gqa(task)
    if isinstance(task, Detection):
        return _of_files(task)
    return _of_drawn(task) if isinstance(task, DetectionTask) else None


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


def _of_referring(task: Referring) -> Pictures:
    from inarch.learning.tasks.coco.images import read_image

    def parts(corners: npt.NDArray[Any], row: int) -> npt.NDArray[np.float64]:
        of = task.file.expressions[row]
        return _in_parts(corners, (of.width, of.height))

    def show(row: int) -> Shown:
        of = task.file.expressions[row]
        return Shown(read_image(task.source.folder, of), of.caption, of.dataset_name, parts(task.targets[row : row + 1], row))

    return Pictures(show, lambda said, row: parts(said["boxes"][row, :1], row), lambda said, row: None)


def _of_gqa(task: Gqa) -> Pictures:
    from inarch.learning.tasks.coco.images import read_image

    def show(row: int) -> Shown:
        of = task.file.questions[row]
        image = read_image(task.source.folder, of, sized=False)
        return Shown(image, of.caption, of.question_type, _NO_BOXES, of.answer)

    return Pictures(show, lambda said, row: _NO_BOXES, lambda said, row: task.words(_sample(said, row))[0])


def _of_files(task: Detection) -> Pictures:
    from inarch.learning.tasks.coco.images import read_image

    def show(row: int) -> tuple[npt.NDArray[np.uint8], str]:
        of = task.file.images[row]
        return read_image(task.source.folder, of), of.file_name

    return _of_detection(task, show, lambda row: (task.file.images[row].width, task.file.images[row].height))


def _of_drawn(task: DetectionTask) -> Pictures:
    side = task.data.config.side
    return _of_detection(task, lambda row: (task.data.images[row], f"scene {row}"), lambda row: (side, side))


def _of_detection(
    task: Detection | DetectionTask,
    picture: Callable[[int], tuple[npt.NDArray[np.uint8], str]],
    size: Callable[[int], tuple[int, int]],
) -> Pictures:
    """Of a model as many boxes as there are objects, best first; its answer is how precise all of them are.

    Args:
        task: what was judged.
        picture: a sample's image and name.
        size: its width and height, in pixels.
    """
    from inarch.learning.tasks.boxes import coco_to_corners

    def objects(row: int) -> list[BoxRow]:
        return [box for box in task.truth(row) if not box.iscrowd]

    def show(row: int) -> Shown:
        image, name = picture(row)
        truth = objects(row)
        boxes = coco_to_corners(np.asarray([box.bbox for box in truth], np.float64).reshape(-1, 4))
        return Shown(image, name, "", _in_parts(boxes, size(row)), f"{len(truth)} object{'' if len(truth) == 1 else 's'}")

    def boxes(said: Arrays, row: int) -> npt.NDArray[np.floating[Any]]:
        found = said["boxes"][row][said["labels"][row] >= 0]
        return _in_parts(found[: len(objects(row))], size(row))

    def answer(said: Arrays, row: int) -> str:
        (precision,) = next(iter(task.score(np.asarray([row]), _sample(said, row)).values()))
        return f"AP50 {precision:.2f}"

    return Pictures(show, boxes, answer)


def _in_parts(corners: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Boxes [n, 4] in pixels of an image of this width and height, as parts of it."""
    return np.asarray(corners / (size * 2), np.float64)


def _sample(said: Arrays, row: int) -> dict[str, npt.NDArray[Any]]:
    """One sample's predictions, as a batch of one."""
    return {name: values[row : row + 1] for name, values in said.items()}


def _answers(classes: Sequence[str]) -> Callable[[Arrays, int], str | None]:
    def answer(said: Arrays, row: int) -> str | None:
        return classes[int(said["answer"][row])] if "answer" in said else None

    return answer
