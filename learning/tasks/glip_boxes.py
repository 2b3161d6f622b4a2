"""From GLIP's outputs to the boxes of a whole batch, in numpy: the one that an expression refers to, and those of classes.

Inside the model's world a box is x1, y1, x2, y2 in pixels, both corners inside the box, as in :mod:`glip_post`; what leaves it is
centre, width and height relative to the image. Shapes: B samples, N cells of all levels, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from inarch.learning.models.glip_post import DEFAULT_LIMITS, STRIDES, Detections, Limits, anchors, decode, detect, level_sizes
from inarch.learning.tasks.boxes import Floats, iou, to_centres, to_corners
from inarch.runtime.accuracy import Arrays
from inarch.structure.errors import RuntimeFailure

_LAST = np.asarray((0.0, 0.0, 1.0, 1.0))
"""The pixel that a box's last corner lies in counts."""


def to_relative(boxes: Floats, size: tuple[int, int]) -> Floats:
    """Centre, width and height [..., 4] relative to an image, of boxes [..., 4] in pixels; ``size`` is its height and width."""
    return np.asarray(to_centres(boxes + _LAST) / _scale(size))


def to_pixels(boxes: Floats, size: tuple[int, int]) -> Floats:
    """Undoes :func:`to_relative`: what ground truths become for the loss."""
    return np.asarray(to_corners(boxes * _scale(size)) - _LAST)


def levels_of(cells: int, height: int, width: int) -> int:
    """How many feature maps a GLIP has that gives so many cells for an image of this size.

    Raises:
        RuntimeFailure: no GLIP gives so many.
    """
    for levels in range(1, len(STRIDES) + 1):
        if sum(rows * columns for rows, columns in level_sizes(height, width, levels)) == cells:
            return levels
    raise RuntimeFailure(f"the model gives {cells} cells for an image of {width} x {height} pixels, and no GLIP does")


def ground(
    outputs: Arrays,
    tokens_mask: npt.NDArray[np.bool_],
    image_size: tuple[int, int],
    levels: int,
    top: int = 1,
    overlap: float = DEFAULT_LIMITS.overlap,
    real: Sequence[tuple[int, int]] | None = None,
) -> tuple[Floats, Floats]:
    """The boxes that answer best to some tokens of each sample's text.

    A cell's score is the root of the mean of its tokens' sigmoids times its centerness, as in :func:`glip_post.detect`, but no
    cell is too poor to be chosen. All samples are suppressed at once, one kept box at a time.

    Args:
        outputs: ``logits`` [B, N, T], ``boxes`` [B, N, 4], ``centerness`` [B, N].
        tokens_mask: [B, T], which tokens count.
        image_size: height and width in pixels, multiples of 32, as the model was given.
        levels: of the model's pyramid.
        top: K, boxes of each sample.
        overlap: a box that overlaps a better one by more than this (intersection over union) goes.
        real: height and width of each sample's image where the rest is padding: no box reaches beyond.

    Returns:
        Boxes [B, K, 4] (centre, width, height; relative to the image) and their scores [B, K], best first. Where suppression
        leaves fewer than K, the rest is 0.
    """
    regression = outputs["boxes"]
    samples, cells = regression.shape[:2]
    score = _score(outputs["logits"], outputs["centerness"], tokens_mask)
    places = np.concatenate(anchors(*image_size, levels))
    edges = np.asarray([size[::-1] * 2 for size in real or [image_size] * samples]) - 1
    corners = decode(regression.reshape(-1, 4), np.tile(places, (samples, 1))).reshape(samples, cells, 4)
    pixels = np.clip(corners, 0, edges[:, None])
    boxes, scores = np.zeros((samples, top, 4)), np.zeros((samples, top))
    rows, left = np.arange(samples), score.copy()
    for rank in range(min(top, cells)):
        best = left.argmax(1)
        real = left[rows, best] >= 0
        chosen = pixels[rows, best]
        boxes[real, rank] = to_relative(chosen[real], image_size)
        scores[real, rank] = score[rows, best][real]
        if rank + 1 < top:
            left[iou(pixels + _LAST, chosen[:, None] + _LAST) > overlap] = -1
            left[rows, best] = -1
    return boxes, scores


def detect_batch(
    outputs: Arrays,
    phrases: Sequence[Sequence[int]],
    image_size: tuple[int, int],
    levels: int,
    limits: Limits = DEFAULT_LIMITS,
) -> list[Detections]:
    """Each sample's detections of some classes, in pixels; see :func:`glip_post.detect` for the arguments.

    Args:
        outputs: as of :func:`ground`.
        phrases: the tokens of each class, the same in every sample's text.
        image_size: height and width in pixels.
        levels: of the model's pyramid.
        limits: what stays.
    """
    samples = zip(outputs["logits"], outputs["boxes"], outputs["centerness"], strict=True)
    return [detect(*sample, phrases, image_size, levels, limits) for sample in samples]


def padded(found: Sequence[Detections], image_size: tuple[int, int], keep: int) -> dict[str, npt.NDArray[Any]]:
    """Detections as arrays of one width.

    Args:
        found: of each sample, best first.
        image_size: height and width in pixels.
        keep: K, how many of each.

    Returns:
        ``boxes`` [B, K, 4] (centre, width, height; relative), ``scores`` [B, K] and ``labels`` [B, K] int64, -1 where there is
        none.
    """
    boxes, scores = np.zeros((len(found), keep, 4)), np.zeros((len(found), keep))
    labels = np.full((len(found), keep), -1, np.int64)
    for row, item in enumerate(found):
        count = min(keep, len(item.scores))
        boxes[row, :count] = to_relative(item.boxes[:count], image_size)
        scores[row, :count], labels[row, :count] = item.scores[:count], item.labels[:count]
    return {"boxes": boxes, "scores": scores, "labels": labels}


def _score(logits: Floats, centerness: Floats, tokens_mask: npt.NDArray[np.bool_]) -> Floats:
    """Root of the mean of tokens' sigmoids times the centerness, [B, N]; 0 where no token counts."""
    weight = tokens_mask / np.maximum(tokens_mask.sum(1, keepdims=True), 1)
    aligned = (_sigmoid(logits) @ weight[:, :, None])[..., 0]
    return np.asarray(np.sqrt(aligned * _sigmoid(centerness)))


def _scale(size: tuple[int, int]) -> Floats:
    height, width = size
    return np.asarray((width, height, width, height), np.float64)


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -80, 80))))
