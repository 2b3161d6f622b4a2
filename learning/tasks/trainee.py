"""What is trained: a model together with its losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Trainee(nn.Module):
    """A model under the name ``model``; called with a batch, it gives the losses by name, weighted.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """The model's own inputs, one row a text."""
        pixels = batch["pixel_values"][batch["image"]]
        return {"pixel_values": pixels, "input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


def whole(pixels: Tensor) -> Tensor:
    """The mask [B, H, W] of images without padding."""
    return torch.ones(pixels.shape[0], *pixels.shape[2:], dtype=torch.bool, device=pixels.device)
