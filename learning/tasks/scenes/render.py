"""Scenes as pictures: every object is a function of its own coordinates, drawn with soft edges. Vectorised over scenes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from inarch.learning.tasks.scenes.world import ATTRIBUTES, Difficulty, Scenes
from inarch.structure.units import Indices

Floats = npt.NDArray[np.float32]
Images = npt.NDArray[np.uint8]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 45, 38),
    "green": (35, 155, 65),
    "blue": (45, 85, 215),
    "yellow": (240, 220, 40),
    "purple": (145, 55, 165),
    "cyan": (60, 205, 215),
    "orange": (245, 140, 30),
    "white": (240, 240, 240),
}

_CHUNK = 256


def render(scenes: Scenes, side: int, difficulty: Difficulty, seed: int) -> Images:
    """Draw scenes.

    Args:
        scenes: N of them.
        side: of an image in pixels.
        difficulty: says how noisy backgrounds are.
        seed: of backgrounds and small variations of colour.

    Returns:
        [N, side, side, 3].
    """
    rng = np.random.default_rng([seed, side])
    parts = []
    for start in range(0, len(scenes), _CHUNK):
        parts.append(_draw(scenes.take(np.arange(start, min(start + _CHUNK, len(scenes)))), side, difficulty.noise, rng))
    return np.concatenate(parts)


def _draw(scenes: Scenes, side: int, noise: float, rng: np.random.Generator) -> Images:
    n = len(scenes)
    canvas = backgrounds(n, side, noise, rng)
    places = (np.arange(side, dtype=np.float32) + 0.5) / side
    palette = np.array([COLOURS[name] for name in ATTRIBUTES["colour"]], np.float32) / 255
    for k in range(scenes.shape.shape[1]):
        rows = np.flatnonzero(scenes.count > k)
        if not len(rows):
            break
        radius = scenes.radius[rows, k][:, None, None]
        u = (places[None, None, :] - scenes.x[rows, k][:, None, None]) / radius
        v = (places[None, :, None] - scenes.y[rows, k][:, None, None]) / radius
        u, v = np.broadcast_arrays(u, v)
        cover = np.clip(0.5 - _distance(scenes.shape[rows, k], u, v) * radius * side, 0, 1)
        paint = palette[scenes.colour[rows, k]] + rng.normal(0, 0.03, (len(rows), 3)).astype(np.float32)
        shade = _texture(scenes.texture[rows, k], u, v)[..., None]
        canvas[rows] += cover[..., None] * (paint[:, None, None, :] * shade - canvas[rows])
    return (np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8)


def backgrounds(n: int, side: int, noise: float, rng: np.random.Generator, bright: tuple[float, float] = (0.05, 0.3)) -> Floats:
    """Grounds with a slope of light and noise, dark unless another brightness is wanted, [n, side, side, 3]."""
    base = rng.uniform(*bright, (n, 1, 1, 3))
    slope = rng.uniform(-0.08, 0.08, (2, n, 1, 1, 1))
    line = np.linspace(-1, 1, side)
    ground = base + slope[0] * line[None, :, None, None] + slope[1] * line[None, None, :, None]
    return np.asarray((ground + rng.normal(0, noise, (n, side, side, 1))), np.float32)


def _texture(texture: Indices, u: Floats, v: Floats) -> Floats:
    """Brightness of an object's surface: plain, in stripes, or with dots."""
    stripes = 0.7 + 0.3 * np.sign(np.sin((u + v) * 5.5))
    dots = 1 - 0.6 * (np.sin(u * 6.5) * np.sin(v * 6.5) > 0.35)
    kind = texture[:, None, None]
    return np.asarray(np.where(kind == 1, stripes, np.where(kind == 2, dots, 1.0)), np.float32)


def _distance(shape: Indices, u: Floats, v: Floats) -> Floats:
    """How far outside each point lies, in radii, below zero inside; every shape fills the square from -1 to 1."""
    result = np.empty(u.shape, np.float32)
    for kind in np.unique(shape):
        rows = shape == kind
        result[rows] = _SHAPES[ATTRIBUTES["shape"][kind]](u[rows], v[rows])
    return result


def _triangle(u: Floats, v: Floats) -> Floats:
    return np.asarray(np.maximum((2 * np.abs(u) - v - 1) / np.sqrt(5), v - 1), np.float32)


def _cross(u: Floats, v: Floats) -> Floats:
    wide, tall = np.abs(u), np.abs(v)
    return np.asarray(np.maximum(np.maximum(wide, tall) - 1, np.minimum(wide, tall) - 0.33), np.float32)


def _star(u: Floats, v: Floats) -> Floats:
    v = v - np.float32(0.1)  # its upper spike is longer than what lies below its middle
    angle, radius = np.arctan2(u, -v), np.hypot(u, v)
    spike = np.abs((angle * 5 / (2 * np.pi) + 0.5) % 1 - 0.5) * 2  # 0 on a spike, 1 between two
    return np.asarray(radius - (1.08 - 0.62 * spike), np.float32)


def _heart(u: Floats, v: Floats) -> Floats:
    lobes = np.hypot(np.abs(u) - 0.5, v + 0.45) - 0.52
    # What is below the lobes: two sides that touch them where they are 0.9 wide, and nothing wider.
    sides = np.abs(u) * 0.7705 + v * 0.6375 - 0.6184
    point = np.maximum(np.maximum(sides, np.abs(u) - 0.9), -v - 0.45)
    return np.asarray(np.minimum(lobes, point), np.float32)


_SHAPES = {
    "circle": lambda u, v: np.hypot(u, v) - 1,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) - 0.95,
    "triangle": _triangle,
    "diamond": lambda u, v: (np.abs(u) + np.abs(v) - 1) / np.sqrt(2),
    "cross": _cross,
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.75) - 0.25,
    "star": _star,
    "heart": _heart,
}
