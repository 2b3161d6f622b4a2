"""Worlds whose images are drawn: what scenes and sprites have in common.

Shapes: I images and B texts a batch, G cells a side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from inarch.learning.config import validated
from inarch.learning.data_config import DrawnSettings
from inarch.learning.models.glip import Glip
from inarch.learning.models.mdetr import Mdetr
from inarch.learning.models.mdetr_config import MdetrConfig
from inarch.learning.models.registry import Config
from inarch.learning.tasks.aims import Aim
from inarch.learning.tasks.coco.scores import pycocotools
from inarch.learning.tasks.courses import Arrays, Part, draw_images
from inarch.learning.tasks.glip_trainee import GlipTrainee, check_side, totals
from inarch.learning.tasks.mdetr_trainee import MdetrTrainee
from inarch.learning.tasks.scenes.data import ScenesConfig, ScenesData, training_batch
from inarch.learning.tasks.scenes.language import Language, plural
from inarch.learning.tasks.scenes.texts import Texts
from inarch.learning.tasks.scenes.world import ATTRIBUTES
from inarch.learning.tasks.sources import SOURCES, TEST
from inarch.learning.tasks.trainee import Trainee
from inarch.runtime.accuracy import BATCH, Task
from inarch.structure.errors import InarchError
from inarch.structure.units import Indices

TRAIN = "train"


class Drawn:
    """A world whose images are drawn when they are first needed, and kept.

    Args:
        settings: what is drawn; their task says from which source.
        model: what is trained.

    Attributes:
        source: of images and texts.
        levels: feature maps of a GLIP; None for an MDETR.
        grid: cells a side of an MDETR's feature map, which the auxiliary heads work on; GLIP has no such heads.
    """

    first: ClassVar[Aim] = "grounding"
    digests: ClassVar[Mapping[str, str]] = MappingProxyType({})
    batch: ClassVar[int] = BATCH

    def __init__(self, settings: DrawnSettings, model: Config) -> None:
        self.settings = settings
        self.source = SOURCES[settings.task]
        self.levels = None if isinstance(model, MdetrConfig) else model.levels
        self.grid = -(-settings.side // model.vision.stride) if isinstance(model, MdetrConfig) else 1
        self._data: dict[str, ScenesData] = {}
        self._texts: dict[tuple[str, Aim], Texts] = {}

    @property
    def kinds(self) -> tuple[Aim, ...]:
        """Questions are an MDETR's, detection is a GLIP's."""
        return self.source.kinds(self.levels)

    @property
    def splits(self) -> tuple[str, ...]:
        """All but what is trained on."""
        return tuple(split for split in self.source.parts if split != TRAIN)

    @property
    def side(self) -> int:
        """Of an image, in pixels."""
        return self.settings.side

    @property
    def columns(self) -> tuple[int, ...]:
        """Where a batch's cells have the language's attributes."""
        language = self.source.language
        return tuple(list(ATTRIBUTES).index(language.columns.get(name, name)) for name in language.attributes)

    def data(self, split: str) -> ScenesData:
        """One split.

        Raises:
            InarchError: there is none.
        """
        source, s = self.source, self.settings
        if split not in source.parts:
            raise InarchError(f"{source.label} have no split {split!r}", hint=f"there are {', '.join(source.parts)}")
        if split not in self._data:
            count, texts = (s.scenes, s.texts) if split == TRAIN else (s.held_out, s.judged)
            config = ScenesConfig(source.difficulties[s.level], source.parts[split], count, texts, s.side, s.seed)
            self._data[split] = source.draw(split, config)
        return self._data[split]

    def texts(self, split: str, kind: Aim) -> Texts:
        """Its texts of one kind."""
        if (split, kind) not in self._texts:
            self._texts[split, kind] = self.source.texts(self.data(split), kind)
        return self._texts[split, kind]

    def check(self, kind: Aim) -> None:
        """Refuse before a run begins what would stop it later.

        Raises:
            InarchError: the model cannot learn that kind here.
            DataError: pycocotools, which detections are judged with, is not installed.
        """
        self._check(kind)
        if kind == "detection":
            pycocotools()

    def course(self, kind: Aim) -> DrawnCourse:
        """Training on one kind of texts.

        Raises:
            InarchError: the model cannot learn that kind here.
        """
        self._check(kind)
        return DrawnCourse(self, kind)

    def task(self, kind: Aim, split: str = TEST) -> Task:
        """Held-out samples.

        Raises:
            InarchError: the model has no outputs for that kind, or there is no such split.
        """
        self._check(kind)
        return self.source.task(kind, split, self.data(split), self.texts(split, kind), self.levels)

    def _check(self, kind: Aim) -> None:
        if kind not in self.kinds:
            model = "MDETR" if self.levels is None else "GLIP"
            where, hint = "--task", f"there are {', '.join(self.kinds)}"
            raise InarchError(f"there is no {kind} with {model} on {self.source.label}", where=where, hint=hint)

    def fitted(self, config: Config) -> Config:
        """A model's configuration for these images: their size, words, answers, read from the last layer.

        The released models read answers from the first decoder layer, which makes the others free for questions.

        Raises:
            InarchError: the model does not take such images.
        """
        vision: Any = config.vision
        if vision.kind == "vit":
            vision = vision.model_copy(update={"image": self.side})
        text = config.text.model_copy(update={"vocabulary": max(config.text.vocabulary, len(self.source.language.words))})
        changes: dict[str, Any] = {"vision": vision.model_dump(), "text": text.model_dump()}
        if isinstance(config, MdetrConfig):
            changes |= {"answers": len(self.source.language.answers), "answer_layer": config.decoder_layers - 1}
        else:
            check_side(self.side)
        made: Config = validated(type(config), config.model_dump() | changes, "data.side")
        return made


@dataclass(frozen=True, eq=False)
class DrawnCourse:
    """Training on one kind of texts about drawn images."""

    world: Drawn
    kind: Aim

    @property
    def name(self) -> str:
        """As ``scenes/vqa``."""
        return f"{self.world.source.label}/{self.kind}"

    def batch(self, seed: int, step: int, part: Part = "weights") -> Arrays:
        """Images drawn anew for every batch, each once in it."""
        world, settings = self.world, self.world.settings
        data, texts = world.data(TRAIN), world.texts(TRAIN, self.kind)
        rng = np.random.default_rng([seed, step, part == "structure"])
        rows = draw_images(rng, settings.images, settings.edge, settings.scenes, part)
        picks = np.argsort(rng.random((settings.images, texts.ids.shape[1])), axis=1)[:, : settings.each]
        batch = training_batch(data, texts, rows, picks, world.grid)
        batch["cells"] = np.ascontiguousarray(batch["cells"][..., world.columns])
        if world.levels is None:
            return batch
        divisors = totals(batch["boxes"], batch["box_mask"], (world.side, world.side), world.levels)
        return batch | {"answering": divisors[:1], "central": divisors[1:]}

    def trainee(self, model: nn.Module) -> Trainee:
        """A model with its losses.

        Raises:
            InarchError: it does not fit the world.
        """
        world = self.world
        if isinstance(model, Mdetr):
            made: Trainee = self._mdetr(model)
        elif isinstance(model, Glip):
            if model.config.levels != world.levels:
                raise InarchError(f"the model has {model.config.levels} levels, the batches are for {world.levels}")
            made = GlipTrainee(model)
        else:
            raise InarchError(f"{world.source.label} train MDETR and GLIP, not {type(model).__name__}", where="--model")
        longest, room = world.texts(TRAIN, self.kind).ids.shape[2], model.config.text.longest
        if isinstance(model, Mdetr):
            room = min(room, model.config.spans)
        if longest > room:
            raise InarchError(f"the longest text has {longest} tokens, the model takes {room}", where="--model")
        return made

    def _mdetr(self, model: Mdetr) -> MdetrTrainee:
        world = self.world
        cells = -(-world.side // model.config.vision.stride)
        if cells != world.grid:
            raise InarchError(f"the model has {cells} cells a side, the batches' grid is {world.grid}", where="--model")
        language = world.source.language
        words = torch.from_numpy(attribute_words(language, model.config.text.vocabulary))
        return MdetrTrainee(model, words, [len(values) for values in language.attributes.values()])


def attribute_words(language: Language, vocabulary: int) -> Indices:
    """The attribute values that words name, [vocabulary, attributes]; -1 for none.

    Each word of a name stands for all of it, and so does its plural where the language has a word for that.
    """
    token = {word: number for number, word in enumerate(language.words)}
    table = np.full((vocabulary, len(language.attributes)), -1, np.int64)
    for column, values in enumerate(language.attributes.values()):
        for number, value in enumerate(values):
            for word in (*value.split(), plural(value)):
                if word in token:
                    table[token[word], column] = number
    return table
