"""Scenes as held-out samples: phrases grounded, expressions referred to, questions answered; numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from inarch.learning.tasks import glip_boxes
from inarch.learning.tasks.boxes import giou, iou, to_corners
from inarch.learning.tasks.margins import ahead, margin
from inarch.learning.tasks.mdetr_read import ground, refer
from inarch.learning.tasks.scenes.data import ScenesData, feeds
from inarch.learning.tasks.scenes.texts import Kind, Texts
from inarch.structure.units import Indices

Arrays = Mapping[str, npt.NDArray[Any]]
Floats = npt.NDArray[np.floating]

TOP = 10
"""Boxes that count for precision@10."""

RIGHT = 0.5
"""Overlap from which on a box is right."""


@dataclass(frozen=True, eq=False)
class ScenesTask:
    """All texts of one kind of one split.

    Attributes:
        kind: which texts.
        data: the split.
        texts: its texts.
        label: what the data are called, before the kind in the task's name.
        levels: of the GLIP that is judged; None for an MDETR.
    """

    kind: Kind
    data: ScenesData
    texts: Texts
    label: str = "scenes"
    levels: int | None = None

    @property
    def name(self) -> str:
        """As ``scenes/vqa``."""
        return f"{self.label}/{self.kind}"

    @property
    def samples(self) -> int:
        """Texts in all scenes."""
        return int(self.texts.ids.shape[0] * self.texts.ids.shape[1])

    @property
    def headline(self) -> str:
        """The metric that stands for the kind."""
        return {"grounding": "recall@1", "referring": "precision@1", "vqa": "accuracy"}[self.kind]

    def feeds(self, rows: Indices) -> Arrays:
        """Pixels and tokens; for MDETR the pixels' mask."""
        made = feeds(self.data, self.texts, rows)
        return made if self.levels is None else {name: values for name, values in made.items() if name != "pixel_mask"}

    def predict(self, rows: Indices, outputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """The answer, or the boxes, and ``margin``: how far the first choice is ahead of the second."""
        if self.kind == "vqa":
            logits = outputs["answer"]
            return {"answer": logits.argmax(1), "margin": margin(logits)}
        if self.kind == "grounding":
            boxes, scores = self._ground(outputs, self._of(self.texts.spans, rows))
            real = self._of(self.texts.targets, rows) >= 0
            return {"boxes": boxes, "margin": np.where(real, margin(scores), 1.0).min(1)}
        if self.levels is None:
            boxes, scores = refer(outputs, TOP)
        else:
            spans = self._of(self.texts.spans, rows)[:, 0]
            boxes, scores = glip_boxes.ground(outputs, spans, self._size, self.levels, TOP)
        return {"boxes": boxes, "scores": scores, "margin": ahead(scores)}

    @property
    def _size(self) -> tuple[int, int]:
        return self.data.config.side, self.data.config.side

    def _ground(self, outputs: Arrays, spans: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """The best box of each phrase [n, P, 4], and the scores of its best boxes or of all [n, P, at least 2]."""
        if self.levels is None:
            return ground(outputs, spans)
        found = [glip_boxes.ground(outputs, spans[:, p], self._size, self.levels, 2) for p in range(spans.shape[1])]
        return np.stack([boxes[:, 0] for boxes, _ in found], 1), np.stack([scores for _, scores in found], 1)

    def score(self, rows: Indices, predictions: Arrays) -> dict[str, npt.NDArray[np.float64]]:
        """Right or wrong; for grounding, the share of phrases that are right. By kind of text too, where it was such a text."""
        if self.kind == "vqa":
            right = predictions["answer"] == self._of(self.texts.answers, rows)
            return {"accuracy": right.astype(np.float64)}
        scene = rows // self.texts.ids.shape[1]
        targets = self._of(self.texts.targets, rows)
        wanted = to_corners(self.data.scenes.boxes[scene[:, None], np.maximum(targets, 0)])
        found = to_corners(predictions["boxes"])
        if self.kind == "grounding":
            real = targets >= 0
            right = (iou(found, wanted) >= RIGHT) & real
            return {"recall@1": right.sum(1) / np.maximum(real.sum(1), 1)}
        scores: dict[str, npt.NDArray[np.float64]] = {}
        for prefix, overlap in (("", iou(found, wanted)), ("giou_", giou(found, wanted))):
            for top in (1, 5, 10):
                scores[f"{prefix}precision@{top}"] = np.any(overlap[:, :top] >= RIGHT, axis=1).astype(np.float64)
        return scores

    def overall(self, predictions: Arrays) -> dict[str, float]:
        """The headline by sort of text: ``accuracy/count`` and so on."""
        count = len(predictions["margin"])
        rows = np.arange(count)
        kinds = self.texts.kinds.reshape(-1)[:count]
        scores = self.score(rows, predictions)[self.headline]
        if self.kind == "grounding":
            return {}
        return {f"{self.headline}/{kind}": float(scores[kinds == kind].mean()) for kind in np.unique(kinds).tolist()}

    def _of(self, values: npt.NDArray[Any], rows: Indices) -> npt.NDArray[Any]:
        """Values [N, K, ...] of texts by their place in [N * K]."""
        found: npt.NDArray[Any] = values.reshape(-1, *values.shape[2:])[rows]
        return found
