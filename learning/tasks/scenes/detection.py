"""Scenes to detect in: one text names all shapes, and every object is a box of the class that its shape names.

Shapes: N scenes, M places for objects in each, T tokens, n samples of a batch, K boxes that are kept of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from inarch.learning.tasks.boxes import corners_to_coco, to_corners
from inarch.learning.tasks.coco.files import BoxRow, Category, CocoFile, ImageRow
from inarch.learning.tasks.coco.scores import average_precision, coco_metrics
from inarch.learning.tasks.glip_boxes import detect_batch, padded
from inarch.learning.tasks.scenes.data import ScenesData, feeds
from inarch.learning.tasks.scenes.language import pack
from inarch.learning.tasks.scenes.texts import Texts
from inarch.learning.tasks.scenes.words import SCENES
from inarch.learning.tasks.scenes.world import ATTRIBUTES, Difficulty, Scenes
from inarch.runtime.accuracy import Arrays
from inarch.structure.units import Indices

KEEP = 20
"""Detections that are kept of each image."""


def name_shapes(scenes: Scenes, difficulty: Difficulty) -> Texts:
    """One text for every scene: the names of all shapes, of which every object's is its own.

    Returns:
        Texts with K = 1 and P = M.
    """
    places = shape_tokens(difficulty)
    ids, mask = pack([SCENES.encode(" ".join(ATTRIBUTES["shape"][: difficulty.shapes]))])
    count, most = scenes.shape.shape
    real = np.arange(most) < scenes.count[:, None]
    spans = (np.array(places)[scenes.shape][..., None] == np.arange(ids.shape[1])) & real[..., None]
    return Texts(
        np.repeat(ids[None], count, 0),
        np.repeat(mask[None], count, 0),
        np.where(real, np.arange(most), -1)[:, None],
        spans[:, None],
        np.full((count, 1), -1, np.int64),
        np.full((count, 1), "detection"),
    )


def shape_tokens(difficulty: Difficulty) -> Sequence[int]:
    """Where each shape's name stands in the text; the first token is the start."""
    return range(1, 1 + difficulty.shapes)


@dataclass(frozen=True, eq=False)
class DetectionTask:
    """Objects of one split, to be found by a GLIP.

    Attributes:
        data: the split.
        texts: as of :func:`name_shapes`.
        levels: of the model's pyramid.
        label: what the data are called, before the kind in the task's name.
    """

    data: ScenesData
    texts: Texts
    levels: int
    label: str = "scenes"

    headline = "mAP"

    @property
    def name(self) -> str:
        """As ``scenes/detection``."""
        return f"{self.label}/detection"

    @property
    def samples(self) -> int:
        """Scenes."""
        return len(self.data.scenes)

    def feeds(self, rows: Indices) -> Arrays:
        """Pixels, and the same tokens for all."""
        made = feeds(self.data, self.texts, rows)
        return {name: values for name, values in made.items() if name != "pixel_mask"}

    def predict(self, rows: Indices, outputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """``boxes`` [n, K, 4] in pixels (corners), ``scores`` [n, K] and ``labels`` [n, K], -1 for none."""
        size = (self.data.config.side,) * 2
        phrases = [[place] for place in shape_tokens(self.data.config.level)]
        found = padded(detect_batch(outputs, phrases, size, self.levels), size, KEEP)
        return found | {"boxes": to_corners(found["boxes"]) * size[0]}

    def truth(self, row: int) -> list[BoxRow]:
        """The objects of one scene."""
        return self._objects[row]

    def score(self, rows: Indices, predictions: Arrays) -> dict[str, npt.NDArray[np.float64]]:
        """Average precision of each image alone."""
        found = []
        for row, boxes, labels in zip(rows.tolist(), predictions["boxes"], predictions["labels"], strict=True):
            real = labels >= 0
            found.append(average_precision(boxes[real], labels[real], self._objects[row], 0.5))
        return {"AP@50/image": np.array(found, np.float64)}

    def overall(self, predictions: Arrays) -> dict[str, float]:
        """COCO's metrics."""
        return coco_metrics(self._file, predictions, self.name)

    @cached_property
    def _objects(self) -> list[list[BoxRow]]:
        """What is in each scene."""
        scenes, side = self.data.scenes, self.data.config.side
        boxes = corners_to_coco(to_corners(scenes.boxes.astype(np.float64)) * side)
        made: list[list[BoxRow]] = []
        number = 0
        for row, count in enumerate(scenes.count.tolist()):
            made.append([])
            for k in range(count):
                x, y, width, height = boxes[row, k].tolist()
                label, number = int(scenes.shape[row, k]), number + 1
                box = BoxRow(
                    id=number, image_id=row, category_id=label, bbox=(x, y, width, height), area=width * height, iscrowd=0
                )
                made[-1].append(box)
        return made

    @cached_property
    def _file(self) -> CocoFile:
        """The same as a file of COCO's."""
        side, names = self.data.config.side, ATTRIBUTES["shape"][: self.data.config.level.shapes]
        images = tuple(ImageRow(id=row, file_name=f"{row}.png", height=side, width=side) for row in range(self.samples))
        classes = tuple(Category(id=number, name=name) for number, name in enumerate(names))
        return CocoFile(self.name, images, tuple(box for row in self._objects for box in row), classes)
