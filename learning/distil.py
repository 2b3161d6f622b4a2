"""Distillation: the dense model's outputs as further targets for the structured one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from inarch.learning.tasks.trainee import Trainee


class Distilled(nn.Module):
    """A trainee with a teacher that stands still.

    Adds ``distil``: how far the student's outputs are from the teacher's, as the trainee measures it, of what the batch has
    targets for (ours, after Hinton et al. 2015): other heads were taught nothing.

    Args:
        student: a trainee.
        teacher: another of the same model, trained already; it is on the student's device from the start.
        weight: of the loss.
    """

    def __init__(self, student: Trainee, teacher: Trainee, weight: float) -> None:
        super().__init__()
        self.student = student
        self._teacher = [teacher.eval().requires_grad_(False)]
        self.weight = weight

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The student's losses and ``distil``."""
        teacher = self._teacher[0]
        with torch.no_grad():
            theirs = teacher.outputs(teacher.through(batch))
        passed = self.student.through(batch)
        with torch.autocast(batch["image"].device.type, enabled=False):
            apart = self.student.apart(self.student.outputs(passed), theirs, batch)
        return self.student.losses(passed, batch) | {"distil": self.weight * apart}
