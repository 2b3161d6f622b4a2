"""What a model is trained on: batches by number, the module that turns them into losses, and held-out samples.

A batch is made from a seed and its number alone. So a run that is resumed sees what it would have seen, and several processes
that each take a part of a batch see the same batch. Shapes: I images and B texts a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from inarch.learning.config import validated
from inarch.learning.models.glip import Glip
from inarch.learning.models.mdetr import Mdetr
from inarch.learning.models.mdetr_config import MdetrConfig
from inarch.learning.models.registry import Config
from inarch.learning.tasks.glip_trainee import GlipTrainee, check_side, totals
from inarch.learning.tasks.mdetr_trainee import MdetrTrainee
from inarch.learning.tasks.scenes.data import ScenesConfig, ScenesData, training_batch
from inarch.learning.tasks.scenes.detection import Aim, DetectionTask, name_shapes
from inarch.learning.tasks.scenes.questions import ANSWERS
from inarch.learning.tasks.scenes.task import ScenesTask
from inarch.learning.tasks.scenes.texts import Texts
from inarch.learning.tasks.scenes.words import WORDS, plural
from inarch.learning.tasks.scenes.world import ATTRIBUTES, SPLITS, Difficulty, level
from inarch.learning.tasks.trainee import Trainee
from inarch.runtime.accuracy import Task
from inarch.structure.errors import InarchError

Arrays = dict[str, npt.NDArray[Any]]
Part = Literal["weights", "structure"]
"""Weights and structure are learned on separate images."""

_OF_IMAGE = frozenset({"pixel_values", "pixel_mask", "cells", "cell_boxes"})
_SHARED = frozenset({"objects", "owned", "spoken", "answering", "central"})


class Course(Protocol):
    """Training data for one task."""

    @property
    def name(self) -> str:
        """What it is called."""

    def batch(self, seed: int, step: int, part: Part = "weights") -> Arrays:
        """The batch of this number, for all processes together."""

    def trainee(self, model: nn.Module) -> nn.Module:
        """The model with its losses, under the name ``model``; called with a batch, it gives losses by name."""

    def held_out(self) -> Task:
        """What it is judged on."""


def shard(batch: Mapping[str, npt.NDArray[Any]], rank: int, world: int) -> Arrays:
    """One process's part of a batch: a run of images and the texts about them.

    What losses are divided by is divided by the number of processes, since gradients are averaged over them.

    Raises:
        InarchError: the images cannot be dealt out evenly.
    """
    images = len(batch["pixel_values"])
    if images % world:
        raise InarchError(f"{images} images cannot be dealt out to {world} processes", where="--images", hint="take a multiple")
    each, texts = images // world, len(batch["image"]) // world
    part: Arrays = {}
    for name, values in batch.items():
        if name in _SHARED:
            part[name] = values / world
        else:
            size = each if name in _OF_IMAGE else texts
            part[name] = values[rank * size : (rank + 1) * size]
    part["image"] = part["image"] - rank * each
    return part


def tensors(batch: Mapping[str, npt.NDArray[Any]], device: torch.device) -> dict[str, Tensor]:
    """A batch on a device."""
    return {name: torch.from_numpy(np.ascontiguousarray(values)).to(device) for name, values in batch.items()}


@dataclass(frozen=True)
class ScenesSettings:
    """Generated scenes to train on.

    Attributes:
        level: how hard; a name of :data:`~inarch.learning.tasks.scenes.world.LEVELS`.
        scenes: images to train on.
        held_out: images that are judged on.
        texts: of each image, to train on and to be judged on.
        side: of an image, in pixels.
        images, each: images a batch, texts of each.
        grid: cells a side of the model's feature map, which the auxiliary heads work on.
        seed: of the data.
        levels: feature maps of a GLIP; None for an MDETR.

    Raises:
        InarchError: there are too few images or texts for a batch.
    """

    level: str = "medium"
    scenes: int = 12000
    held_out: int = 2500
    texts: int = 8
    judged: int = 4
    side: int = 48
    images: int = 16
    each: int = 4
    grid: int = 6
    seed: int = 0
    levels: int | None = None

    def __post_init__(self) -> None:
        level(self.level)
        if self.each > self.texts:
            raise InarchError(f"{self.each} texts of an image, of which there are {self.texts}", where="data.each")
        if self.images > min(self.edge, self.scenes - self.edge):
            raise InarchError(
                f"{self.scenes} scenes leave {self.scenes - self.edge} to learn the structure on, a batch has {self.images}",
                where="data.scenes",
                hint=f"at least {int(self.images / STRUCTURE_PART + 0.999)}",
            )

    @property
    def edge(self) -> int:
        """Images before this one are the weights', the others the structure's."""
        return int(self.scenes * (1 - STRUCTURE_PART))


STRUCTURE_PART = 0.1
"""Share of the images that the structure is learned on."""


@dataclass(eq=False)
class Scenes:
    """Generated scenes: made when they are first needed, and kept.

    Args:
        settings: which.
    """

    settings: ScenesSettings
    _data: dict[str, ScenesData] = field(default_factory=dict)
    _texts: dict[tuple[str, str], Texts] = field(default_factory=dict)

    @property
    def difficulty(self) -> Difficulty:
        """Of the settings' level."""
        return level(self.settings.level)

    def data(self, split: str) -> ScenesData:
        """One split."""
        if split not in self._data:
            s = self.settings
            train = split == "train"
            config = ScenesConfig(
                self.difficulty,
                SPLITS[[str(one) for one in SPLITS].index(split)],
                s.scenes if train else s.held_out,
                s.texts if train else s.judged,
                s.side,
                s.seed,
            )
            self._data[split] = ScenesData.make(config)
        return self._data[split]

    def texts(self, split: str, kind: Aim) -> Texts:
        """Its texts of one kind."""
        if (split, kind) not in self._texts:
            data = self.data(split)
            self._texts[split, kind] = name_shapes(data.scenes, self.difficulty) if kind == "detection" else data.texts(kind)
        return self._texts[split, kind]

    def course(self, kind: Aim) -> ScenesCourse:
        """Training on one kind of texts.

        Raises:
            InarchError: the model cannot learn that kind.
        """
        self._check(kind)
        return ScenesCourse(self, kind)

    def task(self, kind: Aim, split: str = "test") -> Task:
        """Held-out samples.

        Raises:
            InarchError: the model has no outputs for that kind.
        """
        self._check(kind)
        if kind == "detection":
            assert self.settings.levels is not None
            return DetectionTask(self.data(split), self.texts(split, kind), self.settings.levels)
        return ScenesTask(kind, self.data(split), self.texts(split, kind), levels=self.settings.levels)

    def _check(self, kind: Aim) -> None:
        model, other = ("MDETR", "detection") if self.settings.levels is None else ("GLIP", "vqa")
        if kind == other:
            others = ", ".join(one for one in get_args(Aim) if one != other)
            raise InarchError(f"there is no {kind} with {model}", where="kind", hint=f"there are {others}")

    def fitted(self, config: Config) -> Config:
        """A model's configuration for these scenes: image size, words, answers, read from the last layer.

        The released models read answers from the first decoder layer, which makes the others free for questions.

        Raises:
            InarchError: the model does not take such images.
        """
        vision: Any = config.vision
        if vision.kind == "vit":
            vision = vision.model_copy(update={"image": self.settings.side})
        text = config.text.model_copy(update={"vocabulary": max(config.text.vocabulary, len(WORDS))})
        changes: dict[str, Any] = {"vision": vision.model_dump(), "text": text.model_dump()}
        if isinstance(config, MdetrConfig):
            changes |= {"answers": len(ANSWERS), "answer_layer": config.decoder_layers - 1}
        else:
            check_side(self.settings.side)
        made: Config = validated(type(config), config.model_dump() | changes, "data.side")
        return made


