"""Trying a model: random pixels and tokens with real padding, and a run from arrays to arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn


def images(rng: torch.Generator, batch: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Pixels [B, 3, H, W] and their mask [B, H, W]; every image but the first is smaller, zero beyond its edge."""
    pixels = torch.randn(batch, 3, height, width, generator=rng)
    mask = torch.zeros(batch, height, width, dtype=torch.bool)
    for row in range(batch):
        shrink = min(row, 3)
        mask[row, : height - shrink * height // 6, : width - shrink * width // 8] = True
    return pixels * mask[:, None], mask


def texts(rng: torch.Generator, batch: int, length: int, vocabulary: int, padding: int) -> tuple[Tensor, Tensor]:
    """Token ids [B, T] and their mask [B, T] (int64); every text but the first is shorter."""
    ids = torch.randint(3, vocabulary, (batch, length), generator=rng)
    mask = torch.ones(batch, length, dtype=torch.int64)
    for row in range(1, batch):
        mask[row, max(2, length - row * max(1, length // 4)) :] = 0
    return torch.where(mask.bool(), ids, padding), mask


@torch.no_grad()
def run_eager(model: nn.Module, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """What a model says of arrays, wherever it is, as arrays; inputs and outputs go by name."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    outputs = model(**{name: torch.from_numpy(array).to(device) for name, array in feeds.items()})
    return {name: tensor.cpu().numpy() for name, tensor in outputs.items()}
