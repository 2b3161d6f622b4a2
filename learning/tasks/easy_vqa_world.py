"""easy-VQA as a world: questions alone, and the answer head alone to learn them, on images of the installed package.

Shapes as in :mod:`courses`: I images and B questions a batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import nn

from inarch.learning.config import validated
from inarch.learning.data_config import EasyVqaSettings
from inarch.learning.models.mdetr import Mdetr
from inarch.learning.models.mdetr_config import MdetrConfig
from inarch.learning.models.registry import Config
from inarch.learning.tasks.aims import Aim, check_aim
from inarch.learning.tasks.coco.images import MDETR, normalise
from inarch.learning.tasks.courses import Arrays, Part, draw_images
from inarch.learning.tasks.easy_vqa import SIDE, SPLITS, EasyVqa, EasyVqaTask, Split
from inarch.learning.tasks.mdetr_trainee import MdetrTrainee
from inarch.learning.tasks.trainee import Trainee
from inarch.runtime.accuracy import BATCH, Task
from inarch.structure.errors import InarchError
from inarch.structure.units import Indices


class EasyVqaWorld:
    """easy-VQA: there is nothing to ground, so that everything is learned on its questions.

    Args:
        settings: how much of it.
        model: what is trained.

    Raises:
        InarchError: the model is a GLIP, which answers no questions.
    """

    kinds: tuple[Aim, ...] = ("vqa",)
    first: Aim = "vqa"
    splits = ("test",)
    side = SIDE
    batch = BATCH
    digests: Mapping[str, str] = MappingProxyType({})

    def __init__(self, settings: EasyVqaSettings, model: Config) -> None:
        if not isinstance(model, MdetrConfig):
            raise InarchError("there is no vqa with GLIP, and easy-vqa is nothing else", where="--task", hint="take an MDETR")
        self.settings = settings
        self._data: dict[Split, EasyVqa] = {}

    def data(self, split: Split) -> EasyVqa:
        """One split.

        Raises:
            DataError: the package is missing, or is another one; it says how to get it.
        """
        if split not in self._data:
            settings = self.settings
            self._data[split] = EasyVqa.load(split, images=settings.scenes if split == "train" else settings.held_out)
        return self._data[split]

    def fitted(self, config: Config) -> Config:
        """A model's configuration for the images' size, the words and the answers, read from the last layer.

        Raises:
            InarchError: the model does not take such images.
            DataError: as of :meth:`data`.
        """
        assert isinstance(config, MdetrConfig)
        data, vision, text = self.data("train"), config.vision.model_dump(), config.text.model_dump()
        if config.vision.kind == "vit":
            vision["image"] = self.side
        text["vocabulary"] = max(config.text.vocabulary, len(data.vocabulary.words))
        answers = {"answers": len(data.classes), "answer_layer": config.decoder_layers - 1}
        changes: dict[str, Any] = {"vision": vision, "text": text, **answers}
        return validated(MdetrConfig, config.model_dump() | changes, "--model")

    def check(self, kind: Aim) -> None:
        """Refuse before a run begins what would stop it later.

        Raises:
            InarchError: something else is wanted.
        """
        check_aim(kind, self.first, "easy-vqa")

    def course(self, kind: Aim) -> EasyVqaCourse:
        """Training on questions.

        Raises:
            InarchError: something else is wanted.
        """
        check_aim(kind, self.first, "easy-vqa")
        return EasyVqaCourse(self)

    def task(self, kind: Aim, split: str = "test") -> Task:
        """Held-out questions.

        Raises:
            InarchError: something else is wanted, or there is no such split.
        """
        check_aim(kind, self.first, "easy-vqa")
        found = next((one for one in SPLITS if one == split), None)
        if found is None:
            raise InarchError(f"easy-vqa has no split {split!r}", hint=f"there are {', '.join(SPLITS)}")
        return EasyVqaTask(self.data(found))


@dataclass(frozen=True, eq=False)
class EasyVqaCourse:
    """Training on easy-VQA's questions."""

    world: EasyVqaWorld

    name = "easy-vqa/vqa"

    @cached_property
    def questions(self) -> list[Indices]:
        """The questions about each image, by their place."""
        data = self.world.data("train")
        order = np.argsort(data.image, kind="stable")
        counts = np.bincount(data.image, minlength=len(data.images))
        return np.split(order, np.cumsum(counts)[:-1])

    def batch(self, seed: int, step: int, part: Part = "weights") -> Arrays:
        """Images drawn anew for every batch, and questions about each."""
        data, settings = self.world.data("train"), self.world.settings
        rng = np.random.default_rng([seed, step, part == "structure"])
        rows = draw_images(rng, settings.images, settings.edge, settings.scenes, part)
        picks = np.concatenate([rng.choice(self.questions[row], settings.each) for row in rows.tolist()])
        length = int(data.attention_mask[picks].sum(1).max())
        none = len(picks)
        return {
            "pixel_values": normalise(data.images[rows], MDETR),
            "image": np.repeat(np.arange(settings.images), settings.each),
            "input_ids": data.input_ids[picks, :length],
            "attention_mask": data.attention_mask[picks, :length],
            "answers": data.answers[picks],
            "boxes": np.zeros((none, 1, 4), np.float32),
            "box_mask": np.zeros((none, 1), np.bool_),
            "spans": np.zeros((none, 1, length), np.bool_),
        }

    def trainee(self, model: nn.Module) -> Trainee:
        """An MDETR with its answer loss.

        Raises:
            InarchError: it is no MDETR, or does not have these answers.
        """
        if not isinstance(model, Mdetr):
            raise InarchError(f"easy-VQA trains MDETR, not {type(model).__name__}", where="--model")
        answers = len(self.world.data("train").classes)
        if model.config.answers != answers:
            raise InarchError(f"the model has {model.config.answers} answers, easy-VQA {answers}", where="--model")
        return MdetrTrainee(model)
