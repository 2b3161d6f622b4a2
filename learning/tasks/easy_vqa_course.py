"""easy-VQA to train on: the answer head alone, on images and questions of the installed package.

Shapes as in :mod:`courses`: I images and B questions a batch, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from inarch.learning.models.mdetr import Mdetr
from inarch.learning.tasks.coco_images import MDETR, normalise
from inarch.learning.tasks.easy_vqa import EasyVqa, EasyVqaTask
from inarch.learning.tasks.mdetr_trainee import MdetrTrainee
from inarch.runtime.accuracy import Arrays, Task
from inarch.structure.errors import InarchError
from inarch.structure.units import Indices


@dataclass(frozen=True, eq=False)
class EasyVqaCourse:
    """Training on easy-VQA.

    Attributes:
        images, each: images a batch, questions of each.
    """

    images: int = 16
    each: int = 4

    name = "easy-vqa"

    @cached_property
    def data(self) -> EasyVqa:
        """The training split."""
        return EasyVqa.load("train")

    @cached_property
    def questions(self) -> list[Indices]:
        """The questions about each image, by their place."""
        order = np.argsort(self.data.image, kind="stable")
        counts = np.bincount(self.data.image, minlength=len(self.data.images))
        return np.split(order, np.cumsum(counts)[:-1])

    def batch(self, seed: int, step: int, part: str = "weights") -> dict[str, npt.NDArray[Any]]:
        """Images drawn anew for every batch, and questions about each; the last tenth of the images is the structure's."""
        count = len(self.data.images)
        edge = count - count // 10
        low, high = (0, edge) if part == "weights" else (edge, count)
        rng = np.random.default_rng([seed, step, part == "structure"])
        rows = low + rng.choice(high - low, self.images, replace=False)
        picks = np.concatenate([rng.choice(self.questions[row], self.each) for row in rows.tolist()])
        length = int(self.data.attention_mask[picks].sum(1).max())
        none = len(picks)
        return {
            "pixel_values": normalise(self.data.images[rows], MDETR),
            "image": np.repeat(np.arange(self.images), self.each),
            "input_ids": self.data.input_ids[picks, :length],
            "attention_mask": self.data.attention_mask[picks, :length],
            "answers": self.data.answers[picks],
            "boxes": np.zeros((none, 1, 4), np.float32),
            "box_mask": np.zeros((none, 1), np.bool_),
            "spans": np.zeros((none, 1, length), np.bool_),
        }

    def trainee(self, model: nn.Module) -> nn.Module:
        """An MDETR with its answer loss.

        Raises:
            InarchError: it is no MDETR, or has too few answers.
        """
        if not isinstance(model, Mdetr):
            raise InarchError(f"easy-VQA trains MDETR, not {type(model).__name__}", where="--model")
        answers = model.config.answers
        if not isinstance(answers, int) or answers < len(self.data.classes):
            raise InarchError(f"the model has {answers} answers, easy-VQA {len(self.data.classes)}", where="answers")
        return MdetrTrainee(model)

    def held_out(self) -> Task:
        """The test split."""
        return _FirstAnswers(EasyVqa.load("test"))


class _FirstAnswers(EasyVqaTask):
    """easy-VQA judged on a head that has room for more answers: the others are left out."""

    def predict(self, rows: Indices, outputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """``answer`` [n] and ``margin`` [n], how far the first is ahead of the second."""
        logits = outputs["answer"][:, : len(self.data.classes)]
        two = np.sort(logits, axis=1)[:, -2:]
        return super().predict(rows, {**outputs, "answer": logits}) | {"margin": two[:, 1] - two[:, 0]}
