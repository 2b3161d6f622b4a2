"""Referring expressions, GQA and COCO detection as tasks: images and texts in, published metrics out, for any deployed model.

Images are read when a batch asks for them. Shapes: N samples, n of them in a batch, Q queries, K kept boxes, S token slots.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inarch.learning.tasks.boxes import Floats, coco_to_corners, giou, iou, to_corners
from inarch.learning.tasks.coco.files import GQA_TYPES, UNKNOWN, BoxRow, CocoFile, GqaFile, GqaType, ImageRow, ReferringFile
from inarch.learning.tasks.coco.images import (
    MDETR,
    Preparation,
    Size,
    Tokenizer,
    Values,
    encode_texts,
    padded,
    positive_map,
    prepared,
    read_image,
)
from inarch.learning.tasks.coco.scores import average_precision, coco_metrics
from inarch.learning.tasks.margins import ahead, margin
from inarch.runtime.accuracy import Arrays
from inarch.structure.errors import DataError, RuntimeFailure
from inarch.structure.units import Indices

Scores = dict[str, npt.NDArray[np.float64]]

RANKS = (1, 5, 10)
OVERLAP = 0.5


@dataclass(frozen=True)
class Frame:
    """Sizes of one image: of its file, as it was resized, and of the batch that it was padded to."""

    original: Size
    resized: Size
    padded: Size


@dataclass(frozen=True)
class Source:
    """Where a task's inputs come from.

    Attributes:
        folder: of the images.
        tokenizer: a fast tokenizer of transformers; a task without texts needs none.
        preparation: of the images.
        longest: most tokens that the model takes.
        mask: whether the model takes ``pixel_mask``.
    """

    folder: Path
    tokenizer: Tokenizer | None = None
    preparation: Preparation = MDETR
    longest: int | None = None
    mask: bool = True

    def image(self, row: ImageRow, *, sized: bool = True) -> Values:
        """A row's image, prepared, [3, h, w].

        Raises:
            DataError: it cannot be read, or (``sized``) is not as large as the row says.
        """
        return prepared(read_image(self.folder, row, sized=sized), self.preparation)

    def batch(self, images: Sequence[Values]) -> dict[str, npt.NDArray[Any]]:
        """``pixel_values`` and ``pixel_mask`` of prepared images."""
        values, mask = padded(images, self.preparation)
        return {"pixel_values": values} | ({"pixel_mask": mask} if self.mask else {})

    def images(self, rows: Sequence[ImageRow], *, sized: bool = True) -> dict[str, npt.NDArray[Any]]:
        """:meth:`batch` of rows' images; raises what :meth:`image` does."""
        return self.batch([self.image(row, sized=sized) for row in rows])

    def frames(self, rows: Sequence[ImageRow]) -> list[Frame]:
        """Sizes of rows' images as one batch."""
        originals = [(row.height, row.width) for row in rows]
        resized = [self.preparation.size(size) for size in originals]
        padded = self.preparation.padded(resized)
        return [Frame(original, size, padded) for original, size in zip(originals, resized, strict=True)]

    def texts(self, texts: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
        """``input_ids`` and ``attention_mask`` of texts.

        Raises:
            DataError: there is no tokenizer, or a text is too long.
        """
        ids, mask = encode_texts(self._tokenizer, texts, longest=self.longest)
        return {"input_ids": ids, "attention_mask": mask}

    def spans(
        self, text: str, spans: Sequence[Sequence[tuple[int, int]]], columns: int, *, blanks: bool = False
    ) -> npt.NDArray[np.bool_]:
        """Which of a text's tokens name each box, [P, T] for T columns; see :func:`~.images.positive_map`.

        Raises:
            DataError: there is no tokenizer, or no token stands for a span.
        """
        return positive_map(self._tokenizer, text, spans, columns=columns, blanks=blanks) > 0

    @property
    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise DataError("texts need a tokenizer", where=str(self.folder))
        return self.tokenizer


def output(outputs: Arrays, name: str, shape: tuple[int | None, ...], task: str) -> npt.NDArray[Any]:
    """A model's output; None in ``shape`` is any length.

    Raises:
        RuntimeFailure: the model has no such output, or it has another shape.
    """
    if name not in outputs:
        raise RuntimeFailure(f"the model has no output {name!r}", where=task, hint=f"it has {', '.join(sorted(outputs))}")
    found = outputs[name].shape
    if len(found) != len(shape) or any(want not in (None, have) for want, have in zip(shape, found, strict=True)):
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        raise RuntimeFailure(f"output {name!r} has the shape {list(found)}, wanted [{wanted}]", where=task)
    return outputs[name]


class Referring:
    """The box of a referring expression: whether one of the first k boxes has an IoU of at least 0.5 with the target.

    MDETR's own evaluation, and so its published numbers, want a GIoU of 0.5, which is stricter: ``giou_precision@k``.

    Args:
        file: expressions and targets.
        source: of images and tokens.
    """

    headline = "precision@1"

    def __init__(self, file: ReferringFile, source: Source) -> None:
        self.file = file
        self.source = source
        self.name = f"referring/{Path(file.source).stem}"
        self.samples = len(file.expressions)
        self.targets = coco_to_corners(np.asarray([target.bbox for target in file.targets], np.float64))
        # Boxes are relative to the image: x and y by its width and height.
        self._scale = np.asarray([(row.width, row.height) * 2 for row in file.expressions], np.float64)
        self._datasets = np.asarray([row.dataset_name for row in file.expressions])

    def feeds(self, rows: Indices) -> Arrays:
        """Images and expressions of samples [n]."""
        chosen = [self.file.expressions[row] for row in rows]
        return self.source.images(chosen) | self.source.texts([row.caption for row in chosen])

    def predict(self, rows: Indices, outputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """``boxes`` [n, K, 4] (corners in pixels of the original image) and ``scores`` [n, K], best first; K is 10, or Q.

        ``margin`` [n] is how far the first is ahead of the second.

        Args:
            rows: [n].
            outputs: ``logits`` [n, Q, S + 1] and ``boxes`` [n, Q, 4].

        Raises:
            RuntimeFailure: the outputs are others.
        """
        logits = output(outputs, "logits", (len(rows), None, None), self.name).astype(np.float64)
        boxes = output(outputs, "boxes", (len(rows), logits.shape[1], 4), self.name).astype(np.float64)
        grown = np.exp(logits - logits.max(-1, keepdims=True))
        scores = 1 - grown[..., -1] / grown.sum(-1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, : max(RANKS)]
        corners = to_corners(np.take_along_axis(boxes, best[..., None], 1)) * self._scale[rows][:, None]
        ranked = np.take_along_axis(scores, best, 1)
        return {"boxes": corners, "scores": ranked, "margin": ahead(ranked)}

    def score(self, rows: Indices, predictions: Arrays) -> Scores:
        """``precision@k`` and ``giou_precision@k`` for k = 1, 5, 10: 1 or 0, [n]."""
        target = self.targets[rows][:, None]
        measures = {"": iou(predictions["boxes"], target), "giou_": giou(predictions["boxes"], target)}
        return {
            f"{prefix}precision@{k}": np.asarray((measure[:, :k] >= OVERLAP).any(1), np.float64)
            for prefix, measure in measures.items()
            for k in RANKS
        }

    def overall(self, predictions: Arrays) -> dict[str, float]:
        """The same for each data set, where the file has several: ``precision@1/refcoco+``. ``predictions`` of the first rows."""
        rows = np.arange(len(predictions["boxes"]))
        names = self._datasets[rows]
        of_set = {name: names == name for name in sorted(set(names.tolist()))}
        if len(of_set) < 2:
            return {}
        scores = self.score(rows, predictions)
        return {f"{metric}/{name}": float(scores[metric][where].mean()) for name, where in of_set.items() for metric in scores}


class Gqa:
    """A question about an image, answered by the head of the type that the model takes it for.

    ``accuracy`` is MDETR's: type and class must both be right, and an answer that its type's vocabulary does not have is the
    class ``unknown``. ``text_accuracy`` compares the words that are answered, whatever their type; ``unknown`` is wrong there.

    Args:
        file: questions and answers.
        answers: type -> answer -> class of its head.
        source: of images and tokens.

    Attributes:
        sizes: classes that each type's head has to have.

    Raises:
        DataError: a vocabulary has neither an answer nor ``unknown``.
    """

    headline = "accuracy"

    def __init__(self, file: GqaFile, answers: Mapping[GqaType, Mapping[str, int]], source: Source) -> None:
        self.file = file
        self.source = source
        self.name = f"gqa/{Path(file.source).stem}"
        self.samples = len(file.questions)
        self.types = np.asarray([GQA_TYPES.index(row.question_type) for row in file.questions], np.int64)
        self.answers = np.asarray(
            [self._class(number, answers[row.question_type]) for number, row in enumerate(file.questions)], np.int64
        )
        self.sizes = [max(answers[kind].values()) + 1 for kind in GQA_TYPES]
        self._words = [{number: answer for answer, number in answers[kind].items()} for kind in GQA_TYPES]

    def _class(self, number: int, vocabulary: Mapping[str, int]) -> int:
        row = self.file.questions[number]
        found = vocabulary.get(row.answer, vocabulary.get(UNKNOWN))
        if found is None:
            where = f"{self.file.source}: images[{number}].answer"
            raise DataError(f"the answers of type {row.question_type!r} have neither {row.answer!r} nor {UNKNOWN!r}", where=where)
        return found

    def feeds(self, rows: Indices) -> Arrays:
        """Images and questions of samples [n]."""
        chosen = [self.file.questions[row] for row in rows]
        # No box is judged, so the sizes that the file gives do not matter.
        return self.source.images(chosen, sized=False) | self.source.texts([row.caption for row in chosen])

    def predict(self, rows: Indices, outputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """``type`` [n], index into ``GQA_TYPES``, and ``answer`` [n], class of that type's head.

        ``margin`` [n] is how far both are ahead of the second, the smaller of the two.

        Args:
            rows: [n].
            outputs: ``answer_type`` [n, 5], and ``answer_obj`` and so on, each [n, classes].

        Raises:
            RuntimeFailure: an output is missing, or has fewer classes than its vocabulary.
        """
        typed = output(outputs, "answer_type", (len(rows), len(GQA_TYPES)), self.name)
        types = typed.argmax(1)
        heads = [output(outputs, f"answer_{kind}", (len(rows), None), self.name) for kind in GQA_TYPES]
        for kind, head, size in zip(GQA_TYPES, heads, self.sizes, strict=True):
            if head.shape[1] < size:
                message = f"output 'answer_{kind}' has {head.shape[1]} classes, its vocabulary {size}"
                raise RuntimeFailure(message, where=self.name, hint="were model and vocabulary made together?")
        answers = np.stack([head.argmax(1) for head in heads], 1)
        margins = np.stack([margin(head) for head in heads], 1)
        taken = np.arange(len(rows)), types
        return {"type": types, "answer": answers[taken], "margin": np.minimum(margin(typed), margins[taken])}

    def score(self, rows: Indices, predictions: Arrays) -> Scores:
        """``accuracy``, ``type_accuracy`` and ``text_accuracy``: 1 or 0, [n]."""
        types, answers = predictions["type"], predictions["answer"]
        typed = types == self.types[rows]
        said = self.words(predictions)
        wanted = [self.file.questions[row].answer for row in rows]
        return {
            "accuracy": (typed & (answers == self.answers[rows])).astype(np.float64),
            "type_accuracy": typed.astype(np.float64),
            "text_accuracy": np.asarray([a == b for a, b in zip(said, wanted, strict=True)], np.float64),
        }

    def words(self, predictions: Arrays) -> list[str | None]:
        """What is answered, [n]; None for a class that its type's vocabulary does not have."""
        said = zip(predictions["type"].tolist(), predictions["answer"].tolist(), strict=True)
        return [self._words[kind].get(answer) for kind, answer in said]

    def overall(self, predictions: Arrays) -> dict[str, float]:
        """Nothing: every metric is a mean."""
        return {}


@dataclass(frozen=True, eq=False)
class Detected:
    """Detections of one image: boxes [m, 4] (corners in pixels of the original image), scores [m], labels [m] (category ids)."""

    boxes: Floats
    scores: Floats
    labels: Indices


Decode = Callable[[Arrays, Sequence[Frame]], Sequence[Detected]]
"""From a model's outputs on n images to the detections of each."""


class Detection:
    """COCO detection of any model.

    Args:
        file: images and annotated boxes.
        source: of images.
        decode: what the model's outputs mean.
        constants: further inputs, each with one row that every sample is given: the tokens of the categories' names.
        keep: K, detections an image; COCO counts 100.

    Raises:
        DataError: no box is annotated.
    """

    headline = "mAP"

    def __init__(
        self, file: CocoFile, source: Source, decode: Decode, *, constants: Arrays | None = None, keep: int = 100
    ) -> None:
        if all(row.iscrowd for row in file.annotations):
            raise DataError("no object is annotated, so none can be found", where=f"{file.source}: annotations")
        self.file = file
        self.source = source
        self.name = f"detection/{Path(file.source).stem}"
        self.samples = len(file.images)
        self._decode = decode
        self._constants = dict(constants or {})
        self._keep = keep
        self._categories = [row.id for row in file.categories]
        self._boxes: dict[int, list[int]] = {row.id: [] for row in file.images}
        for number, box in enumerate(file.annotations):
            self._boxes[box.image_id].append(number)

    def feeds(self, rows: Indices) -> Arrays:
        """Images of samples [n], and the constants n times."""
        fixed = {name: np.repeat(value, len(rows), 0) for name, value in self._constants.items()}
        return self.source.images([self.file.images[row] for row in rows]) | fixed

    def frames(self, rows: Indices) -> list[Frame]:
        """Sizes of samples [n] as one batch."""
        return self.source.frames([self.file.images[row] for row in rows])

    def predict(self, rows: Indices, outputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """``boxes`` [n, K, 4], ``scores`` [n, K] and ``labels`` [n, K], best first; the label is -1 where there is no more.

        Raises:
            RuntimeFailure: there are not as many lists of detections as images, or one is malformed.
        """
        found = self._decode(outputs, self.frames(rows))
        if len(found) != len(rows):
            raise RuntimeFailure(f"{len(found)} lists of detections are no {len(rows)}", where=self.name)
        boxes = np.zeros((len(rows), self._keep, 4))
        scores = np.zeros((len(rows), self._keep))
        labels = np.full((len(rows), self._keep), -1, np.int64)
        for row, item in enumerate(found):
            self._check(item)
            best = np.argsort(-item.scores, kind="stable")[: self._keep]
            boxes[row, : len(best)], scores[row, : len(best)] = item.boxes[best], item.scores[best]
            labels[row, : len(best)] = item.labels[best]
        return {"boxes": boxes, "scores": scores, "labels": labels}

    def _check(self, item: Detected) -> None:
        count = len(item.scores)
        if item.boxes.shape != (count, 4) or item.labels.shape != (count,):
            shapes = f"{list(item.boxes.shape)} and {list(item.labels.shape)}"
            raise RuntimeFailure(f"boxes and labels of {count} detections have the shapes {shapes}", where=self.name)
        strange = np.setdiff1d(item.labels, self._categories)
        if len(strange):
            raise RuntimeFailure(f"label {strange[0]} is no category", where=self.name, hint="labels are the file's category ids")

    def truth(self, row: int) -> list[BoxRow]:
        """The boxes that are annotated in one sample's image."""
        return [self.file.annotations[number] for number in self._boxes[self.file.images[row].id]]

    def score(self, rows: Indices, predictions: Arrays) -> Scores:
        """``image_ap50`` [n]: average precision at IoU 0.5 of each image alone, 1 where nothing is to be found."""
        values = []
        for place, row in enumerate(rows):
            truth = self.truth(row)
            real = predictions["labels"][place] >= 0
            found = Detected(*(predictions[name][place][real] for name in ("boxes", "scores", "labels")))
            values.append(average_precision(found.boxes, found.labels, truth, OVERLAP))
        return {"image_ap50": np.asarray(values, np.float64)}

    def overall(self, predictions: Arrays) -> dict[str, float]:
        """``mAP``, ``mAP@50``, ``mAP@75`` and by size, as pycocotools computes them, over the images of ``predictions``.

        Raises:
            DataError: pycocotools is not installed.
            RuntimeFailure: none of these images has an annotated object.
        """
        return coco_metrics(self.file, predictions, self.name)
