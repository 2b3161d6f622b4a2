"""What is trained: a model together with its losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn


class Trainee(nn.Module, ABC):
    """A model under the name ``model``; called with a batch, it gives the losses by name, weighted.

    A pass through the model and what is made of it are apart, so that a student, which wants both the losses and the outputs,
    pays for one pass. What a pass leaves is the trainee's own affair.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._teacher: tuple[Trainee, float] | None = None  # in a tuple, it is no part of this module

    def taught_by(self, teacher: Trainee, weight: float) -> Self:
        """Learn from a teacher too, which stands still: from now on there is one more loss, ``distil``.

        It is how far the outputs are from the teacher's, as :meth:`apart` measures it, of what the batch has targets for (ours,
        after Hinton et al. 2015): other heads of the teacher's were taught nothing.

        Args:
            teacher: another of the same model, trained already, on the same device.
            weight: of the loss.
        """
        self._teacher = (teacher.eval().requires_grad_(False), weight)
        return self

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
        passed = self.through(batch)
        losses = self.losses(passed, batch)
        if self._teacher is not None:
            teacher, weight = self._teacher
            with torch.no_grad():
                theirs = teacher.outputs(teacher.through(batch))
            with torch.autocast(batch["image"].device.type, enabled=False):
                losses["distil"] = weight * self.apart(self.outputs(passed), theirs, batch)
        return losses


def whole(pixels: Tensor) -> Tensor:
    """The mask [B, H, W] of images without padding."""
    return torch.ones(pixels.shape[0], *pixels.shape[2:], dtype=torch.bool, device=pixels.device)
