"""Boxes in numpy: conversions, and how far two of them overlap.

A box is four numbers along the last axis, in one of three forms: centre (cx, cy, w, h), corners (x1, y1, x2, y2), or COCO's
(x1, y1, w, h). Shapes: the leading axes of two arrays broadcast; ``iou(a[:, None], b)`` compares all pairs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]


def to_corners(boxes: Floats) -> Floats:
    """Corners [..., 4] of boxes [..., 4] given by centre, width and height."""
    half = boxes[..., 2:] / 2
    return np.concatenate((boxes[..., :2] - half, boxes[..., :2] + half), -1)


def to_centres(boxes: Floats) -> Floats:
    """Centre, width and height [..., 4] of boxes [..., 4] given by corners."""
    return np.concatenate(((boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]), -1)


def coco_to_corners(boxes: Floats) -> Floats:
    """Corners [..., 4] of boxes [..., 4] in COCO's form."""
    return np.concatenate((boxes[..., :2], boxes[..., :2] + boxes[..., 2:]), -1)


def corners_to_coco(boxes: Floats) -> Floats:
    """COCO's form [..., 4] of boxes [..., 4] given by corners."""
    return np.concatenate((boxes[..., :2], boxes[..., 2:] - boxes[..., :2]), -1)


def area(boxes: Floats) -> Floats:
    """Areas [...] of boxes [..., 4] given by corners; 0 where the corners are out of order."""
    sides = np.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    return np.asarray(sides[..., 0] * sides[..., 1])


def iou(a: Floats, b: Floats) -> Floats:
    """Intersection over union [...] of boxes [..., 4] given by corners; 0 where both are empty."""
    return _ratio(*_shared_and_union(a, b))


def giou(a: Floats, b: Floats) -> Floats:
    """Generalised IoU [...] in [-1, 1] of boxes [..., 4] given by corners.

    The IoU, less the share of the smallest box around both that neither covers; nothing is taken off where that box is empty.
    """
    shared, union = _shared_and_union(a, b)
    hull = area(np.concatenate((np.minimum(a[..., :2], b[..., :2]), np.maximum(a[..., 2:], b[..., 2:])), -1))
    return _ratio(shared, union) - _ratio(hull - union, hull)


def _shared_and_union(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    shared = area(np.concatenate((np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])), -1))
    return shared, area(a) + area(b) - shared


def _ratio(part: Floats, whole: Floats) -> Floats:
    """part / whole, and 0 where the whole is 0."""
    empty = whole <= 0
    return np.where(empty, 0, part / np.where(empty, 1, whole))
