"""Which cells answer for which boxes, against a plain loop; and boxes to regressions and back."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from inarch.learning.models import glip_post
from inarch.learning.tasks.glip_targets import assign, centerness, decode, encode, iou

Box = tuple[float, ...]


def anchors(height: int, width: int, levels: int) -> list[Tensor]:
    return [torch.from_numpy(level) for level in glip_post.anchors(height, width, levels)]


def overlap(a: Box, b: Box) -> float:
    wide = min(a[2], b[2]) - max(a[0], b[0]) + 1
    high = min(a[3], b[3]) - max(a[1], b[1]) + 1
    shared = max(wide, 0) * max(high, 0)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return shared / (sum(areas) - shared)


def slow(levels: list[list[Box]], boxes: list[Box], nearest: int) -> list[int]:
    """One image, one box and one anchor at a time."""
    every = [anchor for level in levels for anchor in level]
    owner, best = [-1] * len(every), [0.0] * len(every)
    for number, box in enumerate(boxes):
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        candidates: list[int] = []
        start = 0
        for level in levels:
            away = [((a[0] + a[2]) / 2 - x) ** 2 + ((a[1] + a[3]) / 2 - y) ** 2 for a in level]
            candidates += [start + i for i in sorted(range(len(level)), key=away.__getitem__)[:nearest]]
            start += len(level)
        overlaps = [overlap(every[i], box) for i in candidates]
        threshold = statistics.fmean(overlaps) + (statistics.stdev(overlaps) if len(overlaps) > 1 else 0)
        # Two ways of adding up need not agree on what lies on the threshold itself.
        assume(all(abs(value - threshold) > 1e-9 for value in overlaps))
        for i, value in zip(candidates, overlaps, strict=True):
            a = every[i]
            middle_x, middle_y = (a[0] + a[2]) / 2, (a[1] + a[3]) / 2
            inside = min(middle_x - box[0], box[2] - middle_x, middle_y - box[1], box[3] - middle_y) > 0.01
            assume(owner[i] < 0 or value == best[i] or abs(value - best[i]) > 1e-9)
            if inside and value >= threshold and (owner[i] < 0 or value > best[i]):
                owner[i], best[i] = number, value
    return owner


@st.composite
def scenes(draw: st.DrawFn) -> tuple[tuple[int, int, int], list[list[Box]]]:
    """Height, width and levels, and a few boxes of each of a few images; boxes on half pixels, so that distances often tie."""
    height, width = draw(st.sampled_from([32, 64, 96])), draw(st.sampled_from([32, 64]))
    images = []
    for _ in range(draw(st.integers(1, 3))):
        boxes: list[Box] = []
        for _ in range(draw(st.integers(0, 4))):
            x, y = draw(st.integers(0, 2 * width - 2)) / 2, draw(st.integers(0, 2 * height - 2)) / 2
            boxes.append((x, y, x + draw(st.integers(0, 2 * width)) / 2, y + draw(st.integers(0, 2 * height)) / 2))
        images.append(boxes)
    return (height, width, draw(st.integers(3, 5))), images


@settings(max_examples=150, deadline=None)
@given(scenes(), st.sampled_from([1, 4, 9]))
def test_assignment_is_the_plain_loops(scene: tuple[tuple[int, int, int], list[list[Box]]], nearest: int) -> None:
    size, images = scene
    levels = anchors(*size)
    slots = max(map(len, images))
    # What stands in an empty place must not count: here boxes that would be taken.
    boxes = torch.tensor([10.0, 10.0, 30.0, 30.0], dtype=torch.float64).repeat(len(images), slots, 1)
    mask = torch.zeros(len(images), slots, dtype=torch.bool)
    for row, some in enumerate(images):
        if some:
            boxes[row, : len(some)] = torch.tensor(some, dtype=torch.float64)
            mask[row, : len(some)] = True
    plain = [[tuple(anchor) for anchor in level.tolist()] for level in levels]
    wanted = [slow(plain, some, nearest) for some in images]
    assert assign(levels, boxes, mask, nearest).tolist() == wanted


def test_one_anchor_alone_has_no_spread() -> None:
    anchor = torch.tensor([[0.0, 0.0, 63.0, 63.0]])
    boxes = torch.tensor([[[20.0, 20.0, 40.0, 40.0], [40.0, 40.0, 60.0, 60.0]]])
    assert assign([anchor], boxes, torch.ones(1, 2, dtype=torch.bool)).tolist() == [[0]]


@pytest.mark.parametrize("slots", [0, 3])
def test_no_boxes_are_nobodys(slots: int) -> None:
    boxes = torch.full((2, slots, 4), math.nan)
    index = assign(anchors(64, 64, 4), boxes, torch.zeros(2, slots, dtype=torch.bool))
    assert index.dtype == torch.int64
    assert index.tolist() == [[-1] * 85] * 2


def test_in_32_pixels_no_cell_answers() -> None:
    """A limit of the published rule: all anchors cover the image, and nine equal overlaps are never far above the mean."""
    boxes = random_boxes(6, 16, 1) / 4
    assert bool((assign(anchors(32, 32, 4), boxes, torch.ones(16, 1, dtype=torch.bool)) == -1).all())


def test_every_box_on_a_centre_is_found() -> None:
    """In an image of 64 pixels, objects of 12 and more cover an anchor's centre, and some cell answers for each."""
    rng = torch.Generator().manual_seed(0)
    low = torch.randint(0, 50, (64, 1, 2), generator=rng).double()
    boxes = torch.cat((low, low + torch.randint(12, 14, (64, 1, 2), generator=rng)), -1)
    index = assign(anchors(64, 64, 4), boxes, torch.ones(64, 1, dtype=torch.bool))
    assert bool((index == 0).any(1).all())


