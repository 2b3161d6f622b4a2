"""Training on annotations in COCO's format: batches of images from their files, a few texts about each.

Images are read and resized for every batch, as they are judged, the next batch's while one is learned from; nothing is cropped or
flipped. Shapes: I images and B texts a
batch, P boxes a text, T tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import nn

from inarch.learning.data_config import FilesSettings, weights_part
from inarch.learning.models.glip import Glip
from inarch.learning.models.mdetr import Mdetr
from inarch.learning.tasks.boxes import Floats, coco_to_corners, to_centres
from inarch.learning.tasks.coco.ahead import Ahead
from inarch.learning.tasks.coco.files import ImageRow
from inarch.learning.tasks.coco.glip import prompt, spoken
from inarch.learning.tasks.coco.kinds import FileTask, rows_of, text_of
from inarch.learning.tasks.coco.tasks import Detection, Frame, Gqa, Referring, Source
from inarch.learning.tasks.courses import Arrays, Part, draw_images
from inarch.learning.tasks.glip_trainee import GlipTrainee, totals
from inarch.learning.tasks.mdetr_trainee import MdetrTrainee
from inarch.learning.tasks.trainee import Trainee
from inarch.structure.errors import DataError, InarchError
from inarch.structure.units import Indices


class FilesCourse(ABC):
    """Training on one file of annotations.

    Args:
        task: the file's samples.
        settings: of batches.
        levels: of a GLIP's pyramid, or None for an MDETR.

    Attributes:
        images: every image once, in an order of their own: files are often sorted, and the structure is to see all sorts.
        about: the samples about each.
        edge: images before this one are the weights', the others the structure's.

    Raises:
        DataError: there are too few images.
    """

    sized = True
    """Whether images have to have the sizes that their rows say."""

    def __init__(self, task: FileTask, settings: FilesSettings, levels: int | None = None) -> None:
        self.task, self.settings, self.levels = task, settings, levels
        self.name = task.name
        self.source: Source = task.source
        rows = rows_of(task)
        about: dict[str, list[int]] = {}
        for number, row in enumerate(rows):
            about.setdefault(row.file_name, []).append(number)
        grouped = list(about.values())
        order = np.random.default_rng(0).permutation(len(grouped)).tolist()
        self.about = [np.asarray(grouped[place]) for place in order]
        self.images: list[ImageRow] = [rows[numbers[0]] for numbers in self.about]
        self._steps: dict[Part, int] = {}
        self._ahead = Ahead(lambda row: self.source.image(row, sized=self.sized))
        try:
            self.edge = weights_part(len(self.images), settings.images)
        except ValueError as error:
            raise DataError(str(error), where=settings.train, hint="take a smaller data.images") from None

    def texts(self, picks: Sequence[int]) -> dict[str, npt.NDArray[np.int64]]:
        """``input_ids`` and ``attention_mask`` [B, T] of samples."""
        return self.source.texts([text_of(self.task, row) for row in picks])

    @abstractmethod
    def targets(self, picks: Sequence[int], frames: Sequence[Frame], mask: Indices) -> Arrays:
        """What is to be learned of samples.

        Args:
            picks: B samples.
            frames: sizes of each one's image.
            mask: their real tokens [B, T].
        """

    def batch(self, seed: int, step: int, part: Part = "weights") -> Arrays:
        """Images drawn anew for every batch, each once in it, and as many texts of each; of fewer, some twice."""
        chosen, rng = self.drawn(seed, step, part)
        each = self.settings.each
        picks = [
            int(row) for image in chosen for row in rng.choice(self.about[image], each, replace=len(self.about[image]) < each)
        ]
        expected = self.drawn(seed, self._after(step, part), part)[0]
        rows, coming = ([self.images[image] for image in drawn] for drawn in (chosen, expected))
        made: Arrays = {
            **self.source.batch(self._ahead.take(part, rows, coming)),
            **self.texts(picks),
            "image": np.repeat(np.arange(len(rows)), each),
        }
        frames = [frame for frame in self.source.frames(rows) for _ in range(each)]
        made |= self.targets(picks, frames, made["attention_mask"])
        if self.levels is None:
            return made
        size = (made["pixel_values"].shape[2], made["pixel_values"].shape[3])
        divisors = totals(made["boxes"], made["box_mask"], size, self.levels)
        return made | {"answering": divisors[:1], "central": divisors[1:]}

    def _after(self, step: int, part: Part) -> int:
        """The step of the part's next batch, if it goes on as it went: two parts in turn take every other one."""
        before = self._steps.get(part, step - 1)
        self._steps[part] = step
        return step + max(1, step - before)

    def drawn(self, seed: int, step: int, part: Part) -> tuple[list[int], np.random.Generator]:
        """The images of a batch, places in ``images``, and the generator that they were drawn with and its texts are."""
        rng = np.random.default_rng([seed, step, part == "structure"])
        return draw_images(rng, self.settings.images, self.edge, len(self.images), part).tolist(), rng

    def trainee(self, model: nn.Module) -> Trainee:
        """A model with its losses.

        Raises:
            InarchError: it is another kind of model than the batches are for.
        """
        if isinstance(model, Glip) and model.config.levels == self.levels:
            return GlipTrainee(model)
        if isinstance(model, Mdetr) and self.levels is None:
            return MdetrTrainee(model)
        raise InarchError(f"{self.name} is set up for another model than this {type(model).__name__}", where="--model")

    def placed(self, corners: Sequence[Floats], frames: Sequence[Frame]) -> dict[str, npt.NDArray[np.generic]]:
        """Boxes as the model learns them: an MDETR's relative to the image, a GLIP's to the image with its padding.

        Args:
            corners: of each text's boxes, [p, 4], in pixels of the original image.
            frames: sizes of each one's image.

        Returns:
            ``boxes`` [B, P, 4] (centre, width, height), ``box_mask`` [B, P] and ``objects`` [1], the number of boxes.
        """
        most = max(1, *(len(found) for found in corners))
        boxes, mask = np.zeros((len(corners), most, 4), np.float32), np.zeros((len(corners), most), np.bool_)
        for row, (found, frame) in enumerate(zip(corners, frames, strict=True)):
            scale = np.asarray(frame.original[::-1] * 2, np.float64)
            if self.levels is not None:
                scale *= np.asarray(frame.padded[::-1] * 2) / np.asarray(frame.resized[::-1] * 2)
            boxes[row, : len(found)] = to_centres(found / scale)
            mask[row, : len(found)] = True
        return {"boxes": boxes, "box_mask": mask, "objects": np.array([max(int(mask.sum()), 1)], np.float32)}