@dataclass(frozen=True, eq=False)
class ScenesCourse:
    """Training on one kind of texts about scenes."""

    scenes: Scenes
    kind: Aim

    @property
    def name(self) -> str:
        """As ``scenes/vqa``."""
        return f"scenes/{self.kind}"

    def batch(self, seed: int, step: int, part: Part = "weights") -> Arrays:
        """Images drawn anew for every batch, each once in it."""
        settings, data = self.scenes.settings, self.scenes.data("train")
        texts = self.scenes.texts("train", self.kind)
        rng = np.random.default_rng([seed, step, part == "structure"])
        low, high = (0, settings.edge) if part == "weights" else (settings.edge, settings.scenes)
        rows = low + rng.choice(high - low, settings.images, replace=False)
        picks = np.argsort(rng.random((settings.images, texts.ids.shape[1])), axis=1)[:, : settings.each]
        batch = training_batch(data, texts, rows, picks, settings.grid)
        if settings.levels is None:
            return batch
        divisors = totals(batch["boxes"], batch["box_mask"], settings.side, settings.levels)
        return batch | {"answering": divisors[:1], "central": divisors[1:]}

    def trainee(self, model: nn.Module) -> Trainee:
        """A model with its losses.

        Raises:
            InarchError: it does not fit the scenes.
        """
        settings = self.scenes.settings
        if isinstance(model, Mdetr):
            made: Trainee = self._mdetr(model)
        elif isinstance(model, Glip):
            if model.config.levels != settings.levels:
                raise InarchError(f"the model has {model.config.levels} levels, the scenes' batches are for {settings.levels}")
            made = GlipTrainee(model, settings.side)
        else:
            raise InarchError(f"scenes train MDETR and GLIP, not {type(model).__name__}", where="--model")
        longest, room = self.scenes.texts("train", self.kind).ids.shape[2], model.config.text.longest
        if isinstance(model, Mdetr):
            room = min(room, model.config.spans)
        if longest > room:
            raise InarchError(f"the longest text has {longest} tokens, the model takes {room}", where="--model")
        return made

    def _mdetr(self, model: Mdetr) -> MdetrTrainee:
        cells = -(-self.scenes.settings.side // model.config.vision.stride)
        if cells != self.scenes.settings.grid:
            raise InarchError(
                f"the model has {cells} cells a side, the scenes' grid is {self.scenes.settings.grid}", where="grid"
            )
        return MdetrTrainee(model, attribute_words(model.config.text.vocabulary), [len(v) for v in ATTRIBUTES.values()])

    def held_out(self) -> Task:
        """The test split."""
        return self.scenes.task(self.kind)


def attribute_words(vocabulary: int) -> Tensor:
    """The attribute values that words name, [vocabulary, attributes]; -1 for none."""
    words = torch.full((vocabulary, len(ATTRIBUTES)), -1)
    for column, (name, values) in enumerate(ATTRIBUTES.items()):
        for number, value in enumerate(values):
            for word in (value, plural(value)) if name == "shape" else (value,):
                words[WORDS.index(word), column] = number
    return words


def course_names() -> Sequence[str]:
    """The courses that there are."""
    return [f"scenes/{kind}" for kind in get_args(Aim)]
