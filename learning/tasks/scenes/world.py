"""What is in a scene: objects with attributes and places, drawn at random under a difficulty. Vectorised over scenes.

Shapes: N scenes, M places for objects in each (a scene may use fewer). Lengths are fractions of the image's side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from inarch.structure.units import Indices

Floats = npt.NDArray[np.float32]

ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "shape": ("circle", "square", "triangle", "diamond", "cross", "ring", "star", "heart"),
    "colour": ("red", "green", "blue", "yellow", "purple", "cyan", "orange", "white"),
    "size": ("small", "large"),
    "texture": ("plain", "striped", "dotted"),
}
"""Attribute -> its values."""

Split = Literal["train", "test", "unseen"]
"""``unseen`` holds scenes with at least one combination of shape and colour that no training scene has."""

SPLITS: tuple[Split, ...] = ("train", "test", "unseen")


@dataclass(frozen=True)
class Difficulty:
    """How hard scenes are.

    Attributes:
        objects: fewest and most objects of a scene.
        shapes, colours, textures: how many values of each attribute occur; 1 for textures means that all are plain.
        overlap: how far two objects may overlap: 0 not at all, 1 fully.
        noise: standard deviation of the background's noise, in [0, 1].
        hardness: share of relations and ordinals among the expressions, and of comparisons and relations among the questions.
    """

    objects: tuple[int, int]
    shapes: int = 8
    colours: int = 8
    textures: int = 1
    overlap: float = 0.0
    noise: float = 0.02
    hardness: float = 0.4


LEVELS: Mapping[str, Difficulty] = {
    "easy": Difficulty((3, 4), shapes=4, colours=4),
    "medium": Difficulty((4, 6), textures=2, noise=0.04, hardness=0.5),
    "hard": Difficulty((5, 7), textures=3, overlap=0.2, noise=0.06, hardness=0.65),
}
"""Name -> difficulty."""


@dataclass(frozen=True, eq=False)
class Scenes:
    """N scenes.

    Attributes:
        shape, colour, size, texture: [N, M] int, indices into :data:`ATTRIBUTES`.
        x, y: [N, M] centres.
        radius: [N, M] half of the bounding square's side.
        count: [N] objects in use; those behind them mean nothing.
    """

    shape: Indices
    colour: Indices
    size: Indices
    texture: Indices
    x: Floats
    y: Floats
    radius: Floats
    count: Indices

    def __len__(self) -> int:
        return len(self.count)

    @property
    def boxes(self) -> Floats:
        """[N, M, 4] centre, width and height."""
        return np.stack((self.x, self.y, 2 * self.radius, 2 * self.radius), -1)

    def take(self, rows: npt.NDArray[np.bool_] | Indices) -> Self:
        """Some of the scenes."""
        return type(self)(*(getattr(self, field.name)[rows] for field in fields(self)))


_SIZES = ((0.085, 0.11), (0.14, 0.17))
"""Radii of small and of large objects, lowest and highest."""

_TRIES = 40
"""Places that are tried for an object before its scene begins anew."""

_ROUNDS = 200
"""How often a scene begins anew until it has the fewest objects; for the first :data:`_PATIENCE` times, until it has all."""

_PATIENCE = 20


def held_out_colour(shape: int, colours: int) -> int:
    """The colour in which no training scene has this shape, among so many."""
    return (shape * 3 + 1) % colours


def held_out(shape: Indices, colour: Indices, difficulty: Difficulty) -> npt.NDArray[np.bool_]:
    """Whether a combination of shape and colour is kept from training: one colour of each shape."""
    return np.equal(_kept(difficulty)[shape], colour)


def _kept(difficulty: Difficulty) -> Indices:
    """The held-out colour of each shape."""
    return np.array([held_out_colour(number, difficulty.colours) for number in range(difficulty.shapes)])


def draw(count: int, difficulty: Difficulty, split: Split, seed: int) -> Scenes:
    """Draw scenes.

    Args:
        count: N.
        difficulty: how hard.
        split: ``train`` and ``test`` have no held-out combination, every scene of ``unseen`` has one.
        seed: the same seed gives the same scenes; splits never share any.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    low, high = difficulty.objects
    size = (count, high)
    shape, colour = rng.integers(0, difficulty.shapes, size), rng.integers(0, difficulty.colours, size)
    _avoid_held_out(rng, shape, colour, difficulty)
    if split == "unseen":
        shape[:, 0] = rng.integers(0, difficulty.shapes, count)
        colour[:, 0] = _kept(difficulty)[shape[:, 0]]
    large = rng.integers(0, 2, size)
    texture = rng.integers(0, difficulty.textures, size)
    bounds = np.array(_SIZES, np.float32)[large]
    radius = (bounds[..., 0] + (bounds[..., 1] - bounds[..., 0]) * rng.random(size, np.float32)).astype(np.float32)
    wanted = rng.integers(low, high + 1, count)
    x, y, placed = place(rng, radius, low, wanted, difficulty.overlap)
    return Scenes(shape, colour, large, texture, x, y, radius, placed)


def _avoid_held_out(rng: np.random.Generator, shape: Indices, colour: Indices, difficulty: Difficulty) -> None:
    """Draw the colours of held-out combinations again, among the other colours."""
    wrong = held_out(shape, colour, difficulty)
    step = rng.integers(1, difficulty.colours, int(wrong.sum()))
    colour[wrong] = (colour[wrong] + step) % difficulty.colours


def place(
    rng: np.random.Generator, radius: Floats, fewest: int, wanted: Indices, overlap: float
) -> tuple[Floats, Floats, Indices]:
    """Places for the objects' bounding squares.

    Args:
        rng: draws.
        radius: [N, M] half of each square's side.
        fewest: objects that every scene is to have; the last ones are left out where no place is found.
        wanted: [N] objects.
        overlap: how far two squares may overlap; without it they stay a twentieth of their radii apart.

    Returns:
        x and y [N, M], and how many objects have a place [N].
    """
    x, y = np.zeros_like(radius), np.zeros_like(radius)
    placed = np.zeros(len(radius), np.int64)
    for turn in range(_ROUNDS):
        rows = np.flatnonzero(placed < (wanted if turn < _PATIENCE else fewest))
        if not len(rows):
            break
        x[rows], y[rows], placed[rows] = _try_places(rng, radius[rows], wanted[rows], overlap)
    return x, y, placed


def _try_places(rng: np.random.Generator, radius: Floats, wanted: Indices, overlap: float) -> tuple[Floats, Floats, Indices]:
    """Places for the objects, one after the other; one that finds none in :data:`_TRIES` tries ends its scene."""
    count, most = radius.shape
    x, y = np.zeros_like(radius), np.zeros_like(radius)
    placed = np.zeros(count, np.int64)
    for k in range(most):
        open_rows = np.flatnonzero((wanted > k) & (placed == k))
        for _ in range(_TRIES):
            if not len(open_rows):
                break
            r = radius[open_rows, k]
            cx, cy = (r + (1 - 2 * r) * rng.random(len(r), np.float32) for _ in range(2))
            apart = np.maximum(np.abs(cx[:, None] - x[open_rows, :k]), np.abs(cy[:, None] - y[open_rows, :k]))
            fits = (apart >= (r[:, None] + radius[open_rows, :k]) * (1.05 - overlap)).all(1)
            rows = open_rows[fits]
            x[rows, k], y[rows, k] = cx[fits], cy[fits]
            placed[rows] += 1
            open_rows = open_rows[~fits]
    return x, y, placed
