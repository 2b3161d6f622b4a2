"""From GLIP's outputs to boxes, outside the graph, in numpy: anchors, decoding, scores, suppression.

Boxes are x1, y1, x2, y2 in pixels of the image that the model was given, both corners inside the box (a box one pixel wide has
x1 = x2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]

STRIDES = (8, 16, 32, 64, 128)
"""Pixels a cell of each level."""

_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
_LARGEST = math.log(1000.0 / 16)


def cell_anchor(stride: int) -> tuple[float, float, float, float]:
    """The anchor of a level's first cell: a square of 8 strides around the cell's middle."""
    middle, half = (stride - 1) / 2, (8 * stride - 1) / 2
    return middle - half, middle - half, middle + half, middle + half


def level_sizes(height: int, width: int, levels: int) -> list[tuple[int, int]]:
    """Rows and columns of each level's map, for an image of height x width pixels (multiples of 32)."""
    sizes = [(height // stride, width // stride) for stride in STRIDES[:3]]
    while len(sizes) < levels:
        rows, columns = sizes[-1]
        sizes.append(((rows + 1) // 2, (columns + 1) // 2))
    return sizes[:levels]


def anchors(height: int, width: int, levels: int) -> list[Floats]:
    """The anchors of each level, [rows * columns, 4], in the order of the model's outputs."""
    result: list[Floats] = []
    for stride, (rows, columns) in zip(STRIDES, level_sizes(height, width, levels), strict=False):
        y, x = np.meshgrid(np.arange(rows) * stride, np.arange(columns) * stride, indexing="ij")
        shift = np.stack((x, y, x, y), -1).reshape(-1, 4)
        result.append(shift + np.asarray(cell_anchor(stride)))
    return result


def decode(regression: Floats, anchor: Floats) -> Floats:
    """Boxes [N, 4] from a regression [N, 4] (centre and logarithm of the size, each against the anchor's) and anchors [N, 4]."""
    size = anchor[:, 2:] - anchor[:, :2] + 1
    centre = (anchor[:, 2:] + anchor[:, :2]) / 2
    moved = regression[:, :2] / _WEIGHTS[:2] * size + centre
    scaled = np.exp(np.minimum(regression[:, 2:] / _WEIGHTS[2:], _LARGEST)) * size
    return np.concatenate((moved - (scaled - 1) / 2, moved + (scaled - 1) / 2), 1)


def suppress(boxes: Floats, scores: Floats, overlap: float) -> npt.NDArray[np.int64]:
    """Greedy non-maximum suppression: indices of the boxes that stay, best first.

    Args:
        boxes: [N, 4].
        scores: [N].
        overlap: a box that overlaps a better one by more than this (intersection over union) goes.
    """
    area = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    order = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(order):
        best, rest = int(order[0]), order[1:]
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[rest, :2])
        high = np.minimum(boxes[best, 2:], boxes[rest, 2:])
        shared = np.clip(high - low + 1, 0, None).prod(1)
        order = rest[shared / (area[best] + area[rest] - shared) <= overlap]
    return np.asarray(kept, np.int64)


@dataclass(frozen=True, eq=False)
class Detections:
    """Boxes of one image, best first: boxes [n, 4], scores [n], labels [n] (index of the phrase)."""

    boxes: Floats
    scores: Floats
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Limits:
    """How many detections stay.

    Attributes:
        score: class scores up to this are dropped.
        overlap: of two boxes of one class.
        per_level: candidates kept a level.
        per_image: detections kept in all.
    """

    score: float = 0.05
    overlap: float = 0.6
    per_level: int = 1000
    per_image: int = 100


DEFAULT_LIMITS = Limits()


def detect(
    logits: Floats,
    boxes: Floats,
    centerness: Floats,
    phrases: Sequence[Sequence[int]],
    size: tuple[int, int],
    levels: int = len(STRIDES),
    limits: Limits = DEFAULT_LIMITS,
    real: tuple[int, int] | None = None,
) -> Detections:
    """Detections of one image.

    A phrase's score in a cell is the mean of its tokens' sigmoids; times the centerness, its root is the detection's score.

    Args:
        logits: [N, T].
        boxes: [N, 4].
        centerness: [N].
        phrases: the tokens of each phrase.
        size: height and width in pixels, multiples of 32, as the model was given.
        levels: of the model's pyramid.
        limits: what stays.
        real: height and width of the image where the rest is padding: no box reaches beyond.
    """
    classes = np.stack([_sigmoid(logits[:, list(tokens)]).mean(1) for tokens in phrases], 1)
    weighed = classes * _sigmoid(centerness)[:, None]
    found: list[tuple[Floats, Floats, npt.NDArray[np.int64]]] = []
    start = 0
    for anchor in anchors(*size, levels):
        part = slice(start, start + len(anchor))
        start += len(anchor)
        cell, label = np.nonzero(classes[part] > limits.score)
        score = weighed[part][cell, label]
        best = np.argsort(-score, kind="stable")[: limits.per_level]
        decoded = decode(boxes[part][cell[best]], anchor[cell[best]])
        edge = np.asarray((real or size)[::-1] * 2) - 1
        found.append((np.clip(decoded, 0, edge), np.sqrt(score[best]), label[best]))
    corners, scores, labels = (np.concatenate([item[i] for item in found]) for i in range(3))
    kept = [where[suppress(corners[where], scores[where], limits.overlap)] for where in _by_label(labels, len(phrases))]
    chosen = np.concatenate(kept) if kept else np.zeros(0, np.int64)
    chosen = chosen[np.argsort(-scores[chosen], kind="stable")][: limits.per_image]
    return Detections(corners[chosen], scores[chosen], labels[chosen])


def _by_label(labels: npt.NDArray[np.int64], count: int) -> list[npt.NDArray[np.int64]]:
    return [np.flatnonzero(labels == label) for label in range(count)]


def _sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-np.clip(x, -80, 80)))
