"""Generated scenes as a world."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from inarch.learning.tasks.aims import Aim
from inarch.learning.tasks.drawn import Drawn
from inarch.learning.tasks.scenes.data import ScenesConfig, ScenesData
from inarch.learning.tasks.scenes.detection import DetectionTask, name_shapes
from inarch.learning.tasks.scenes.texts import Texts
from inarch.learning.tasks.scenes.words import SCENES
from inarch.learning.tasks.scenes.world import LEVELS, SPLITS, Split
from inarch.runtime.accuracy import Task


class ScenesWorld(Drawn):
    """Scenes of plain shapes; a GLIP detects them, too."""

    label = "scenes"
    language = SCENES
    difficulties = LEVELS
    parts: ClassVar[Mapping[str, Split]] = {split: split for split in SPLITS}

    def draw(self, split: str, config: ScenesConfig) -> ScenesData:
        """Draw one split."""
        return ScenesData.make(config)

    @property
    def kinds(self) -> tuple[Aim, ...]:
        """Questions are an MDETR's, detection is a GLIP's."""
        return super().kinds if self.levels is None else (*super().kinds, "detection")

    def _write(self, data: ScenesData, kind: Aim) -> Texts:
        return name_shapes(data.scenes, self.difficulty) if kind == "detection" else super()._write(data, kind)

    def _judged(self, kind: Aim, split: str, label: str) -> Task:
        if kind == "detection" and self.levels is not None:
            return DetectionTask(self.data(split), self.texts(split, kind), self.levels, label)
        return super()._judged(kind, split, label)
