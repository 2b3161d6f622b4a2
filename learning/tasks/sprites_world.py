"""Sprites as a world: scenes of emoji, from packages that have to be there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from inarch.learning.models.registry import Config
from inarch.learning.tasks.drawn import Drawn
from inarch.learning.tasks.scenes.data import ScenesConfig
from inarch.learning.tasks.scenes.world import Split
from inarch.learning.tasks.sprites.data import SPLITS, SpritesData
from inarch.learning.tasks.sprites.package import PINS, find_packages
from inarch.learning.tasks.sprites.words import SPRITES
from inarch.learning.tasks.sprites.world import LEVELS


class SpritesWorld(Drawn):
    """Scenes of emoji. A text that names all 60 would be longer than tiny models read, so nothing is detected."""

    label = "sprites"
    language = SPRITES
    difficulties = LEVELS
    parts: ClassVar[Mapping[str, Split]] = {split: scenes for split, (scenes, _) in SPLITS.items()}

    def draw(self, split: str, config: ScenesConfig) -> SpritesData:
        """Draw one split.

        Raises:
            DataError: a package is missing, or is another one.
        """
        return SpritesData.compose(config, {str(name): style for name, (_, style) in SPLITS.items()}[split], pins=PINS)

    def fitted(self, config: Config) -> Config:
        """As of any drawn world; before anything is made of it, the packages are looked for.

        Raises:
            InarchError: the model does not take such images.
            DataError: a package is missing; it says how to get it.
        """
        find_packages()
        return super().fitted(config)
