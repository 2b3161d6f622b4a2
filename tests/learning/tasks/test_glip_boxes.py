"""Boxes of a batch of GLIP's outputs, against the ones of each sample by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inarch.learning.models.glip_post import DEFAULT_LIMITS, Detections, Limits, anchors, decode, detect
from inarch.learning.tasks.boxes import iou, to_corners
from inarch.learning.tasks.glip_boxes import detect_batch, ground, padded, to_pixels, to_relative

SIZE, LEVELS, TOKENS = (64, 96), 4, 5
CELLS = sum(map(len, anchors(*SIZE, LEVELS)))


def outputs(seed: int, samples: int) -> dict[str, npt.NDArray[Any]]:
    rng = np.random.default_rng(seed)
    shapes = {"logits": (samples, CELLS, TOKENS), "boxes": (samples, CELLS, 4), "centerness": (samples, CELLS)}
    return {name: (3 * rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}


def alone(out: dict[str, npt.NDArray[Any]], row: int, phrases: list[list[int]], limits: Limits = DEFAULT_LIMITS) -> Detections:
    return detect(out["logits"][row], out["boxes"][row], out["centerness"][row], phrases, SIZE, LEVELS, limits)


def test_relative_boxes_count_the_last_pixel() -> None:
    whole = np.asarray([[0.0, 0.0, 95.0, 63.0], [0.0, 32.0, 47.0, 63.0]])
    wanted = [[0.5, 0.5, 1, 1], [0.25, 0.75, 0.5, 0.5]]
    np.testing.assert_allclose(to_relative(whole, SIZE), wanted)
    np.testing.assert_allclose(to_pixels(np.asarray(wanted), SIZE), whole)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 2, 6, CELLS + 3]), st.sampled_from([0.1, 0.6]))
def test_a_batch_is_grounded_as_its_samples_are_detected(seed: int, top: int, overlap: float) -> None:
    out = outputs(seed, 3)
    mask = np.random.default_rng(seed).uniform(size=(3, TOKENS)) < 0.5
    mask[:, seed % TOKENS] = True
    boxes, scores = ground(out, mask, SIZE, LEVELS, top, overlap)
    assert boxes.shape == (3, top, 4)
    assert scores.shape == (3, top)
    limits = Limits(score=-1, overlap=overlap, per_level=CELLS, per_image=top)
    for row in range(3):
        one = alone(out, row, [np.flatnonzero(mask[row]).tolist()], limits)
        count = len(one.scores)
        np.testing.assert_allclose(scores[row, :count], one.scores, rtol=1e-5)
        np.testing.assert_allclose(to_pixels(boxes[row, :count], SIZE), one.boxes, atol=1e-4)
        assert not boxes[row, count:].any()
        assert not scores[row, count:].any()


def test_the_best_cell_of_the_named_token_wins() -> None:
    out = {"logits": np.full((2, CELLS, TOKENS), -9.0), "boxes": np.zeros((2, CELLS, 4)), "centerness": np.zeros((2, CELLS))}
    out["logits"][0, 40, 2] = out["logits"][1, 17, 3] = 5
    out["logits"][0, 60, 1] = 8
    mask = np.zeros((2, TOKENS), np.bool_)
    mask[0, 2] = mask[1, 3] = True
    boxes, scores = ground(out, mask, SIZE, LEVELS)
    place = np.concatenate(anchors(*SIZE, LEVELS))[[40, 17]]
    wanted = np.clip(decode(np.zeros((2, 4)), place), 0, [95, 63, 95, 63])
    np.testing.assert_allclose(to_pixels(boxes[:, 0], SIZE), wanted)
    np.testing.assert_allclose(scores[:, 0], np.sqrt(0.5 / (1 + np.exp(-5))))


def test_no_token_scores_nothing() -> None:
    boxes, scores = ground(outputs(0, 1), np.zeros((1, TOKENS), np.bool_), SIZE, LEVELS, 3)
    assert not scores.any()
    assert np.isfinite(boxes).all()


def test_kept_boxes_are_apart() -> None:
    boxes, scores = ground(outputs(3, 4), np.ones((4, TOKENS), np.bool_), SIZE, LEVELS, 10, 0.3)
    corners = to_corners(boxes)
    overlaps = iou(corners[:, :, None], corners[:, None])
    overlaps[:, range(10), range(10)] = 0
    assert overlaps.max() <= 0.3 + 1e-9
    assert (np.diff(scores, axis=1) <= 0).all()


@pytest.mark.parametrize("keep", [2, 200])
def test_classes_of_a_batch_are_those_of_its_samples(keep: int) -> None:
    out, phrases = outputs(5, 3), [[0], [1, 2], [4]]
    found = detect_batch(out, phrases, SIZE, LEVELS)
    arrays = padded(found, SIZE, keep)
    assert {name: value.shape for name, value in arrays.items()} == {
        "boxes": (3, keep, 4),
        "scores": (3, keep),
        "labels": (3, keep),
    }
    for row in range(3):
        one = alone(out, row, phrases)
        np.testing.assert_array_equal(found[row].boxes, one.boxes)
        count = min(keep, len(one.scores))
        assert count > 1
        np.testing.assert_allclose(to_pixels(arrays["boxes"][row, :count], SIZE), one.boxes[:count], atol=1e-9)
        np.testing.assert_array_equal(arrays["scores"][row, :count], one.scores[:count])
        np.testing.assert_array_equal(arrays["labels"][row, :count], one.labels[:count])
        assert (arrays["labels"][row, count:] == -1).all()
        assert not arrays["scores"][row, count:].any()


def test_no_box_reaches_into_padding() -> None:
    out = outputs(5, 2)
    mask = np.ones((2, TOKENS), np.bool_)
    real = [(40, 50), SIZE]
    boxes, scores = ground(out, mask, SIZE, LEVELS, 10, real=real)
    limits = Limits(score=-1, overlap=0.6, per_level=CELLS, per_image=10)
    phrases = [list(range(TOKENS))]
    for row, (height, width) in enumerate(real):
        one = detect(
            out["logits"][row], out["boxes"][row], out["centerness"][row], phrases, SIZE, LEVELS, limits, (height, width)
        )
        assert (one.boxes <= np.asarray((width, height, width, height)) - 1).all()
        np.testing.assert_allclose(scores[row, : len(one.scores)], one.scores, rtol=1e-5)
        np.testing.assert_allclose(to_pixels(boxes[row, : len(one.scores)], SIZE), one.boxes, atol=1e-4)
    whole, _ = ground(out, mask, SIZE, LEVELS, 10)
    assert (whole[1] == boxes[1]).all()
    assert (to_pixels(whole[0], SIZE)[:, 2:] > (49, 39)).any()
