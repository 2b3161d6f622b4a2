"""Distillation: the dense model's outputs as further targets for the structured one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Distilled(nn.Module):
    """A trainee with a teacher that stands still.

    Adds ``distil``: the divergence of the teacher's token and answer distributions from the student's, and the distance of their
    boxes where the teacher sees an object (ours, after Hinton et al. 2015).

    Args:
        student: a trainee with the model under ``model``.
        teacher: another, trained already.
        weight: of the loss.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, weight: float) -> None:
        super().__init__()
        self.student = student
        self._teacher = [teacher.eval().requires_grad_(False)]
        self.weight = weight

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The student's losses and ``distil``."""
        losses: dict[str, Tensor] = self.student(batch)
        inputs = self._inputs(batch)
        with torch.no_grad():
            wanted = self._teacher[0].get_submodule("model")(**inputs)
        found = self.student.get_submodule("model")(**inputs)
        return losses | {"distil": self.weight * divergence(found, wanted)}

    @staticmethod
    def _inputs(batch: Mapping[str, Tensor]) -> dict[str, Any]:
        image = batch["image"]
        pixels = batch["pixel_values"][image]
        mask = pixels.new_ones(pixels.shape[0], *pixels.shape[2:], dtype=torch.bool)
        return {
            "pixel_values": pixels,
            "pixel_mask": mask,
            "input_ids": batch["input_ids"],
            "attention_mask": batch["attention_mask"],
        }


def divergence(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Tensor:
    """Kullback-Leibler over classes, mean over queries, and L1 of boxes weighted by the teacher's certainty of an object."""
    total = mine["logits"].new_zeros(())
    for name, wanted in theirs.items():
        if name == "logits" or name.startswith("answer"):
            loss = F.kl_div(mine[name].log_softmax(-1), wanted.log_softmax(-1), reduction="none", log_target=True)
            total = total + loss.sum(-1).mean()
    certain = 1 - theirs["logits"].softmax(-1)[..., -1]
    return total + ((mine["boxes"] - theirs["boxes"]).abs().sum(-1) * certain).sum() / certain.sum().clamp(min=1e-3)