class RefcocoCourse(FilesCourse):
    """Training on referring expressions: the box of each, for the tokens that name it; with a GLIP, for all of them.

    Args:
        task: the file's samples.
        settings: of batches.
        levels: of a GLIP's pyramid, or None for an MDETR.

    Raises:
        DataError: there are too few images, or a box lies outside of its image.
    """

    def __init__(self, task: Referring, settings: FilesSettings, levels: int | None = None) -> None:
        super().__init__(task, settings, levels)
        self.file = task.file
        self._boxes = self._corners()
        self._tokens = self._named() if levels is None else []

    def targets(self, picks: Sequence[int], frames: Sequence[Frame], mask: Indices) -> Arrays:
        """Boxes, and the tokens that name each."""
        spans = spoken(mask)
        if self.levels is None:
            spans = np.zeros_like(spans)
            for row, pick in enumerate(picks):
                spans[row, self._tokens[pick]] = True
        placed = self.placed([self._boxes[[row]] for row in picks], frames)
        return {**placed, "spans": spans[:, None], "answers": np.full(len(picks), -1)}

    def _corners(self) -> Floats:
        """Corners of every expression's box, [N, 4], as far as they lie in the image."""
        corners = coco_to_corners(np.asarray([target.bbox for target in self.file.targets], np.float64))
        inside = _inside(corners, self.file.expressions)
        outside = np.flatnonzero((inside[:, 2:] <= inside[:, :2]).any(1))
        if len(outside):
            row = self.file.expressions[outside[0]]
            where = f"{self.file.source}: annotations of the expression {row.id}"
            raise DataError(f"the box lies outside of {row.file_name!r}", where=where)
        return inside

    def _named(self) -> list[Indices]:
        """The tokens that name every expression's box; where no characters do that have a token, the whole expression does."""
        made = []
        for row, target in zip(self.file.expressions, self.file.targets, strict=True):
            mask = self.source.texts([row.caption])["attention_mask"]
            named = self.source.spans(row.caption, [target.tokens_positive], mask.shape[1], blanks=True)[0]
            made.append(np.flatnonzero(named if named.any() else spoken(mask)[0]))
        return made