def random_boxes(seed: int, *shape: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    low = 60 * torch.rand(*shape, 2, generator=rng, dtype=torch.float64)
    return torch.cat((low, low + 0.5 + 40 * torch.rand(*shape, 2, generator=rng, dtype=torch.float64)), -1)


def test_overlaps_are_the_plain_ones() -> None:
    first, second = random_boxes(1, 12), random_boxes(2, 15)
    wanted = [[overlap(tuple(a), tuple(b)) for b in second.tolist()] for a in first.tolist()]
    np.testing.assert_allclose(iou(first[:, None], second), wanted)


def test_encoding_and_decoding_undo_each_other() -> None:
    places = torch.cat(anchors(64, 96, 4))
    boxes = random_boxes(3, 2, len(places))
    torch.testing.assert_close(decode(encode(boxes, places), places), boxes)
    regression = torch.randn(2, len(places), 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(encode(decode(regression, places), places), regression)


def test_decoding_is_the_deployed_one() -> None:
    places = torch.cat(anchors(64, 64, 4))
    regression = 12 * torch.randn(len(places), 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    assert bool((regression[:, 2:] / 5 > math.log(1000 / 16)).any()), "the bound on sizes is not reached"
    torch.testing.assert_close(decode(regression, places).numpy(), glip_post.decode(regression.numpy(), places.numpy()))
    assert encode(places, places).abs().max() == 0


@settings(deadline=None)
@given(*[st.floats(0.05, 100)] * 4)
def test_centerness_is_the_published_formula(left: float, upper: float, right: float, lower: float) -> None:
    anchor = torch.tensor([-4.0, -1.0, 10.0, 9.0], dtype=torch.float64)
    box = torch.tensor([3 - left, 4 - upper, 3 + right, 4 + lower], dtype=torch.float64)
    wanted = math.sqrt(min(left, right) / max(left, right) * min(upper, lower) / max(upper, lower))
    assert float(centerness(box, anchor)) == pytest.approx(wanted, rel=1e-6)
