"""A GLIP on files in COCO's format: the box of an expression, and the objects of all categories, whose names are its text.

Numpy only, so that a deployed model is judged without torch. Shapes: n samples of a batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from inarch.learning.models.glip_post import detect
from inarch.learning.tasks.boxes import to_corners
from inarch.learning.tasks.coco.files import CocoFile, ReferringFile
from inarch.learning.tasks.coco.tasks import RANKS, Decode, Detected, Detection, Frame, Referring, Source
from inarch.learning.tasks.glip_boxes import ground, levels_of
from inarch.learning.tasks.margins import ahead
from inarch.runtime.accuracy import Arrays
from inarch.structure.errors import DataError
from inarch.structure.units import Indices

_SEPARATOR = ". "
"""What GLIP writes between the names of categories."""


class GlipReferring(Referring):
    """The same, from a GLIP's outputs: the boxes that answer best to the whole expression.

    Args:
        file: expressions and targets.
        source: of images and tokens.

    Raises:
        DataError: the tokenizer puts no start and stop around a text: which tokens say something is not known then.
    """

    def __init__(self, file: ReferringFile, source: Source) -> None:
        super().__init__(file, source)
        frame = source.texts([""])["input_ids"].shape[1]
        if frame != 2:
            where = str(getattr(source.tokenizer, "name_or_path", "tokenizer"))
            raise DataError(f"puts {frame} tokens around a text, and a GLIP's are a start and a stop", where=where)

    def predict(self, rows: Indices, outputs: Arrays) -> dict[str, Any]:
        """As of an MDETR's outputs."""
        chosen = [self.file.expressions[row] for row in rows]
        frames = self.source.frames(chosen)
        said = spoken(self.source.texts([row.caption for row in chosen])["attention_mask"])
        padded = frames[0].padded
        logits = outputs["logits"][..., : said.shape[1]]
        levels = levels_of(outputs["centerness"].shape[1], *padded)
        boxes, scores = ground({**outputs, "logits": logits}, said, padded, levels, max(RANKS), real=[f.resized for f in frames])
        corners = to_corners(boxes) * np.asarray([padded[1], padded[0]] * 2)
        scale = np.asarray([[f.original[1] / f.resized[1], f.original[0] / f.resized[0]] * 2 for f in frames])
        return {"boxes": corners * scale[:, None], "scores": scores, "margin": ahead(scores)}


def spoken(mask: Indices) -> npt.NDArray[np.bool_]:
    """The tokens of texts that say something, from the mask of real ones: [n, T]; the first and the last only frame them."""
    said = mask.astype(np.bool_)
    said[:, 0] = False
    said[np.arange(len(said)), mask.sum(1) - 1] = False
    return said


def prompt(file: CocoFile, source: Source) -> tuple[Indices, Indices, list[list[int]]]:
    """The text that names all categories: its tokens [1, T], their mask [1, T], and which tokens name each.

    Raises:
        DataError: there is no tokenizer, the text is too long, or no token stands for a name.
    """
    names = [row.name for row in file.categories]
    starts = np.cumsum([0, *(len(name) + len(_SEPARATOR) for name in names)]).tolist()
    text = _SEPARATOR.join(names)
    made = source.texts([text])
    spans = [[(start, start + len(name))] for start, name in zip(starts, names, strict=False)]
    table = source.spans(text, spans, made["input_ids"].shape[1])
    return made["input_ids"], made["attention_mask"], [np.flatnonzero(row).tolist() for row in table]


def _decoder(phrases: Sequence[Sequence[int]], labels: Sequence[int]) -> Decode:
    """What a GLIP's outputs say of a batch of images."""
    categories = np.asarray(labels, np.int64)

    def decode(outputs: Arrays, frames: Sequence[Frame]) -> list[Detected]:
        made = []
        for row, frame in enumerate(frames):
            levels = levels_of(outputs["centerness"].shape[1], *frame.padded)
            logits, boxes, centerness = (outputs[name][row] for name in ("logits", "boxes", "centerness"))
            found = detect(logits, boxes, centerness, phrases, frame.padded, levels, real=frame.resized)
            # The pixel that the last corner lies in counts.
            corners = found.boxes + np.asarray((0.0, 0.0, 1.0, 1.0))
            scale = np.asarray((frame.original[1] / frame.resized[1], frame.original[0] / frame.resized[0]) * 2)
            made.append(Detected(corners * scale, found.scores, categories[found.labels]))
        return made

    return decode


def detection(file: CocoFile, source: Source) -> Detection:
    """The task of finding a file's objects for a GLIP that is given the names of all categories.

    Raises:
        DataError: no object is annotated, there is no tokenizer, or the names are too long a text.
    """
    ids, mask, phrases = prompt(file, source)
    decode = _decoder(phrases, [row.id for row in file.categories])
    return Detection(file, source, decode, constants={"input_ids": ids, "attention_mask": mask})
