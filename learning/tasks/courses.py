"""What a model is trained on: batches by number, and the module that turns them into losses.

A batch is made from a seed and its number alone. So a run that is resumed sees what it would have seen, and several processes
that each take a part of a batch see the same batch. Shapes: I images and B texts a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from inarch.learning.tasks.trainee import Trainee
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
        """The batch of this number, for all processes together: whatever the trainee takes.

        Several processes need to know how to deal it out, see :func:`shard`: ``pixel_values`` and what else is of images has I
        rows, all else B, one a text, and ``image`` says whose each is.
        """

    def trainee(self, model: nn.Module) -> Trainee:
        """The model with its losses.

        Raises:
            InarchError: it does not fit the data.
        """


def draw_images(rng: np.random.Generator, count: int, edge: int, total: int, part: Part) -> npt.NDArray[np.int64]:
    """Different images for one batch, [count], of those that a part learns from.

    Args:
        rng: the batch's.
        count: how many.
        edge: images before this one are the weights', the others the structure's.
        total: images that there are.
        part: whose.
    """
    low, high = (0, edge) if part == "weights" else (edge, total)
    return low + rng.choice(high - low, count, replace=False)


def shard(batch: Mapping[str, npt.NDArray[Any]], rank: int, world: int) -> Arrays:
    """One process's part of a batch: a run of images and the texts about them.

    What losses are divided by is divided by the number of processes, since gradients are averaged over them.

    Raises:
        InarchError: the images cannot be dealt out evenly, or there are none.
    """
    if world == 1:
        return dict(batch)
    if not batch.keys() >= {"pixel_values", "image"}:
        raise InarchError(
            f"a batch of {sorted(batch)} cannot be dealt out to {world} processes",
            where="Course.batch",
            hint="give it pixel_values, [I, ...], and image, [B], the image of each text; or train in one process",
        )
    each, texts = share_of(len(batch["pixel_values"]), world), len(batch["image"]) // world
    part: Arrays = {}
    for name, values in batch.items():
        if name in _SHARED:
            part[name] = values / world
        else:
            size = each if name in _OF_IMAGE else texts
            part[name] = values[rank * size : (rank + 1) * size]
    part["image"] = part["image"] - rank * each
    return part


def share_of(images: int, world: int) -> int:
    """How many of a batch's images each process takes.

    Raises:
        InarchError: they cannot be dealt out evenly.
    """
    if images % world:
        raise InarchError(
            f"{images} images cannot be dealt out to {world} processes", where="data.images", hint="take a multiple"
        )
    return images // world


def tensors(batch: Mapping[str, npt.NDArray[Any]], device: torch.device) -> dict[str, Tensor]:
    """A batch on a device."""
    return {name: torch.from_numpy(np.ascontiguousarray(values)).to(device) for name, values in batch.items()}
