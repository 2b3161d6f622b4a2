"""What is drawn, said and asked in scenes and in sprites: one description of each, for those who train and those who only judge.

Numpy only, so that a deployed model is judged without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from inarch.learning.tasks.aims import Aim
from inarch.learning.tasks.scenes.data import ScenesConfig, ScenesData
from inarch.learning.tasks.scenes.detection import DetectionTask, name_shapes
from inarch.learning.tasks.scenes.language import Language
from inarch.learning.tasks.scenes.task import ScenesTask
from inarch.learning.tasks.scenes.texts import Texts
from inarch.learning.tasks.scenes.words import SCENES
from inarch.learning.tasks.scenes.world import LEVELS, SPLITS, Difficulty, Split
from inarch.learning.tasks.sprites import data as sprites
from inarch.learning.tasks.sprites import package
from inarch.learning.tasks.sprites.words import SPRITES
from inarch.learning.tasks.sprites.world import LEVELS as SPRITE_LEVELS
from inarch.runtime.accuracy import Task

TEST = "test"


@dataclass(frozen=True, eq=False)
class Source:
    """Drawn images and their texts.

    Attributes:
        label: what tasks are called.
        language: words, answers and attributes.
        difficulties: by level.
        parts: split -> the scenes that it is made of.
        draw: makes the data of a split.
        detected: whether a GLIP's text can name all that there is.
    """

    label: str
    language: Language
    difficulties: Mapping[str, Difficulty]
    parts: Mapping[str, Split]
    draw: Callable[[str, ScenesConfig], ScenesData]
    detected: bool

    def kinds(self, levels: int | None) -> tuple[Aim, ...]:
        """What there is for an MDETR (no levels) or a GLIP: questions are the one's, detection is the other's."""
        own: tuple[Aim, ...] = ("vqa",) if levels is None else ("detection",) if self.detected else ()
        return ("referring", "grounding", *own)

    def texts(self, data: ScenesData, kind: Aim) -> Texts:
        """The texts of one kind about a split."""
        return name_shapes(data.scenes, data.config.level) if kind == "detection" else data.texts(kind)

    def task(self, kind: Aim, split: str, data: ScenesData, texts: Texts, levels: int | None) -> Task:
        """A split's samples of one kind, for an MDETR (no levels) or a GLIP."""
        label = self.label if split == TEST else f"{self.label}-{split}"
        if kind == "detection":
            assert levels is not None
            return DetectionTask(data, texts, levels, label)
        return ScenesTask(kind, data, texts, label, levels)


def _draw_scenes(split: str, config: ScenesConfig) -> ScenesData:
    return ScenesData.make(config)


def _draw_sprites(split: str, config: ScenesConfig) -> ScenesData:
    style = {str(name): style for name, (_, style) in sprites.SPLITS.items()}[split]
    return sprites.SpritesData.compose(config, style, pins=package.PINS)


SOURCES: Mapping[str, Source] = {
    source.label: source
    for source in (
        Source("scenes", SCENES, LEVELS, {split: split for split in SPLITS}, _draw_scenes, True),
        # A text that names all 60 concepts would be longer than tiny models read.
        Source("sprites", SPRITES, SPRITE_LEVELS, {name: of for name, (of, _) in sprites.SPLITS.items()}, _draw_sprites, False),
    )
}
