"""The texts of scenes, as arrays: captions to ground, expressions and questions, K of each kind a scene.

Shapes: N scenes, K texts of each, T tokens, P boxes a text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from inarch.learning.tasks.scenes.expressions import Expression, at_the_edge, refer
from inarch.learning.tasks.scenes.language import START, STOP, Scene, Topic, pack
from inarch.learning.tasks.scenes.questions import ask
from inarch.learning.tasks.scenes.words import SCENES, topic
from inarch.learning.tasks.scenes.world import Difficulty, Scenes
from inarch.structure.units import Indices

Kind = Literal["grounding", "referring", "vqa"]
KINDS: tuple[Kind, ...] = ("grounding", "referring", "vqa")

PHRASES = 3
"""Most phrases of a caption."""


@dataclass(frozen=True, eq=False)
class Texts:
    """Texts of N scenes.

    Attributes:
        ids, mask: [N, K, T].
        targets: [N, K, P] number of the object in its scene, -1 where there is none.
        spans: [N, K, P, T] bool: the tokens that speak of it.
        answers: [N, K] class, -1 where nothing is asked.
        kinds: [N, K] what sort of text it is, a string.
    """

    ids: Indices
    mask: Indices
    targets: Indices
    spans: npt.NDArray[np.bool_]
    answers: Indices
    kinds: npt.NDArray[np.str_]


@dataclass
class _Text:
    tokens: list[int]
    targets: list[int]
    spans: list[tuple[int, int]]
    answer: int
    kind: str


def write_texts(scenes: Scenes, kind: Kind, count: int, difficulty: Difficulty, seed: int) -> Texts:
    """Write ``count`` texts of one kind for every scene; a scene that has too little to say repeats itself.

    The same seed gives the same texts.
    """
    return write(SCENES.things(scenes), kind, count, topic(difficulty), seed)


def write(scenes: Iterable[Scene], kind: Kind, count: int, about: Topic, seed: int) -> Texts:
    """As :func:`write_texts`, of objects of any sort.

    Args:
        scenes: the objects of each.
        kind: of texts.
        count: K.
        about: what they may say.
        seed: the same gives the same texts.
    """
    writer = _Writer(about, np.random.default_rng([seed, KINDS.index(kind)]))
    rows = [[getattr(writer, kind)(scene) for _ in range(count)] for scene in scenes]
    flat = [text for row in rows for text in row]
    ids, mask = pack([text.tokens for text in flat])
    places = PHRASES if kind == "grounding" else 1
    targets = np.full((len(flat), places), -1, np.int64)
    spans = np.zeros((len(flat), places, ids.shape[1]), np.bool_)
    for row, text in enumerate(flat):
        for place, (target, (start, stop)) in enumerate(zip(text.targets, text.spans, strict=True)):
            targets[row, place] = target
            spans[row, place, start:stop] = True
    answers = np.array([text.answer for text in flat], np.int64)
    kinds = np.array([text.kind for text in flat])
    shape = (len(rows), count)
    return Texts(
        ids.reshape(*shape, -1),
        mask.reshape(*shape, -1),
        targets.reshape(*shape, places),
        spans.reshape(*shape, places, -1),
        answers.reshape(shape),
        kinds.reshape(shape),
    )


class _Writer:
    """Texts about one scene after the other."""

    def __init__(self, topic: Topic, rng: np.random.Generator) -> None:
        self.topic = topic
        self.rng = rng

    def _encode(self, text: str) -> list[int]:
        return self.topic.language.encode(text)

    def _expression(self, scene: Scene) -> Expression:
        for hardness in (self.topic.hardness, 0.0, 1.0):
            found = refer(scene, self.topic, hardness, self.rng)
            if found is not None:
                return found
        # Every object has an equal twin, and nothing tells them apart by place: speak of all there is by where it is.
        return at_the_edge(scene)

    def referring(self, scene: Scene) -> _Text:
        """One expression; its tokens all speak of the object."""
        found = self._expression(scene)
        tokens = self._encode(found.text)
        return _Text(tokens, [found.target], [(1, len(tokens) - 1)], -1, found.kind)

    def grounding(self, scene: Scene) -> _Text:
        """Up to :data:`PHRASES` expressions of different objects, with commas between them."""
        tokens, targets, spans = [START], list[int](), list[tuple[int, int]]()
        wanted = int(self.rng.integers(1, PHRASES + 1))
        for _ in range(wanted + 1):
            found = self._expression(scene)
            if len(targets) < wanted and found.target not in targets:
                if targets:
                    tokens += self._encode(",")[1:-1]
                words = self._encode(found.text)[1:-1]
                spans.append((len(tokens), len(tokens) + len(words)))
                targets.append(found.target)
                tokens += words
        return _Text([*tokens, STOP], targets, spans, -1, "grounding")

    def vqa(self, scene: Scene) -> _Text:
        """One question."""
        found = None
        while found is None:  # whether there is a thing of some sort can always be asked
            found = ask(scene, self.topic, self.rng)
        return _Text(self._encode(found.text), [], [], found.answer, found.kind)
