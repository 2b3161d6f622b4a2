"""What is in a scene of sprites, and its picture. Shapes: N scenes, M places for objects, S pixels a side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from inarch.learning.tasks.coco.images import pillow
from inarch.learning.tasks.scenes.render import Images, backgrounds
from inarch.learning.tasks.scenes.world import SPLITS, Difficulty, Floats, Scenes, Split, place
from inarch.learning.tasks.sprites.package import Picture
from inarch.learning.tasks.sprites.words import HELD_OUT, KNOWN
from inarch.structure.units import Indices

LEVELS: Mapping[str, Difficulty] = {
    "easy": Difficulty((2, 3), textures=1),
    "medium": Difficulty((3, 5), hardness=0.5),
    "hard": Difficulty((4, 6), overlap=0.1, noise=0.04, hardness=0.65),
}
"""Name -> difficulty; what is said there of shapes and colours means nothing here."""

_SIZES = ((0.1, 0.12), (0.16, 0.19))
"""Half of the longer side of small and of large sprites, lowest and highest."""

_SORTS = 4
"""Concepts that a scene draws from: with more, there would rarely be two of one."""

_BRIGHT = (0.25, 0.75)

_CHUNK = 256


@dataclass(frozen=True, eq=False)
class SpriteScenes(Scenes):
    """N scenes of sprites: ``shape`` holds concepts, ``colour`` and ``texture`` are 0; all sizes are whole pixels.

    Attributes:
        half: [N, M, 2] half of each sprite's width and height.
    """

    half: Floats

    @property
    def boxes(self) -> Floats:
        """[N, M, 4] centre, width and height."""
        return np.concatenate((np.stack((self.x, self.y), -1), 2 * self.half), -1)


def draw(pictures: Sequence[Picture], count: int, difficulty: Difficulty, split: Split, side: int, seed: int) -> SpriteScenes:
    """Draw scenes.

    Args:
        pictures: of every concept; only their proportions matter. Another style gives the same scenes in it.
        count: N.
        difficulty: how hard.
        split: ``train`` and ``test`` have no held-out concept; in every scene of ``unseen`` the first object alone has one.
        side: S.
        seed: the same seed gives the same scenes; splits never share any.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    low, high = difficulty.objects
    size = (count, high)
    sorts = np.array(KNOWN)[rng.random((count, len(KNOWN))).argsort(1)[:, :_SORTS]]
    concept = np.take_along_axis(sorts, rng.integers(0, _SORTS, size), 1)
    if split == "unseen":
        concept[:, 0] = rng.choice(np.array(HELD_OUT), count)
    large = rng.integers(0, 2, size)
    bounds = np.array(_SIZES, np.float32)[large]
    radius = (bounds[..., 0] + (bounds[..., 1] - bounds[..., 0]) * rng.random(size, np.float32)).astype(np.float32)
    x, y, placed = place(rng, radius, low, rng.integers(low, high + 1, count), difficulty.overlap)
    pixels = _pixels(pictures, concept, radius, side)
    centre = np.stack((x, y), -1) * side
    corner = np.clip(np.rint(centre - pixels / 2), 0, side - pixels)
    middle = ((corner + pixels / 2) / side).astype(np.float32)
    none = np.zeros_like(concept)
    half = (pixels / 2 / side).astype(np.float32)
    return SpriteScenes(concept, none, large, none, middle[..., 0], middle[..., 1], half.max(-1), placed, half)


def _pixels(pictures: Sequence[Picture], concept: Indices, radius: Floats, side: int) -> Indices:
    """Width and height of sprites in pixels, [N, M, 2]: pictures keep their proportions."""
    shapes = np.array([(picture.shape[1], picture.shape[0]) for picture in pictures], np.float64)
    shapes /= shapes.max(1, keepdims=True)
    return np.maximum(np.rint(shapes[concept] * np.rint(2 * radius * side)[..., None]), 1).astype(np.int64)


def render(scenes: SpriteScenes, pictures: Sequence[Picture], side: int, difficulty: Difficulty, seed: Sequence[int]) -> Images:
    """Scenes as pictures, [N, S, S, 3], on coloured grounds.

    Args:
        scenes: N of them.
        pictures: of every concept.
        side: S, as the scenes were drawn for.
        difficulty: says how noisy grounds are.
        seed: of the grounds.
    """
    rng = np.random.default_rng([*seed, side])
    images = np.empty((len(scenes), side, side, 3), np.uint8)
    sprites: dict[tuple[int, int, int], Floats] = {}
    pixels = np.rint(2 * scenes.half * side).astype(np.int64)
    corners = np.rint(np.stack((scenes.x, scenes.y), -1) * side - pixels / 2).astype(np.int64)
    for start in range(0, len(scenes), _CHUNK):
        stop = min(start + _CHUNK, len(scenes))
        canvas = backgrounds(stop - start, side, difficulty.noise, rng, _BRIGHT)
        for row in range(start, stop):
            for k in range(int(scenes.count[row])):
                key = (int(scenes.shape[row, k]), *pixels[row, k].tolist())
                if key not in sprites:
                    sprites[key] = _resized(pictures[key[0]], key[1], key[2])
                (left, top), sprite = corners[row, k], sprites[key]
                under = canvas[row - start, top : top + key[2], left : left + key[1]]
                under += sprite[..., 3:] * (sprite[..., :3] - under)
        images[start:stop] = np.clip(canvas, 0, 1) * 255 + 0.5
    return images


def _resized(picture: Picture, width: int, height: int) -> Floats:
    """A picture in another size, in [0, 1]; colours do not run into what is not covered."""
    image = pillow()
    resized = image.fromarray(picture).resize((width, height), image.Resampling.BOX)
    return (np.asarray(resized) / 255).astype(np.float32)
