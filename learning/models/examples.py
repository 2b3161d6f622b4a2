"""Inputs to try a model on: random pixels and tokens with real padding."""

from __future__ import annotations

import torch
from torch import Tensor


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
