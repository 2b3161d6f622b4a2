"""Sprites as a world: drawn like scenes, from packages that have to be there."""

from __future__ import annotations

from inarch.learning.models.registry import Config
from inarch.learning.tasks.drawn import Drawn
from inarch.learning.tasks.sprites.package import find_packages


class SpritesWorld(Drawn):
    """Scenes of emoji."""

    def fitted(self, config: Config) -> Config:
        """As of any drawn world; before anything is made of it, the packages are looked for.

        Raises:
            InarchError: the model does not take such images.
            DataError: a package is missing; it says how to get it.
        """
        find_packages()
        return super().fitted(config)
