from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inarch.learning.tasks.boxes import area, coco_to_corners, corners_to_coco, giou, iou, to_centres, to_corners

side = st.floats(-50, 50, allow_nan=False, width=32)
length = st.floats(0, 40, allow_nan=False, width=32)
Corners = tuple[float, float, float, float]


@st.composite
def corners(draw: st.DrawFn) -> Corners:
    x, y = draw(side), draw(side)
    return x, y, x + draw(length), y + draw(length)


def plain(a: Corners, b: Corners) -> tuple[float, float]:
    """IoU and GIoU by their definitions, one number at a time."""
    wide = min(a[2], b[2]) - max(a[0], b[0])
    tall = min(a[3], b[3]) - max(a[1], b[1])
    shared = wide * tall if wide > 0 and tall > 0 else 0.0
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    ratio = shared / union if union > 0 else 0.0
    return ratio, ratio - ((hull - union) / hull if hull > 0 else 0.0)


@given(corners(), corners())
def test_overlaps_are_the_plain_formula(a: Corners, b: Corners) -> None:
    first, second = np.asarray(a), np.asarray(b)
    assert (iou(first, second), giou(first, second)) == pytest.approx(plain(a, b), abs=1e-9)


@given(corners(), corners())
def test_overlaps_are_symmetric_and_bounded(a: Corners, b: Corners) -> None:
    first, second = np.asarray(a), np.asarray(b)
    assert iou(first, second) == iou(second, first)
    assert giou(first, second) == giou(second, first)
    assert 0 <= iou(first, second) <= 1 + 1e-9
    assert -1 - 1e-9 <= giou(first, second) <= iou(first, second) + 1e-9


@given(st.lists(corners(), min_size=1, max_size=5), st.lists(corners(), min_size=1, max_size=5))
def test_all_pairs_by_broadcasting(a: list[Corners], b: list[Corners]) -> None:
    first, second = np.asarray(a)[:, None], np.asarray(b)
    expected = np.asarray([[plain(x, y) for y in b] for x in a])
    np.testing.assert_allclose(iou(first, second), expected[..., 0], atol=1e-9)
    np.testing.assert_allclose(giou(first, second), expected[..., 1], atol=1e-9)


@given(corners())
def test_conversions_go_back(box: Corners) -> None:
    there = np.asarray([[box]])
    np.testing.assert_allclose(to_corners(to_centres(there)), there, atol=1e-9)
    np.testing.assert_allclose(coco_to_corners(corners_to_coco(there)), there, atol=1e-9)


def test_conversions() -> None:
    box = np.asarray([2.0, 3.0, 8.0, 5.0])
    assert to_centres(box).tolist() == [5, 4, 6, 2]
    assert to_corners(np.asarray([5.0, 4.0, 6.0, 2.0])).tolist() == [2, 3, 8, 5]
    assert corners_to_coco(box).tolist() == [2, 3, 6, 2]
    assert coco_to_corners(np.asarray([2.0, 3.0, 6.0, 2.0])).tolist() == [2, 3, 8, 5]


def test_known_overlaps() -> None:
    a = np.asarray([0.0, 0.0, 2.0, 2.0])
    b = np.asarray([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0], [4.0, 0.0, 6.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
    np.testing.assert_allclose(iou(a, b), [1, 1 / 3, 0, 0])
    np.testing.assert_allclose(giou(a, b), [1, 1 / 3, -1 / 3, 0])


def test_empty_boxes_and_corners_out_of_order() -> None:
    point, reverse = np.asarray([1.0, 1.0, 1.0, 1.0]), np.asarray([3.0, 3.0, 1.0, 1.0])
    assert iou(point, point) == 0
    assert giou(point, point) == 0
    assert area(reverse) == 0
    assert iou(reverse, np.asarray([0.0, 0.0, 4.0, 4.0])) == 0


def test_single_precision_stays() -> None:
    boxes = np.asarray([[0, 0, 2, 2]], np.float32)
    assert {f(boxes).dtype for f in (to_corners, to_centres, coco_to_corners, corners_to_coco, area)} == {np.dtype(np.float32)}
    assert iou(boxes, boxes).dtype == giou(boxes, boxes).dtype == np.float32
