"""What every stage of a run works with: a model, its sites and its data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inarch.learning.config import LearnConfig
from inarch.learning.data_config import Data
from inarch.learning.families import chosen, families, sharers
from inarch.learning.gates import GateSpace
from inarch.learning.models.checkpoints import load_checkpoint
from inarch.learning.models.glip import Glip
from inarch.learning.models.registry import Config, build, preset
from inarch.learning.models.registry import Model as Network
from inarch.learning.outline import outline
from inarch.learning.tasks.aims import Aim
from inarch.learning.tasks.courses import Course
from inarch.learning.tasks.glip_trainee import start_boxes
from inarch.learning.tasks.trainee import Trainee
from inarch.learning.tasks.worlds import World, open_world
from inarch.learning.weights import load_weights, read_weights, weights_of
from inarch.runtime.accuracy import Task
from inarch.structure.sites import SiteTable

FRESH = ("qa_embed.", "answer_")
"""Beginnings of names in MDETR that depend on what it is trained for: heads for questions."""


@dataclass(frozen=True, eq=False)
class Workshop:
    """A model, its sites and its data: what every stage of a run needs.

    Attributes:
        config: of the run.
        model: the model's configuration, fitted to the data.
        world: the data.
        table: the model's sites.
    """

    config: LearnConfig
    model: Config
    world: World
    table: SiteTable

    def pretraining(self) -> Course:
        """What the dense model is trained on at first, and the structure is learned on."""
        return self.world.course(self.world.first)

    def build(self, weights: Mapping[str, Tensor] | None = None) -> Network:
        """The model, with these weights, or with random ones of the run's seed.

        Raises:
            InarchError: the weights are another model's.
        """
        made = build(self.model, seed=self.config.seed)
        if weights is not None:
            load_weights(made, weights)
        elif isinstance(made, Glip):
            start_boxes(made, self.world.side)
        return made

    def given(self) -> dict[str, Tensor]:
        """The trainee's weights that the configuration names, to start from instead of pre-training.

        They are another run's, or a released checkpoint's. Heads for questions, and what only training needs, may be others
        there: those are random then.

        Raises:
            InarchError: they cannot be read, or are another model's.
        """
        source, course = str(self.config.weights), self.pretraining()
        if Path(source).suffix == ".safetensors":
            hint = "the dense.safetensors of another run of the same model, or a released checkpoint"
            made = self._prepared(course, self.build())
            load_weights(made, _fitting(read_weights(Path(source), hint), made.state_dict()), source)
            return weights_of(made)
        released, _ = load_checkpoint(source, self.model, seed=self.config.seed, fresh=FRESH)
        return weights_of(self._prepared(course, released))

    def trainee(self, course: Course, weights: Mapping[str, Tensor] | None = None, source: str = "weights") -> Trainee:
        """The model with a course's losses; what only training needs has random weights of the run's seed, too.

        Args:
            course: one of the world's.
            weights: a trainee's, or None for random ones.
            source: where they come from.

        Raises:
            InarchError: the weights are another model's, or the model does not fit the course.
        """
        made = self._prepared(course, self.build())
        if weights is not None:
            load_weights(made, weights, source)
        return made

    def _prepared(self, course: Course, model: Network) -> Trainee:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            return course.trainee(model)


def _fitting(there: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of another run in which what depends on its task is this one's own, unless it is the same."""

    def depends(name: str) -> bool:
        return not name.startswith("model.") or name.removeprefix("model.").startswith(FRESH)

    fixed = {name: value for name, value in there.items() if not depends(name)}
    free = {name: there[name] if name in there and there[name].shape == value.shape else value for name, value in own.items()}
    return fixed | {name: value for name, value in free.items() if depends(name)}


def workshop(config: LearnConfig) -> Workshop:
    """Set up a run: the model is exported once, to find its sites.

    Raises:
        InarchError: there is no such preset, or it does not fit the task, or the task's data are not there.
    """
    chosen = preset(config.model)
    world = world_of(config.data, chosen)
    fitted = world.fitted(chosen)
    return Workshop(config, fitted, world, outline(fitted).table)


def world_of(data: Data, model: Config) -> World:
    """What a model is trained on; stages of one process share it, as long as its files are the same.

    Raises:
        InarchError: such a model can learn nothing there.
    """
    return _world(data, model, tuple(_stamp(file) for file in data.files))


@lru_cache(maxsize=2)
def _world(data: Data, model: Config, files: tuple[object, ...]) -> World:
    return open_world(data, model)


def _stamp(file: str) -> object:
    """What a file is another one by; None where it is not there."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def kinds_of(config: LearnConfig) -> tuple[Aim, ...]:
    """What a run's model can be tuned for; first what it is tuned for unless something else is asked for.

    Raises:
        InarchError: there is no such preset, or it can learn nothing there.
    """
    return world_of(config.data, preset(config.model)).kinds


def gate_space(shop: Workshop) -> GateSpace:
    """The gates that the run's settings allow.

    Raises:
        InarchError: families are asked for that cannot be.
    """
    structure, table = shop.config.structure, shop.table
    if structure.families is not None:
        found = chosen(table, structure.families, structure.filled)
    else:
        found = families(table, structure.sharing, structure.block)
        found = found if structure.bound else sharers(table, found, structure.filled)
    return GateSpace(table, found, prune=structure.prune, least=structure.least, tied=structure.tied)


def task_of(config: LearnConfig, kind: Aim, split: str = "test") -> Task:
    """A run's held-out samples, without its model."""
    return world_of(config.data, preset(config.model)).task(kind, split)


def replaced(shop: Workshop, **changes: Any) -> Workshop:
    """The same workshop for another configuration of structure, budget or seed: sites and data stay."""
    return replace(shop, config=shop.config.model_copy(update=changes))
