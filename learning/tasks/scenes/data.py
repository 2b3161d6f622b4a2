"""Scenes ready to train and to be judged on: images, texts and targets of one split, made once and kept in a cache.

Shapes: N scenes, K texts of each, B texts of a batch over I images, S pixels a side, G cells a side, T tokens, P boxes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from inarch.learning.tasks.scenes.render import Images, render
from inarch.learning.tasks.scenes.texts import Kind, Texts, write_texts
from inarch.learning.tasks.scenes.world import SPLITS, Difficulty, Scenes, Split, draw
from inarch.structure.units import Indices

MEAN, SPREAD = 0.35, 0.25
"""What pixels in [0, 1] are normalised by."""

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class ScenesConfig:
    """One split of generated scenes.

    Attributes:
        level: how hard they are.
        split: which scenes.
        count: N.
        texts: K.
        side: S.
        seed: of everything drawn.
    """

    level: Difficulty
    split: Split
    count: int
    texts: int = 8
    side: int = 64
    seed: int = 0


@dataclass(frozen=True, eq=False)
class ScenesData:
    """One split, in memory."""

    config: ScenesConfig
    scenes: Scenes
    images: Images

    @classmethod
    def make(cls, config: ScenesConfig) -> ScenesData:
        """Draw and render; 0.6 ms a scene of 64 pixels."""
        scenes = draw(config.count, config.level, config.split, config.seed)
        # Splits have grounds of their own too.
        seed = config.seed * len(SPLITS) + SPLITS.index(config.split)
        return cls(config, scenes, render(scenes, config.side, config.level, seed))

    def texts(self, kind: Kind) -> Texts:
        """Texts of one kind for every scene."""
        return write_texts(self.scenes, kind, self.config.texts, self.config.level, self.config.seed)

    def pixels(self, rows: Indices) -> npt.NDArray[np.float32]:
        """Normalised images [n, 3, S, S]."""
        scaled = (self.images[rows].astype(np.float32) / 255 - MEAN) / SPREAD
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))

    def cells(self, rows: Indices, grid: int) -> Indices:
        """The object over the middle of every cell, [n, G * G]; -1 on the ground. The last one drawn lies on top."""
        place = (np.arange(grid) + 0.5) / grid
        x, y = np.meshgrid(place, place)
        boxes = self.scenes.boxes[rows]
        found = np.full((len(rows), grid * grid), -1, np.int64)
        for k in range(boxes.shape[1]):
            inside = _inside(boxes[:, k], x.ravel(), y.ravel()) & (self.scenes.count[rows] > k)[:, None]
            found[inside] = k
        return found


def _inside(boxes: npt.NDArray[np.floating], x: npt.NDArray[np.floating], y: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """Which points [G] lie in each box [n, 4]: [n, G]."""
    result: npt.NDArray[np.bool_] = (np.abs(x - boxes[:, :1]) <= boxes[:, 2:3] / 2) & (
        np.abs(y - boxes[:, 1:2]) <= boxes[:, 3:] / 2
    )
    return result


def training_batch(data: ScenesData, texts: Texts, rows: Indices, picks: Indices, grid: int) -> Arrays:
    """Everything that a training step needs.

    Args:
        data: the split.
        texts: its texts.
        rows: [I] scenes.
        picks: [I, B / I] which of each scene's texts.
        grid: G.

    Returns:
        ``pixel_values`` [I, 3, S, S], ``image`` [B] (which image each text is about), ``input_ids`` and ``attention_mask``
        [B, T], ``boxes`` [B, P, 4], ``box_mask`` [B, P], ``spans`` [B, P, T], ``answers`` [B], ``cells`` [I, G * G, 4]
        (attributes of the object on every cell, -1 on the ground), ``cell_boxes`` [I, G * G, 4] (its box) and ``covered``
        [B, P, G * G] (cells of each target). What losses are divided by, so that processes that take a part each agree:
        ``objects`` (boxes), ``owned`` (cells with an object, once a text) and ``spoken`` (tokens that speak of a box), each [1].
    """
    scene = np.repeat(rows, picks.shape[1])
    pick = picks.reshape(-1)
    image = np.repeat(np.arange(len(rows)), picks.shape[1])
    targets = texts.targets[scene, pick]
    length = int(texts.mask[scene, pick].sum(1).max())
    owner = data.cells(rows, grid)
    world = data.scenes
    of_cell = np.stack(
        [
            np.take_along_axis(getattr(world, name)[rows], np.maximum(owner, 0), 1)
            for name in ("shape", "colour", "size", "texture")
        ],
        -1,
    )
    return {
        "pixel_values": data.pixels(rows),
        "image": image,
        "input_ids": texts.ids[scene, pick, :length],
        "attention_mask": texts.mask[scene, pick, :length],
        "boxes": world.boxes[scene[:, None], np.maximum(targets, 0)],
        "box_mask": targets >= 0,
        "spans": texts.spans[scene, pick, :, :length],
        "answers": texts.answers[scene, pick],
        "cells": np.where(owner[..., None] < 0, -1, of_cell),
        "cell_boxes": world.boxes[rows[:, None], np.maximum(owner, 0)],
        "objects": _at_least_one(targets >= 0),
        "owned": _at_least_one((owner >= 0)[image]),
        "spoken": _at_least_one(texts.spans[scene, pick, :, :length].any(1)),
        "covered": (owner[image][:, None, :] == targets[:, :, None]) & (targets[:, :, None] >= 0),
    }


def _at_least_one(mask: Any) -> npt.NDArray[np.float32]:
    """How many are true, one where none is, [1]."""
    return np.array([max(int(mask.sum()), 1)], np.float32)


def feeds(data: ScenesData, texts: Texts, flat: Indices) -> Mapping[str, npt.NDArray[Any]]:
    """A model's inputs for texts by their place in [N * K]."""
    scene, pick = np.divmod(flat, texts.ids.shape[1])
    side = data.config.side
    return {
        "pixel_values": data.pixels(scene),
        "pixel_mask": np.ones((len(flat), side, side), np.bool_),
        "input_ids": texts.ids[scene, pick],
        "attention_mask": texts.mask[scene, pick],
    }
