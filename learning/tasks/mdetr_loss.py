"""MDETR's losses: matching of queries with boxes, soft tokens, boxes, contrastive alignment, answers.

Published in Kamath et al., ICCV 2021, after DETR (Carion et al., ECCV 2020). Shapes: B texts, Q queries, P boxes a text, T
tokens, S token slots.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from inarch.learning.tasks.coco.files import GQA_TYPES

NO_OBJECT = 0.1
"""Weight of a query that matches no box."""

TEMPERATURE = 0.07


def corners(boxes: Tensor) -> Tensor:
    """x1, y1, x2, y2 from centre, width and height; [..., 4]."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat((centre - size / 2, centre + size / 2), -1)


def generalised_iou(first: Tensor, second: Tensor) -> Tensor:
    """GIoU (Rezatofighi et al., CVPR 2019) of boxes given by their corners, broadcast over all but the last axis."""
    low, high = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    area = [(box[..., 2:] - box[..., :2]).clamp(min=0).prod(-1) for box in (first, second)]
    union = area[0] + area[1] - shared
    around = (torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(first[..., :2], second[..., :2])).prod(-1)
    return shared / union.clamp(min=1e-7) - (around - union) / around.clamp(min=1e-7)


def token_targets(spans: Tensor, slots: int) -> Tensor:
    """The distribution over S + 1 slots that each box's query is to give: even over its tokens.

    The released code collates the same map into booleans, so that its targets are 0 and 1; even ones keep the loss's scale free
    of a phrase's length.

    Args:
        spans: [B, P, T] bool.
        slots: S.
    """
    wide = F.pad(spans.to(torch.float32), (0, slots + 1 - spans.shape[-1]))
    return wide / wide.sum(-1, keepdim=True).clamp(min=1)


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, targets: Tensor, wanted: Tensor, real: Tensor) -> Tensor:
    """The query of every box, by the cheapest assignment: token cost + 5 L1 - 2 GIoU (weights as published).

    Args:
        logits: [B, Q, S + 1].
        boxes: [B, Q, 4].
        targets: [B, P, S + 1].
        wanted: [B, P, 4].
        real: [B, P] bool, which boxes there are.

    Returns:
        [B, P] int64; 0 where there is no box.
    """
    token = -logits.softmax(-1) @ targets.transpose(1, 2)
    distance = torch.cdist(boxes, wanted, p=1)
    overlap = generalised_iou(corners(boxes)[:, :, None], corners(wanted)[:, None])
    # Whatever NaN is matched with, the loss is NaN, which the trainer refuses; the assignment itself takes none.
    cost = (token + 5 * distance - 2 * overlap).nan_to_num(nan=1e6).cpu().numpy()
    counts = real.sum(1).tolist()
    result = np.zeros(tuple(real.shape), np.int64)
    for row, count in enumerate(counts):
        if count == 1:
            result[row, 0] = cost[row, :, 0].argmin()
        elif count:
            queries, places = linear_sum_assignment(cost[row, :, :count])
            result[row, places] = queries
    return torch.from_numpy(result).to(logits.device)


