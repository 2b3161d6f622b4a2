"""What the exported models take: tokens with padding, pixels, features with masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Inputs = dict[str, npt.NDArray[Any]]
MakeInputs = Callable[[np.random.Generator, int, int], Inputs]
"""(rng, batch, length) -> arrays by the name of forward's argument, in its order."""

WIDTH, HEADS, HIDDEN, VOCABULARY = 32, 4, 64, 50


def tokens(rng: np.random.Generator, batch: int, length: int) -> Inputs:
    mask = np.ones((batch, length), np.int64)
    mask[0, length - 2 :] = 0
    return {"input_ids": rng.integers(3, VOCABULARY, (batch, length), np.int64), "attention_mask": mask}


def pixels(side: int) -> MakeInputs:
    def make(rng: np.random.Generator, batch: int, length: int) -> Inputs:
        return {"pixel_values": rng.normal(size=(batch, 3, side, side)).astype(np.float32)}

    return make


def images(rng: np.random.Generator, batch: int, length: int) -> Inputs:
    return {"pixel_values": rng.normal(size=(batch, 3, 4 * length, 40)).astype(np.float32)}


def masked_images(rng: np.random.Generator, batch: int, length: int) -> Inputs:
    mask = np.ones((batch, 32 * length, 96), np.int64)
    mask[0, :, 64:] = 0
    return {"pixel_values": rng.normal(size=(batch, 3, 32 * length, 96)).astype(np.float32), "pixel_mask": mask}


def padded(batch: int, length: int) -> npt.NDArray[np.bool_]:
    """[B, S], True on padding; no row is all padding."""
    mask = np.zeros((batch, length), np.bool_)
    mask[0, length - 2 :] = True
    return mask


def features(rng: np.random.Generator, batch: int, length: int, width: int = WIDTH) -> Inputs:
    shape = (batch, length, width)
    values = rng.normal(size=(2, *shape)).astype(np.float32)
    return {"features": values[0], "pos": values[1], "mask": padded(batch, length)}


def sequences(rng: np.random.Generator, batch: int, length: int) -> Inputs:
    x = rng.normal(size=(batch, length, WIDTH)).astype(np.float32)
    y = rng.normal(size=(batch, length + 1, WIDTH)).astype(np.float32)
    return {"x": x, "y": y, "mask": padded(batch, length)}


def sequence(rng: np.random.Generator, batch: int, length: int) -> Inputs:
    return {"x": rng.normal(size=(batch, length, WIDTH)).astype(np.float32), "mask": padded(batch, length)}


def sequence_first(rng: np.random.Generator, batch: int, length: int) -> Inputs:
    return {"x": rng.normal(size=(length, batch, WIDTH)).astype(np.float32), "mask": padded(batch, length)}


def text_and_image(rng: np.random.Generator, batch: int, length: int) -> Inputs:
    return tokens(rng, batch, length) | pixels(16)(rng, batch, length)


def fusion(rng: np.random.Generator, batch: int, length: int) -> Inputs:
    visual = rng.normal(size=(batch, length + 3, WIDTH)).astype(np.float32)
    text = rng.normal(size=(batch, length, 24)).astype(np.float32)
    return {"visual": visual, "text": text, "mask": ~padded(batch, length)}
