"""What is trained: a model together with its losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Trainee(nn.Module, ABC):
    """A model under the name ``model``; called with a batch, it gives the losses by name, weighted.

    A pass through the model and what is made of it are apart, so that who wants both the losses and the outputs, as
    distillation does, pays for one pass. What a pass leaves is the trainee's own affair.

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

    @abstractmethod
    def through(self, batch: Mapping[str, Tensor]) -> Any:
        """A batch through the model."""

    @abstractmethod
    def losses(self, passed: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Losses by name, weighted, in float32; their sum is the task's loss.

        Args:
            passed: what :meth:`through` left of the same batch.
            batch: with the targets.
        """

    @abstractmethod
    def outputs(self, passed: Any) -> dict[str, Tensor]:
        """The model's own outputs, one row a text, in float32."""

    @abstractmethod
    def apart(self, mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """How far a student's outputs are from its teacher's, of what the batch has targets for; a scalar.

        As with losses, what it is divided by is the whole batch's, so that several processes come to the same.

        Args:
            mine: as of :meth:`outputs`.
            theirs: the teacher's.
            batch: both saw it.
        """

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A pass and its losses."""
        return self.losses(self.through(batch), batch)


def whole(pixels: Tensor) -> Tensor:
    """The mask [B, H, W] of images without padding."""
    return torch.ones(pixels.shape[0], *pixels.shape[2:], dtype=torch.bool, device=pixels.device)
