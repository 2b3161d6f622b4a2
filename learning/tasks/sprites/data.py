"""Sprites ready to train and to be judged on, with the arrays that scenes have: the same trainee, losses and tasks work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from inarch.learning.tasks.scenes.data import ScenesConfig, ScenesData
from inarch.learning.tasks.scenes.texts import Kind, Texts, write
from inarch.learning.tasks.scenes.world import SPLITS as PLAIN
from inarch.learning.tasks.scenes.world import Split
from inarch.learning.tasks.sprites.package import PINS, Pins, Style, load_pictures
from inarch.learning.tasks.sprites.words import SPRITES, topic
from inarch.learning.tasks.sprites.world import draw, render

SpriteSplit = Literal["train", "test", "style", "concept"]

SPLITS: Mapping[SpriteSplit, tuple[Split, Style]] = {
    "train": ("train", "google"),
    "test": ("test", "google"),
    "style": ("test", "twitter"),
    "concept": ("unseen", "google"),
}
"""Split -> its scenes, and who drew its pictures. ``style`` has the scenes of ``test`` in a style that training does not have, so
that the two differ in nothing else; in ``concept``, expressions refer to concepts that training does not have."""


@dataclass(frozen=True, eq=False)
class SpritesData(ScenesData):
    """One split, in memory; made by :meth:`compose`.

    Attributes:
        style: who drew the pictures.
    """

    style: Style

    @classmethod
    def compose(cls, config: ScenesConfig, style: Style, folder: Path | None = None, pins: Pins = PINS) -> SpritesData:
        """Draw and render.

        Args:
            config: which scenes.
            style: in whose pictures.
            folder: of the packages; without it, the environment says where they are.
            pins: what their files must be.

        Raises:
            DataError: a package is missing, or is another one.
        """
        pictures = load_pictures(style, folder, pins)
        scenes = draw(pictures, config.count, config.level, config.split, config.side, config.seed)
        images = render(scenes, pictures, config.side, config.level, [config.seed, PLAIN.index(config.split)])
        return cls(config, scenes, images, style)

    def texts(self, kind: Kind) -> Texts:
        """Texts of one kind for every scene."""
        about = topic(self.config.split, self.config.level.hardness)
        return write(SPRITES.things(self.scenes), kind, self.config.texts, about, self.config.seed)
