"""Sine embeddings of places in an image (DETR's, normalised)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class SinePositions(nn.Module):
    """Where each cell of a feature map lies, as sines and cosines of its row and its column; no parameters.

    Rows and columns are counted over real cells only and scaled to (0, 2 pi]; half of the width is the row's, half the column's,
    each at geometric frequencies with base 10,000, sine and cosine interleaved.

    Args:
        width: C, a multiple of 4.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.part = width // 2

    def forward(self, mask: Tensor) -> Tensor:
        """[B, C, h, w] from a mask [B, h, w] bool, True on real cells."""
        real = mask.to(torch.float32)
        index = torch.arange(self.part, device=mask.device)
        period = 10_000.0 ** (2 * (index // 2).to(torch.float32) / self.part)
        parts = []
        for axis in (1, 2):
            place = real.cumsum(axis)
            last = place[:, -1:, :] if axis == 1 else place[:, :, -1:]
            angle = (place / (last + 1e-6) * (2 * math.pi))[..., None] / period
            parts.append(torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), -1).flatten(-2))
        return torch.cat(parts, -1).permute(0, 3, 1, 2)
