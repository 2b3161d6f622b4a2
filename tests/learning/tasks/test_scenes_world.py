from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from inarch.learning.tasks.scenes.render import render
from inarch.learning.tasks.scenes.world import ATTRIBUTES, LEVELS, SPLITS, Difficulty, Scenes, draw, held_out, place

NAMES = tuple(LEVELS)


def in_use(scenes: Scenes) -> np.ndarray:
    return np.arange(scenes.shape.shape[1]) < scenes.count[:, None]


@pytest.mark.parametrize("split", SPLITS)
def test_scenes_depend_on_the_seed_alone(split: str) -> None:
    which = SPLITS[[str(one) for one in SPLITS].index(split)]
    first, again, other = (draw(50, LEVELS["medium"], which, seed) for seed in (3, 3, 4))
    assert len(first) == 50
    for field in fields(first):
        assert np.array_equal(getattr(first, field.name), getattr(again, field.name))
    assert not np.array_equal(first.x, other.x)


def test_splits_share_no_scene() -> None:
    drawn = [draw(200, LEVELS["easy"], split, 0) for split in SPLITS]
    rows = [{scene.tobytes() for scene in scenes.boxes} for scenes in drawn]
    assert not rows[0] & rows[1]
    assert not rows[0] & rows[2]
    assert not rows[1] & rows[2]


@pytest.mark.parametrize("name", NAMES)
def test_only_unseen_scenes_have_held_out_combinations(name: str) -> None:
    difficulty = LEVELS[name]
    for split in SPLITS:
        scenes = draw(1000, difficulty, split, 1)
        new = held_out(scenes.shape, scenes.colour, difficulty) & in_use(scenes)
        assert new.any(1).all() if split == "unseen" else not new.any()
    # One colour of each shape is kept, and it is seen with other shapes.
    shapes, colours = np.meshgrid(np.arange(difficulty.shapes), np.arange(difficulty.colours), indexing="ij")
    kept = held_out(shapes, colours, difficulty)
    assert (kept.sum(1) == 1).all()
    assert (kept.sum(0) < difficulty.shapes).all()


@pytest.mark.parametrize("name", NAMES)
def test_every_value_and_every_number_of_objects_occurs(name: str) -> None:
    difficulty = LEVELS[name]
    scenes = draw(2000, difficulty, "train", 2)
    used = in_use(scenes)
    wanted = {"shape": difficulty.shapes, "colour": difficulty.colours, "size": 2, "texture": difficulty.textures}
    for attribute, values in wanted.items():
        share = np.bincount(getattr(scenes, attribute)[used], minlength=values) / used.sum()
        assert len(share) == values
        assert share.min() > 0.5 / values
    low, high = difficulty.objects
    counts = np.bincount(scenes.count, minlength=high + 1)
    assert counts[:low].sum() == 0
    assert counts[low:].min() > 0.2 * len(scenes) / (high - low + 1)
    assert len(counts) == high + 1


@pytest.mark.parametrize("name", NAMES)
def test_objects_lie_in_the_image_and_apart(name: str) -> None:
    difficulty = LEVELS[name]
    scenes = draw(1000, difficulty, "train", 3)
    used = in_use(scenes)
    low, high = scenes.boxes[..., :2] - scenes.boxes[..., 2:] / 2, scenes.boxes[..., :2] + scenes.boxes[..., 2:] / 2
    assert low[used].min() >= -1e-6
    assert high[used].max() <= 1 + 1e-6
    pairs = used[:, :, None] & used[:, None, :] & ~np.eye(used.shape[1], dtype=bool)
    apart = np.maximum(*(np.abs(v[:, :, None] - v[:, None, :]) for v in (scenes.x, scenes.y)))
    reach = scenes.radius[:, :, None] + scenes.radius[:, None, :]
    assert (apart >= reach * (1 - difficulty.overlap))[pairs].all()
    assert ((scenes.radius > 0.12) == (scenes.size == 1))[used].all()


def test_where_all_find_no_place_the_last_are_left_out() -> None:
    radius = np.full((20, 12), 0.17, np.float32)
    x, y, placed = place(np.random.default_rng(0), radius, 3, np.full(20, 12), 0.0)
    assert placed.min() >= 3
    assert placed.max() < 12
    assert x.shape == y.shape == radius.shape


@pytest.mark.parametrize("side", [48, 64, 96])
@pytest.mark.parametrize("shape", range(len(ATTRIBUTES["shape"])), ids=ATTRIBUTES["shape"])
def test_boxes_hold_what_is_painted(shape: int, side: int) -> None:
    flat = Difficulty((1, 1), noise=0.0)
    for size in (0, 1):
        drawn = draw(400, flat, "train", 5)
        rows = np.flatnonzero(drawn.size[:, 0] == size)[:30]
        scenes = drawn.take(rows)
        one = np.ones_like(scenes.shape)
        scenes = replace(scenes, shape=one * shape, colour=one * ATTRIBUTES["colour"].index("white"), texture=one * 0)
        empty = replace(scenes, count=np.zeros_like(scenes.count))
        apart = np.abs(render(scenes, side, flat, 0).astype(int) - render(empty, side, flat, 0)).max(-1)
        painted = apart > 45  # at least a quarter of what white differs by
        for image, (x, y, wide, high) in zip(painted, scenes.boxes[:, 0] * side, strict=True):
            columns, rows_of = np.flatnonzero(image.any(0)), np.flatnonzero(image.any(1))
            found = np.array([columns[0], rows_of[0], columns[-1] + 1, rows_of[-1] + 1])
            assert np.abs(found - (x - wide / 2, y - high / 2, x + wide / 2, y + high / 2)).max() <= 1.5


def test_colours_and_textures_look_different() -> None:
    plain = draw(1, Difficulty((1, 1), noise=0.0), "train", 5)
    one = np.ones_like(plain.shape)
    centre = (int(plain.y[0, 0] * 64), int(plain.x[0, 0] * 64))
    seen = {}
    for colour, name in enumerate(ATTRIBUTES["colour"]):
        image = render(replace(plain, shape=one, colour=one * colour), 64, LEVELS["easy"], 0)[0]
        seen[name] = image[centre].astype(int)
    assert all(np.abs(seen[a] - seen[b]).max() > 30 for a in seen for b in seen if a != b)
    textures = [render(replace(plain, shape=one, texture=one * number), 64, LEVELS["easy"], 0) for number in range(3)]
    assert all(np.abs(textures[a].astype(int) - textures[b]).max() > 60 for a, b in ((0, 1), (0, 2), (1, 2)))
