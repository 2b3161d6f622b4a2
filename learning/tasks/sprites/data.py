"""Sprites ready to train and to be judged on, with the arrays that scenes have: the same trainee, losses and tasks work.

Shapes: N scenes, K texts of each, B texts of a batch over I images, S pixels a side, G cells a side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from inarch.learning.tasks.scenes.data import ScenesConfig, ScenesData
from inarch.learning.tasks.scenes.data import training_batch as scenes_batch
from inarch.learning.tasks.scenes.texts import Kind, Texts, write
from inarch.learning.tasks.scenes.world import SPLITS as PLAIN
from inarch.learning.tasks.scenes.world import Difficulty, Split
from inarch.learning.tasks.sprites.package import PINS, Pins, Style, load_pictures
from inarch.learning.tasks.sprites.words import SPRITES, topic
from inarch.learning.tasks.sprites.world import draw, render
from inarch.structure.units import Indices

SpriteSplit = Literal["train", "test", "style", "concept"]

SPLITS: Mapping[SpriteSplit, tuple[Split, Style]] = {
    "train": ("train", "google"),
    "test": ("test", "google"),
    "style": ("test", "twitter"),
    "concept": ("unseen", "google"),
}
"""Split -> its scenes, and who drew its pictures. ``style`` has the scenes of ``test`` in a style that training does not have, so
that the two differ in nothing else; in ``concept``, expressions refer to concepts that training does not have."""

_COLUMNS = (0, 2)
"""Where :func:`~inarch.learning.tasks.scenes.data.training_batch` has an object's concept (its shape) and its size."""


@dataclass(frozen=True)
class SpritesConfig:
    """One split of sprites.

    Attributes:
        level: how hard they are.
        split: which scenes.
        count: N.
        texts: K.
        side: S.
        seed: of everything drawn.
    """

    level: Difficulty
    split: SpriteSplit
    count: int
    texts: int = 8
    side: int = 64
    seed: int = 0


@dataclass(frozen=True, eq=False)
class SpritesData(ScenesData):
    """One split, in memory; made by :meth:`compose`.

    Attributes:
        split: which.
    """

    split: SpriteSplit

    @classmethod
    def compose(cls, config: SpritesConfig, folder: Path | None = None, pins: Pins = PINS) -> SpritesData:
        """Draw and render.

        Args:
            config: which split.
            folder: of the packages; without it, the environment says where they are.
            pins: what their files must be.

        Raises:
            DataError: a package is missing, or is another one.
        """
        scenes_of, style = SPLITS[config.split]
        pictures = load_pictures(style, folder, pins)
        scenes = draw(pictures, config.count, config.level, scenes_of, config.side, config.seed)
        images = render(scenes, pictures, config.side, config.level, [config.seed, PLAIN.index(scenes_of)])
        plain = ScenesConfig(config.level, scenes_of, config.count, config.texts, config.side, config.seed)
        return cls(plain, scenes, images, config.split)

    def texts(self, kind: Kind) -> Texts:
        """Texts of one kind for every scene."""
        about = topic(self.config.split, self.config.level.hardness)
        return write(SPRITES.things(self.scenes), kind, self.config.texts, about, self.config.seed)


def training_batch(data: SpritesData, texts: Texts, rows: Indices, picks: Indices, grid: int) -> dict[str, npt.NDArray[Any]]:
    """Everything that a training step needs, as scenes have it; ``cells`` [I, G * G, 2] hold concept and size."""
    batch = scenes_batch(data, texts, rows, picks, grid)
    return batch | {"cells": np.ascontiguousarray(batch["cells"][..., _COLUMNS])}
