"""Distillation: the dense model's outputs as further targets for the structured one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inarch.learning.tasks.trainee import Trainee


class Distilled(nn.Module):
    """A trainee with a teacher that stands still.

    Adds ``distil``: the divergence of the teacher's token and answer distributions from the student's, and the distance of their
    boxes where the teacher sees an object (ours, after Hinton et al. 2015).

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
        mine = self.student.outputs(passed)
        with torch.autocast(batch["boxes"].device.type, enabled=False):
            apart = of_regions(mine, theirs, batch["attention_mask"]) if "centerness" in mine else divergence(mine, theirs)
        return self.student.losses(passed, batch) | {"distil": self.weight * apart}


def divergence(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Tensor:
    """MDETR's: Kullback-Leibler over classes, mean over queries, and L1 of boxes by the teacher's certainty of an object."""
    total = mine["logits"].new_zeros(())
    for name, wanted in theirs.items():
        if name == "logits" or name.startswith("answer"):
            loss = F.kl_div(mine[name].log_softmax(-1), wanted.log_softmax(-1), reduction="none", log_target=True)
            total = total + loss.sum(-1).mean()
    certain = 1 - theirs["logits"].softmax(-1)[..., -1]
    return total + ((mine["boxes"] - theirs["boxes"]).abs().sum(-1) * certain).sum() / certain.sum().clamp(min=1e-3)


def of_regions(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], text_mask: Tensor) -> Tensor:
    """GLIP's: Kullback-Leibler of each cell's and token's yes or no, and L1 of boxes, both divided by the teacher's certainty.

    Args:
        mine: ``logits`` [B, N, T], ``boxes`` [B, N, 4] and ``centerness`` [B, N].
        theirs: the teacher's.
        text_mask: [B, T], not 0 at real tokens.
    """
    real = (text_mask != 0)[:, None].to(mine["logits"].dtype)
    certain = (theirs["logits"].sigmoid() * real).amax(-1)
    sure = certain.sum().clamp(min=1e-3)
    apart = (_binary(mine["logits"], theirs["logits"]) * real).sum() / sure
    central = (_binary(mine["centerness"], theirs["centerness"]) * certain).sum() / sure
    return apart + central + ((mine["boxes"] - theirs["boxes"]).abs().sum(-1) * certain).sum() / sure


def _binary(mine: Tensor, theirs: Tensor) -> Tensor:
    """Kullback-Leibler of Bernoulli distributions, given by their logits."""
    wanted = theirs.sigmoid()
    cross = F.binary_cross_entropy_with_logits(mine, wanted, reduction="none")
    return cross - F.binary_cross_entropy_with_logits(theirs, wanted, reduction="none")