def layer_losses(outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor], objects: Tensor) -> dict[str, Tensor]:
    """The losses of one decoder layer.

    Args:
        outputs: ``logits`` [B, Q, S + 1], ``boxes`` [B, Q, 4]; with ``queries`` [B, Q, K] and ``tokens`` [B, T, K] also
            alignment.
        batch: ``boxes`` [B, P, 4], real ones first; ``box_mask`` [B, P] bool; ``spans`` [B, P, T] bool; ``attention_mask``.
        objects: number of boxes to divide by, over all processes.

    Returns:
        ``tokens``, ``l1``, ``giou`` and, where there is a contrastive head, ``contrast``, weighted as published.
    """
    logits, boxes = outputs["logits"], outputs["boxes"]
    real, wanted = batch["box_mask"], batch["boxes"]
    targets = token_targets(batch["spans"], logits.shape[-1] - 1).to(logits.dtype)
    chosen = match(logits, boxes, targets, wanted, real)
    # Nothing matches them: the target is the last class, at a tenth of the weight.
    distribution = F.one_hot(torch.full_like(chosen[:, :1], logits.shape[-1] - 1).expand(logits.shape[:2]), logits.shape[-1])
    distribution = distribution.to(logits.dtype)
    weight = torch.full(logits.shape[:2], NO_OBJECT, dtype=logits.dtype, device=logits.device)
    row, place = real.nonzero(as_tuple=True)
    query = chosen[row, place]
    distribution[row, query] = targets[row, place]
    weight[row, query] = 1.0
    entropy = -(distribution * logits.log_softmax(-1)).sum(-1)
    mine, theirs = boxes[row, query], wanted[row, place]
    losses = {
        "tokens": (entropy * weight).sum() / objects,
        "l1": 5 * (mine - theirs).abs().sum() / objects,
        "giou": 2 * (1 - generalised_iou(corners(mine), corners(theirs))).sum() / objects,
    }
    if "queries" in outputs:
        positive = torch.zeros(*logits.shape[:2], batch["spans"].shape[-1], dtype=torch.bool, device=logits.device)
        positive[row, query] = batch["spans"][row, place]
        losses["contrast"] = contrast(outputs["queries"], outputs["tokens"], positive, batch["attention_mask"] != 0) / objects
    return losses


def answer_loss(said: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
    """Mean negative log likelihood of the answers: of one head's, or of a question's type and of its answer among that type's.

    Published are a mean for each type's head; likelihoods add up to the same however a batch's types are mixed, and over several
    processes (ours).

    Args:
        said: a decoder layer's answers, [B, classes] each; ``answer_type`` and ``answer_obj`` and so on, or one of any name.
        batch: ``answers`` [B], classes of the head in question, -1 where nothing was asked; for types also ``answer_types`` [B].
    """
    wanted = batch["answers"]
    if "answer_types" not in batch:
        return F.cross_entropy(next(iter(said.values())), wanted, ignore_index=-1)
    loss = F.cross_entropy(said["answer_type"], batch["answer_types"])
    return loss + sum(
        (F.cross_entropy(said[name], wanted * mine, reduction="none") * mine).mean() for name, mine in _heads_of_types(batch)
    )


def answer_divergence(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
    """Kullback-Leibler of answers from a teacher's, of what :func:`answer_loss` asks; arguments alike. Mean over B."""
    if "answer_types" not in batch:
        name = next(name for name in mine if name.startswith("answer"))
        return (divergence(mine[name], theirs[name]) * (batch["answers"] >= 0)).mean()
    total = divergence(mine["answer_type"], theirs["answer_type"]).mean()
    return total + sum((divergence(mine[name], theirs[name]) * asked).mean() for name, asked in _heads_of_types(batch))


def _heads_of_types(batch: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Every type's output, and which questions [B] are of that type."""
    return [(f"answer_{kind}", batch["answer_types"] == number) for number, kind in enumerate(GQA_TYPES)]


def divergence(mine: Tensor, theirs: Tensor) -> Tensor:
    """Kullback-Leibler divergence of distributions [..., S], given by their logits, from a teacher's; [...]."""
    return F.kl_div(mine.log_softmax(-1), theirs.log_softmax(-1), reduction="none", log_target=True).sum(-1)


def contrast(queries: Tensor, tokens: Tensor, positive: Tensor, real: Tensor) -> Tensor:
    """Contrastive alignment, both ways, summed over the batch (published; temperature 0.07).

    Args:
        queries: [B, Q, K] of length 1.
        tokens: [B, T, K] of length 1.
        positive: [B, Q, T] bool, which belong together.
        real: [B, T] bool.
    """
    similar = queries @ tokens.transpose(1, 2) / TEMPERATURE
    similar = similar.masked_fill(~real[:, None, :], -1e4)
    total = similar.new_zeros(())
    for axis in (2, 1):
        pairs = positive.sum(axis)
        pull = (similar * positive).sum(axis) / pairs.clamp(min=1)
        total = total + ((similar.logsumexp(axis) - pull) * (pairs > 0)).sum()
    return total / 2