class GqaCourse(FilesCourse):
    """Training on questions: their type, and the answer among that type's."""

    sized = False  # no box is learned

    def __init__(self, task: Gqa, settings: FilesSettings) -> None:
        super().__init__(task, settings)
        self._answers, self._types = task.answers, task.types

    def targets(self, picks: Sequence[int], frames: Sequence[Frame], mask: Indices) -> Arrays:
        """Types and answers; no boxes."""
        nothing = self.placed([np.zeros((0, 4))] * len(picks), frames)
        asked = {"answers": self._answers[list(picks)], "answer_types": self._types[list(picks)]}
        return {**nothing, "spans": np.zeros((len(picks), 1, mask.shape[1]), np.bool_), **asked}

    def trainee(self, model: nn.Module) -> Trainee:
        """An MDETR with its answer losses.

        Raises:
            InarchError: it is none, or has other answers.
        """
        if isinstance(model, Mdetr) and model.config.answers != "gqa":
            raise InarchError(f"the model has {model.config.answers} answers, {self.name} gqa's", where="--model")
        return super().trainee(model)


class CocoCourse(FilesCourse):
    """Training on the objects of all categories, whose names are the one text; crowds are left out.

    Args:
        task: the file's samples.
        settings: of batches.
        levels: of the GLIP's pyramid.

    Raises:
        DataError: there are too few images, or the names are no text for the model.
    """

    def __init__(self, task: Detection, settings: FilesSettings, levels: int) -> None:
        super().__init__(task, settings, levels)
        ids, mask, phrases = prompt(task.file, task.source)
        self._text = {"input_ids": ids, "attention_mask": mask}
        self._names = np.zeros((len(phrases), ids.shape[1]), np.bool_)
        for row, tokens in enumerate(phrases):
            self._names[row, tokens] = True
        category = {item.id: row for row, item in enumerate(task.file.categories)}
        self._boxes: list[Floats] = []
        self._categories: list[Indices] = []
        for row, image in enumerate(task.file.images):
            real = [box for box in task.truth(row) if not box.iscrowd]
            corners = _inside(coco_to_corners(np.asarray([box.bbox for box in real], np.float64).reshape(-1, 4)), [image])
            there = (corners[:, 2:] > corners[:, :2]).all(1)
            self._boxes.append(corners[there])
            self._categories.append(np.asarray([category[box.category_id] for box in real], np.int64)[there])

    def texts(self, picks: Sequence[int]) -> dict[str, npt.NDArray[np.int64]]:
        """The same for all."""
        return {name: np.repeat(values, len(picks), 0) for name, values in self._text.items()}

    def targets(self, picks: Sequence[int], frames: Sequence[Frame], mask: Indices) -> Arrays:
        """Boxes, and the tokens of each one's category."""
        placed = self.placed([self._boxes[row] for row in picks], frames)
        spans = np.zeros((*placed["box_mask"].shape, mask.shape[1]), np.bool_)
        for row, pick in enumerate(picks):
            spans[row, : len(self._categories[pick])] = self._names[self._categories[pick]]
        return {**placed, "spans": spans, "answers": np.full(len(picks), -1)}


def _inside(corners: Floats, rows: Sequence[ImageRow]) -> Floats:
    """Boxes [N, 4] as far as they lie in their images, which are N or one."""
    limits = np.asarray([(row.width, row.height) * 2 for row in rows], np.float64)
    return np.asarray(np.clip(corners, 0, limits))
