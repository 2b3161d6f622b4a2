"""Anchors, decoding and suppression, against what their definitions say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from inarch.learning.models import build
from inarch.learning.models.glip_post import anchors, cell_anchor, decode, detect, level_sizes, suppress

from tests.learning.tiny import SWIN


def test_anchors_are_the_released_ones() -> None:
    assert cell_anchor(8) == (-28, -28, 35, 35)
    assert cell_anchor(128) == (-448, -448, 575, 575)
    first = anchors(64, 96, 5)
    assert [len(level) for level in first] == [96, 24, 6, 2, 1]
    np.testing.assert_array_equal(first[0][13], np.asarray(cell_anchor(8)) + [8, 8, 8, 8])


def test_levels_have_the_sizes_of_the_models_maps() -> None:
    model = build(SWIN)
    inputs = model.example(1, 96, 160, 6)
    with torch.no_grad():
        cells = model(**inputs)["boxes"].shape[1]
    assert cells == sum(rows * columns for rows, columns in level_sizes(96, 160, SWIN.levels))


def test_nothing_to_regress_leaves_the_anchor() -> None:
    anchor = anchors(32, 32, 3)[0]
    np.testing.assert_allclose(decode(np.zeros_like(anchor), anchor), anchor)


def test_decoding_moves_and_scales() -> None:
    anchor = np.asarray([[0.0, 0.0, 9.0, 19.0]])
    box = decode(np.asarray([[1.0, 2.0, 5 * np.log(2), 0.0]]), anchor)
    np.testing.assert_allclose(box, [[5.5 - 9.5, 13.5 - 9.5, 5.5 + 9.5, 13.5 + 9.5]])


def test_suppression_is_the_greedy_one() -> None:
    rng = np.random.default_rng(0)
    corner, size, scores = rng.uniform(0, 30, (60, 2)), rng.uniform(5, 20, (60, 2)), rng.uniform(size=60)
    boxes = np.concatenate((corner, corner + size), 1)

    def overlap(a: int, b: int) -> float:
        low, high = np.maximum(boxes[a, :2], boxes[b, :2]), np.minimum(boxes[a, 2:], boxes[b, 2:])
        shared = np.prod(np.maximum(high - low + 1, 0))
        areas = [np.prod(boxes[i, 2:] - boxes[i, :2] + 1) for i in (a, b)]
        return float(shared / (sum(areas) - shared))

    kept: list[int] = []
    for box in np.argsort(-scores):
        if all(overlap(int(box), other) <= 0.4 for other in kept):
            kept.append(int(box))
    np.testing.assert_array_equal(suppress(boxes, scores, 0.4), kept)


def test_a_cell_that_answers_becomes_a_detection() -> None:
    anchor = np.concatenate(anchors(64, 64, 3))
    cells = len(anchor)
    logits = np.full((cells, 4), -20.0)
    logits[10, 1:3] = 3.0
    logits[11, 1:3] = 2.0  # almost the same box: suppressed
    logits[70, 3] = 1.0
    found = detect(logits, np.zeros((cells, 4)), np.full(cells, 4.0), [(0,), (1, 2), (3,)], (64, 64), levels=3)
    assert found.labels.tolist() == [1, 2]
    np.testing.assert_allclose(found.boxes[0], np.clip(anchor[10], 0, 63))
    sigmoid = 1 / (1 + np.exp(-np.asarray([3.0, 1.0, 4.0])))
    np.testing.assert_allclose(found.scores, np.sqrt(sigmoid[:2] * sigmoid[2]))


def test_nothing_found_is_nothing() -> None:
    cells = sum(len(level) for level in anchors(64, 64, 3))
    found = detect(np.full((cells, 2), -20.0), np.zeros((cells, 4)), np.zeros(cells), [(0,), (1,)], (64, 64), levels=3)
    assert found.boxes.shape == (0, 4)
    assert len(found.scores) == len(found.labels) == 0
    with pytest.raises(IndexError):
        detect(np.zeros((cells, 2)), np.zeros((cells, 4)), np.zeros(cells), [(5,)], (64, 64), levels=3)
