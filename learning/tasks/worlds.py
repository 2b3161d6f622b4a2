"""Worlds: what there is to train on and to be judged on, of which a run has one.

=========== ============================== ====================== ===================================
task        MDETR                          GLIP                   held-out splits
=========== ============================== ====================== ===================================
scenes      referring, grounding, vqa      referring, grounding,  test, unseen (combinations of shape
                                           detection              and colour)
sprites     referring, grounding, vqa      referring, grounding   test, style, concept (unseen ones)
easy-vqa    vqa                            -                      test
refcoco     referring                      referring              test: a file of one's own
gqa         vqa                            -                      the same
coco        -                              detection              the same
=========== ============================== ====================== ===================================

A model is pre-trained, and its structure learned, on grounding; where there is but one kind, on that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from inarch.learning.data_config import Data, EasyVqaSettings, FilesSettings, SpritesSettings
from inarch.learning.models.registry import Config
from inarch.learning.tasks.aims import Aim
from inarch.learning.tasks.coco.world import FilesWorld
from inarch.learning.tasks.courses import Course
from inarch.learning.tasks.drawn import Drawn
from inarch.learning.tasks.easy_vqa_world import EasyVqaWorld
from inarch.learning.tasks.sprites_world import SpritesWorld
from inarch.runtime.accuracy import Task


class World(Protocol):
    """Data for one model, made or read when they are first needed."""

    @property
    def kinds(self) -> tuple[Aim, ...]:
        """What the model can be trained for; first what it is tuned for unless something else is asked for."""

    @property
    def first(self) -> Aim:
        """What the dense model is trained for at first, and its structure is learned on."""

    @property
    def splits(self) -> tuple[str, ...]:
        """What is judged on; the first has what training has, the others what training does not."""

    @property
    def side(self) -> int:
        """Of an image, in pixels; the short one."""

    @property
    def batch(self) -> int:
        """Samples that are judged at once."""

    @property
    def digests(self) -> Mapping[str, str]:
        """File that training depends on -> SHA-256 of what it holds; none where data are made or pinned."""

    def fitted(self, config: Config) -> Config:
        """A model's configuration for these images, words and answers.

        Raises:
            InarchError: the model does not take such images.
            DataError: the data are not there; it says how to get them.
        """

    def check(self, kind: Aim) -> None:
        """Refuse before a run begins what would stop it later.

        Raises:
            InarchError: the model cannot learn this kind here, or cannot be judged on it.
        """

    def course(self, kind: Aim) -> Course:
        """What is trained on for one kind.

        Raises:
            InarchError: the model cannot learn it here.
        """

    def task(self, kind: Aim, split: str = "test") -> Task:
        """Held-out samples of one kind.

        Raises:
            InarchError: the model has no outputs for that kind, or there is no such split.
        """


def open_world(settings: Data, model: Config) -> World:
    """The world of these settings.

    Args:
        settings: one task's.
        model: what is trained; its architecture says what is learned, and on how many cells.

    Raises:
        InarchError: such a model can learn nothing there.
    """
    if isinstance(settings, EasyVqaSettings):
        return EasyVqaWorld(settings, model)
    if isinstance(settings, FilesSettings):
        return FilesWorld(settings, model)
    if isinstance(settings, SpritesSettings):
        return SpritesWorld(settings, model)
    return Drawn(settings, model)
