"""What the demo shows the model: sentences with paraphrases, and a few drawn pictures; and what a plan does to the answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from inarch.tools.towers import IMAGE_OUTPUT, IMAGE_SIZE, TEXT_OUTPUT, normalise_images, tokenize

Array = npt.NDArray[Any]
Picture = npt.NDArray[np.float32]

TRIPLES: Final = (
    ("A man is riding a horse on the beach.", "Someone on horseback gallops along the shore.", "A man is lying on the beach."),
    ("Two children build a tower of wooden blocks.", "Kids stack up their toy bricks.", "Two children run to the church tower."),
    (
        "The central bank raised interest rates again.",
        "Borrowing money became more expensive.",
        "The bank on the corner was robbed.",
    ),
    ("Heavy rain flooded the old town.", "A storm left the historic centre under water.", "The old town is full of shops."),
    ("She plays the violin in the city orchestra.", "She is a symphony musician.", "She plays football in the city park."),
    ("The cat sleeps on the windowsill.", "A kitten is having a nap by the window.", "The cat chased a mouse in the barn."),
    ("This phone's battery lasts half a day.", "My mobile has to be charged twice daily.", "This phone takes sharp photographs."),
    ("He baked bread this morning.", "A fresh loaf came out of his oven today.", "He missed the bus this morning."),
    ("Astronomers found a planet near a star.", "A new world was seen outside our solar system.", "A film star bought a house."),
    ("The train to the airport was late.", "The rail service to the terminal had a delay.", "The airport has a new car park."),
    ("Doctors recommend eating vegetables.", "Physicians advise people to have more greens.", "Doctors went on strike."),
    ("The goalkeeper stopped the penalty.", "The spot kick was saved.", "The goalkeeper signed a new contract."),
)
"""A sentence, the same said otherwise, and something else said with the same words."""


def pictures() -> dict[str, Picture]:
    """Drawn pictures, name -> [224, 224, 3] in 0..1: something small that stands out from what is around it."""
    y, x = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE].astype(np.float32) / IMAGE_SIZE
    rng = np.random.default_rng(0)
    sky = np.stack([0.35 + 0.3 * y, 0.55 + 0.2 * y, 0.9 - 0.2 * y], axis=-1)
    grass = np.stack([0.2 + 0 * y, 0.5 + 0.1 * np.sin(60 * x + 20 * y), 0.15 + 0 * y], axis=-1)
    grey = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), 0.5, np.float32)

    def paint(canvas: Array, where: Array, colour: tuple[float, float, float]) -> Picture:
        painted = np.where(where[..., None], np.asarray(colour, np.float32), canvas)
        grain = rng.normal(0, 0.015, painted.shape)
        return np.clip(painted + grain, 0, 1).astype(np.float32)

    def disc(column: float, row: float, radius: float) -> Array:
        return np.asarray((x - column) ** 2 + (y - row) ** 2 < radius**2)

    return {
        "red ball on grass": paint(grass, disc(0.65, 0.6, 0.12), (0.9, 0.1, 0.1)),
        "yellow sun in the sky": paint(sky, disc(0.3, 0.25, 0.1), (1.0, 0.9, 0.2)),
        "dark box on grey": paint(grey, (np.abs(x - 0.4) < 0.15) & (np.abs(y - 0.55) < 0.1), (0.1, 0.1, 0.12)),
        "white ring on grass": paint(grass, disc(0.5, 0.45, 0.2) & ~disc(0.5, 0.45, 0.13), (0.95, 0.95, 0.95)),
    }


def demo_feeds(tokenizer: Path) -> dict[str, Array]:
    """All sentences and pictures as the two-tower model's inputs; sentences in the order of :data:`TRIPLES`."""
    sentences = [sentence for triple in TRIPLES for sentence in triple]
    return {**tokenize(tokenizer, sentences), **normalise_images(np.stack(list(pictures().values())))}


@dataclass(frozen=True)
class Answers:
    """What one model says to the demo's inputs, against the original model.

    Attributes:
        found: sentences with a paraphrase whose nearest other sentence it is.
        sentences: how many have one.
        sentence_cosine: cosine of each embedding to the original's, averaged.
        worst_sentence_cosine: the smallest of them.
        picture_correlation: picture -> correlation of its saliency map with the original's.
    """

    found: int
    sentences: int
    sentence_cosine: float
    worst_sentence_cosine: float
    picture_correlation: Mapping[str, float]

    @property
    def mean_correlation(self) -> float:
        """Average over the pictures."""
        return float(np.mean(list(self.picture_correlation.values())))


def judge(original: Mapping[str, Array], outputs: Mapping[str, Array]) -> Answers:
    """Compare a model's outputs on :func:`demo_feeds` with the original's.

    Args:
        original: output name -> array of the original model.
        outputs: the same of the model that is judged.
    """
    before, after = _unit(original[TEXT_OUTPUT]), _unit(outputs[TEXT_OUTPUT])
    cosines = np.sum(before * after, axis=1)
    similar = after @ after.T
    np.fill_diagonal(similar, -np.inf)
    first = np.arange(0, len(after), 3)
    nearest = similar.argmax(axis=1)
    found = np.count_nonzero(nearest[first] == first + 1) + np.count_nonzero(nearest[first + 1] == first)
    maps = zip(pictures(), original[IMAGE_OUTPUT], outputs[IMAGE_OUTPUT], strict=True)
    return Answers(
        int(found),
        2 * len(first),
        float(cosines.mean()),
        float(cosines.min()),
        {name: _correlation(old, new) for name, old, new in maps},
    )


def _unit(rows: Array) -> npt.NDArray[np.float64]:
    wide = rows.astype(np.float64)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12))


def _correlation(first: Array, second: Array) -> float:
    """Pearson's r of two maps; 0 where one of them is flat."""
    a, b = (np.ravel(values).astype(np.float64) - float(np.mean(values)) for values in (first, second))
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm else 0.0
