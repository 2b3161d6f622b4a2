"""GLIP's losses: alignment of cells with tokens, boxes, centerness.

Published in Li et al., CVPR 2022: ATSS's losses (Zhang et al., CVPR 2020), in which a focal loss over words stands for the one
over classes. Shapes: B images, M ground truths of each, N cells of all levels, T tokens, P cells that answer for a box.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from inarch.learning.tasks.glip_targets import assign, centerness, decode
from inarch.learning.tasks.mdetr_loss import generalised_iou

ALPHA, GAMMA = 0.25, 2.0
"""Of the focal loss (Lin et al., ICCV 2017)."""

BOX_WEIGHT = 2.0


@dataclass(frozen=True, eq=False)
class Positives:
    """The cells of a batch that answer for a box.

    Attributes:
        row, cell, box: [P] int64, their places in B, N and M.
        anchors: [P, 4].
        boxes: [P, 4], what they are to find.
        centerness: [P].
    """

    row: Tensor
    cell: Tensor
    box: Tensor
    anchors: Tensor
    boxes: Tensor
    centerness: Tensor

    @property
    def totals(self) -> Tensor:
        """What losses are divided by, [2]: P, and the sum of the centerness.

        Several processes divide by the same numbers: sum these over the processes and, where gradients are averaged and not
        summed, divide them by the number of processes.
        """
        return torch.stack((self.centerness.new_tensor(len(self.row)), self.centerness.sum()))


def positives(anchors: Sequence[Tensor], boxes: Tensor, box_mask: Tensor) -> Positives:
    """Assign a batch's boxes; arguments as of :func:`~inarch.learning.tasks.glip_targets.assign`."""
    index = assign(anchors, boxes, box_mask)
    row, cell = (index >= 0).nonzero(as_tuple=True)
    box = index[row, cell]
    places, wanted = torch.cat(list(anchors))[cell], boxes[row, box]
    return Positives(row, cell, box, places, wanted, centerness(wanted, places))


def focal(logits: Tensor, targets: Tensor) -> Tensor:
    """The focal loss of each logit, -a (1 - p)^2 log p, where p is the probability of what is right (Lin et al., ICCV 2017).

    Args:
        logits: [...].
        targets: [...], 0 or 1.

    Returns:
        [...].
    """
    probability = logits.sigmoid()
    wrong = probability + targets - 2 * probability * targets
    weight = (1 - ALPHA) + (2 * ALPHA - 1) * targets
    return weight * wrong**GAMMA * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def glip_loss(
    outputs: Mapping[str, Tensor],
    anchors: Sequence[Tensor],
    boxes: Tensor,
    box_mask: Tensor,
    token_map: Tensor,
    text_mask: Tensor,
    *,
    found: Positives | None = None,
    num_pos: Tensor | float | None = None,
    center_sum: Tensor | float | None = None,
) -> dict[str, Tensor]:
    """The losses of a batch, weighted; their sum is the loss.

    The alignment and the centerness are divided by the number of cells that answer for a box, at least 1 (published). The boxes'
    loss, which each cell's centerness weighs, is divided by the sum of these weights, so that it is their weighted mean (as FCOS
    does it; the papers on ATSS and GLIP do not say).

    Args:
        outputs: ``logits`` [B, N, T], ``boxes`` [B, N, 4], ``centerness`` [B, N], as GLIP gives them.
        anchors: of each level, [n, 4] with their sum N, in the boxes' precision.
        boxes: [B, M, 4] in pixels, as in :mod:`glip_post`.
        box_mask: [B, M] bool, which boxes there are.
        token_map: [B, M, T], not 0 at the tokens that each box is to answer to.
        text_mask: [B, T], not 0 at real tokens; the others are left out.
        found: what :func:`positives` says of these boxes, where it has been asked already.
        num_pos: number of cells to divide by, over all processes; None counts those of this batch.
        center_sum: sum of weights to divide the boxes' loss by, likewise. See :attr:`Positives.totals` for both.

    Returns:
        ``alignment``, ``giou`` and ``centerness``, each a scalar, single precision at least.
    """
    logits, regression, center = (_single(outputs[name]) for name in ("logits", "boxes", "centerness"))
    found = positives(anchors, boxes, box_mask) if found is None else found
    count, weight = found.totals
    cells = torch.as_tensor(count if num_pos is None else num_pos, device=logits.device).clamp(min=1)
    # No cell answers: the sums are 0 as well.
    weights = torch.as_tensor(weight if center_sum is None else center_sum, device=logits.device).clamp(min=1e-6)
    targets = torch.zeros_like(logits)
    targets[found.row, found.cell] = (token_map[found.row, found.box] != 0).to(logits.dtype)
    aligned = focal(logits, targets) * (text_mask != 0).to(logits.dtype)[:, None]
    mine = decode(regression[found.row, found.cell], found.anchors)
    apart = 1 - generalised_iou(_edges(mine), _edges(found.boxes))
    central = found.centerness.to(center.dtype)
    centers = F.binary_cross_entropy_with_logits(center[found.row, found.cell], central, reduction="sum")
    return {
        "alignment": aligned.sum() / cells,
        "giou": BOX_WEIGHT * (apart * central).sum() / weights,
        "centerness": centers / cells,
    }


def divergence(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], text_mask: Tensor, cells: Tensor) -> Tensor:
    """How far a student is from a teacher: Kullback-Leibler of each cell's and token's yes or no and of the centerness, and L1 of
    boxes, the latter two by the teacher's certainty that a cell answers for something (ours).

    Args:
        mine: ``logits`` [B, N, T], ``boxes`` [B, N, 4] and ``centerness`` [B, N].
        theirs: the teacher's.
        text_mask: [B, T], not 0 at real tokens.
        cells: how many cells answer for a box, over all processes: what it is divided by.
    """
    real = (text_mask != 0)[:, None].to(mine["logits"].dtype)
    certain = (theirs["logits"].sigmoid() * real).amax(-1)
    aligned = (_binary(mine["logits"], theirs["logits"]) * real).sum()
    central = (_binary(mine["centerness"], theirs["centerness"]) * certain).sum()
    boxes = ((mine["boxes"] - theirs["boxes"]).abs().sum(-1) * certain).sum()
    return (aligned + central + boxes) / cells.clamp(min=1)


def _binary(mine: Tensor, theirs: Tensor) -> Tensor:
    """Kullback-Leibler of Bernoulli distributions, given by their logits."""
    wanted = theirs.sigmoid()
    cross = F.binary_cross_entropy_with_logits(mine, wanted, reduction="none")
    return cross - F.binary_cross_entropy_with_logits(theirs, wanted, reduction="none")


def _edges(boxes: Tensor) -> Tensor:
    """Where boxes [..., 4] begin and end: the last pixel counts."""
    return torch.cat((boxes[..., :2], boxes[..., 2:] + 1), -1)


def _single(x: Tensor) -> Tensor:
    """Half precision is too coarse for sums over all cells."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
