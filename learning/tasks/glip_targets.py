"""What GLIP's cells are to say: which cell answers for which box, the regression to it, and how central the cell lies in it.

Assignment is ATSS (Zhang et al., CVPR 2020), with one anchor a cell. Boxes are x1, y1, x2, y2 in pixels, both corners inside the
box, as in :mod:`glip_post`. Shapes: B images, M ground truths of each, N cells of all levels, K candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

NEAREST = 9
"""Candidates of each level (published)."""

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""What the regression's four numbers are multiplied by (the released models'); :mod:`glip_post` divides by them."""

LARGEST = math.log(1000.0 / 16)
"""Most that the logarithm of a size may grow by when it is decoded."""

INSIDE = 0.01
"""Pixels by which an anchor's centre must at least lie inside a box."""


def sides(boxes: Tensor) -> Tensor:
    """Width and height [..., 2] of boxes [..., 4]; the last pixel counts."""
    return boxes[..., 2:] - boxes[..., :2] + 1


def middles(boxes: Tensor) -> Tensor:
    """Centres [..., 2] of boxes [..., 4]."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union [...] of boxes [..., 4], broadcast over all but the last axis."""
    low, high = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    shared = (high - low + 1).clamp(min=0).prod(-1)
    return shared / (sides(first).prod(-1) + sides(second).prod(-1) - shared)


def margins(boxes: Tensor, anchors: Tensor) -> Tensor:
    """How far each anchor's centre lies inside a box: from its left, upper, right and lower side, [..., 4]; negative outside."""
    centre = middles(anchors)
    return torch.cat((centre - boxes[..., :2], boxes[..., 2:] - centre), -1)


def centerness(boxes: Tensor, anchors: Tensor) -> Tensor:
    """How central each anchor's centre lies in its box, in [0, 1] (FCOS, Tian et al., ICCV 2019).

    The root of min(left, right) / max(left, right) * min(upper, lower) / max(upper, lower).

    Args:
        boxes: [..., 4].
        anchors: [..., 4], their centres inside the boxes.

    Returns:
        [...].
    """
    inside = torch.unflatten(margins(boxes, anchors), -1, (2, 2))
    return (inside.amin(-2) / inside.amax(-2)).prod(-1).clamp(min=0).sqrt()


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """The regression [..., 4] that leads from anchors [..., 4] to boxes [..., 4]; undoes :func:`decode`."""
    moved = (middles(boxes) - middles(anchors)) / sides(anchors)
    scaled = (sides(boxes) / sides(anchors)).log()
    return torch.cat((moved, scaled), -1) * boxes.new_tensor(WEIGHTS)


def decode(regression: Tensor, anchors: Tensor) -> Tensor:
    """Boxes [..., 4] from a regression [..., 4] and anchors [..., 4]; as :func:`glip_post.decode`, with a gradient."""
    scaled = regression / regression.new_tensor(WEIGHTS)
    size = sides(anchors)
    centre = scaled[..., :2] * size + middles(anchors)
    half = (scaled[..., 2:].clamp(max=LARGEST).exp() * size - 1) / 2
    return torch.cat((centre - half, centre + half), -1)


@torch.no_grad()
def assign(anchors: Sequence[Tensor], boxes: Tensor, mask: Tensor, nearest: int = NEAREST) -> Tensor:
    """The ground truth that each cell answers for, by ATSS.

    A box's candidates are the anchors of each level whose centres are nearest to its own. A candidate is taken where it overlaps
    the box by at least the mean plus the standard deviation of all candidates' overlaps, and its centre lies in the box. An
    anchor that several boxes take goes to the one it overlaps most. Of equals, the first one counts.

    A box without an anchor's centre in it (some below 10 pixels) has no cell; nor has any box in an image of 32 pixels, all of
    which every anchor covers: no overlap is then a deviation above the mean.

    Args:
        anchors: of each level, [n, 4] with their sum N, as :func:`glip_post.anchors` lists them.
        boxes: [B, M, 4]; what stands where there is no box does not matter.
        mask: [B, M] bool, which boxes there are.
        nearest: candidates of a level, as many as it has.

    Returns:
        [B, N] int64, the place in M; -1 for none.
    """
    places = torch.cat(list(anchors))
    count, cells = boxes.shape[:2], len(places)
    if not count[1]:
        return torch.full((count[0], cells), -1, device=boxes.device)
    candidates = _candidates(anchors, middles(boxes), nearest)
    there, wanted = places[candidates], boxes[:, :, None]
    overlap = iou(there, wanted)
    # With one candidate there is no deviation.
    spread = overlap.std(-1, correction=1) if overlap.shape[-1] > 1 else overlap.new_zeros(count)
    enough = overlap >= (overlap.mean(-1) + spread)[..., None]
    taken = enough & (margins(wanted, there).amin(-1) > INSIDE) & mask[..., None]
    of_cell = overlap.new_full((*count, cells), -1.0).scatter(2, candidates, torch.where(taken, overlap, -1.0))
    best = of_cell.argmax(1)
    return torch.where(of_cell.amax(1) >= 0, best, -1)


def _candidates(anchors: Sequence[Tensor], centres: Tensor, nearest: int) -> Tensor:
    """Places in N of the anchors nearest to each centre [B, M, 2], level by level: [B, M, K]."""
    found: list[Tensor] = []
    start = 0
    for level in anchors:
        distance = (centres[:, :, None] - middles(level)).square().sum(-1)
        # A stable sort, not topk: boxes often lie evenly between anchors, and every device must then choose alike.
        found.append(distance.argsort(dim=-1, stable=True)[..., :nearest] + start)
        start += len(level)
    return torch.cat(found, -1)
