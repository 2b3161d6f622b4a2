"""What is trained on: the settings of each task's data."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from inarch.learning.settings import Count, FilePath, Pixels, Seed, Settings
from inarch.learning.tasks.scenes.world import LEVELS

STRUCTURE_PART = 0.1
"""Share of the images that the structure is learned on; the others are the weights'."""


def weights_part(images: int, batch: int) -> int:
    """How many of the images, from the first on, the weights learn from; the others are the structure's.

    Args:
        images: that there are.
        batch: images of a batch, each of which is in it once.

    Raises:
        ValueError: one of the two parts does not fill a batch.
    """
    edge = int(images * (1 - STRUCTURE_PART))
    if batch > min(edge, images - edge):
        fewest = max(batch, int((batch - 1) / STRUCTURE_PART) - 1)
        least = next(n for n in count(fewest) if batch <= min(int(n * (1 - STRUCTURE_PART)), n - int(n * (1 - STRUCTURE_PART))))
        raise ValueError(
            f"{images} images leave {images - edge} to learn the structure on, a batch has {batch}; at least {least} are needed"
        )
    return edge


class DataSettings(Settings):
    """What every task's data have.

    Attributes:
        task: which.
        images, each: images a batch, texts of each.
    """

    task: str
    images: Count = 16
    each: Count = 4

    @property
    def files(self) -> tuple[str, ...]:
        """The files that are read whole."""
        return ()


class CountedSettings(DataSettings):
    """Data of which there is as much as is asked for.

    Attributes:
        scenes: images to train on.
        held_out: images that are judged on.
    """

    scenes: Count = 12000
    held_out: Count = 2500

    @property
    def edge(self) -> int:
        """Images before this one are the weights', the others the structure's."""
        return weights_part(self.scenes, self.images)

    @model_validator(mode="after")
    def _fill_a_batch(self) -> Self:
        weights_part(self.scenes, self.images)
        return self


class DrawnSettings(CountedSettings):
    """Generated images.

    Attributes:
        level: how hard: easy, medium or hard.
        texts: of each image, to train on.
        judged: of each image, to be judged on.
        side: of an image, in pixels.
        seed: of the data.
    """

    level: str = "medium"
    texts: Count = 8
    judged: Count = 4
    side: Pixels = 48
    seed: Seed = 0

    @model_validator(mode="after")
    def _can_be_drawn(self) -> Self:
        if self.level not in LEVELS:
            raise ValueError(f"there is no level {self.level!r}; there are {', '.join(LEVELS)}")
        if self.each > self.texts:
            raise ValueError(f"a batch has {self.each} texts of an image, of which there are {self.texts}")
        return self


class ScenesSettings(DrawnSettings):
    """Scenes of plain shapes; see :mod:`inarch.learning.tasks.scenes`."""

    task: Literal["scenes"] = "scenes"


class SpritesSettings(DrawnSettings):
    """Scenes of emoji; see :mod:`inarch.learning.tasks.sprites`. They need more pixels to be told apart."""

    task: Literal["sprites"] = "sprites"
    side: Pixels = 64


class EasyVqaSettings(CountedSettings):
    """easy-VQA; see :mod:`inarch.learning.tasks.easy_vqa`. All that there is, unless less is asked for."""

    task: Literal["easy-vqa"] = "easy-vqa"
    scenes: Annotated[int, Field(ge=1, le=3600)] = 3600
    held_out: Annotated[int, Field(ge=1, le=1000)] = 1000


class FilesSettings(DataSettings):
    """Annotations of one's own in COCO's format; see :mod:`inarch.learning.tasks.coco.world`.

    Attributes:
        train, held_out: files of annotations, to train on and to be judged on.
        folder: of the images.
        tokenizer: the model's ``tokenizer.json``.
        short, longest: the length that an image's short side is given, unless the long side became longer than this.
    """

    train: FilePath
    held_out: FilePath
    folder: FilePath
    tokenizer: FilePath
    short: Pixels = 800
    longest: Pixels = 1333
    images: Count = 4
    each: Count = 2

    @property
    def files(self) -> tuple[str, ...]:
        """Both files of annotations, and the tokenizer."""
        return self.train, self.held_out, self.tokenizer


class RefcocoSettings(FilesSettings):
    """Referring expressions, in the form of MDETR's ``finetune_refcoco_train.json``."""

    task: Literal["refcoco"] = "refcoco"


class GqaSettings(FilesSettings):
    """Questions, in the form of MDETR's ``finetune_gqa_train_balanced.json``.

    Attributes:
        answers: the vocabulary of each type, as ``gqa_answer2id_by_type.json``.
    """

    task: Literal["gqa"] = "gqa"
    answers: FilePath

    @property
    def files(self) -> tuple[str, ...]:
        """Those of all, and the vocabulary."""
        return (*super().files, self.answers)


class CocoSettings(FilesSettings):
    """Objects to detect, in the form of COCO's ``instances_train2017.json``. All images have one text."""

    task: Literal["coco"] = "coco"
    each: Literal[1] = 1


TASKS = ("scenes", "sprites", "easy-vqa", "refcoco", "gqa", "coco")


def task_of(data: Any) -> Any:
    """The task that data settings are for, scenes where they do not say it."""
    return data.get("task", "scenes") if isinstance(data, Mapping) else getattr(data, "task", None)


Data = Annotated[
    Annotated[ScenesSettings, Tag("scenes")]
    | Annotated[SpritesSettings, Tag("sprites")]
    | Annotated[EasyVqaSettings, Tag("easy-vqa")]
    | Annotated[RefcocoSettings, Tag("refcoco")]
    | Annotated[GqaSettings, Tag("gqa")]
    | Annotated[CocoSettings, Tag("coco")],
    Discriminator(task_of, custom_error_type="task", custom_error_message=f"there is no such task; there are {', '.join(TASKS)}"),
]
"""What is trained on: one task's settings."""
