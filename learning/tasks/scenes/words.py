"""The words of scenes as tokens, and descriptions of objects by their attributes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from inarch.learning.tasks.scenes.world import ATTRIBUTES, Scenes
from inarch.structure.errors import InarchError
from inarch.structure.units import Indices

PAD, START, STOP = 0, 1, 2

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven")
ORDINALS = ("first", "second", "third")
DIRECTIONS = ("left", "right", "top", "bottom")
RELATIONS = ("left of", "right of", "above", "below")


def plural(noun: str) -> str:
    """Several of them."""
    return noun + ("es" if noun.endswith("s") else "s")


_OTHERS = "the a thing things from of above below is are there how many what color shape size texture more than and , ?"

WORDS: tuple[str, ...] = tuple(
    dict.fromkeys(
        [
            "[pad]",
            "[start]",
            "[stop]",
            *(value for values in ATTRIBUTES.values() for value in values),
            *(plural(shape) for shape in ATTRIBUTES["shape"]),
            *NUMBERS,
            *ORDINALS,
            *DIRECTIONS,
            *_OTHERS.split(),
        ]
    )
)
"""Every word, at the place that is its token."""

_TOKEN = {word: number for number, word in enumerate(WORDS)}


def encode(text: str) -> list[int]:
    """Tokens of a text, between a start and a stop.

    Raises:
        InarchError: a word that scenes do not know.
    """
    try:
        return [START, *(_TOKEN[word] for word in text.split()), STOP]
    except KeyError as error:
        raise InarchError(f"scenes have no word {error.args[0]!r}", hint=f"they have {', '.join(WORDS[3:])}") from None


def decode(tokens: Sequence[int]) -> str:
    """The text of tokens."""
    return " ".join(WORDS[token] for token in tokens if token > STOP)


def pack(texts: Sequence[Sequence[int]], length: int | None = None) -> tuple[Indices, Indices]:
    """Token lists as one array [n, T] and its mask, padded to the longest or to ``length``."""
    size = max(map(len, texts)) if length is None else length
    ids = np.zeros((len(texts), size), np.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
    return ids, (ids != PAD).astype(np.int64)


@dataclass(frozen=True)
class Thing:
    """One object of a scene, in plain numbers."""

    shape: int
    colour: int
    size: int
    texture: int
    x: float
    y: float

    def value(self, attribute: str) -> int:
        """Index of an attribute's value."""
        return int(getattr(self, attribute))


def things(scenes: Scenes) -> Iterator[list[Thing]]:
    """The objects of every scene."""
    columns = [getattr(scenes, name).tolist() for name in ("shape", "colour", "size", "texture", "x", "y")]
    for row, count in enumerate(scenes.count.tolist()):
        yield [Thing(*(column[row][k] for column in columns)) for k in range(count)]


@dataclass(frozen=True)
class Description:
    """Attributes and the values that they have, in the order of :data:`ATTRIBUTES`."""

    values: tuple[tuple[str, int], ...]

    def fits(self, thing: Thing) -> bool:
        """Whether an object is described."""
        return all(thing.value(attribute) == value for attribute, value in self.values)

    def among(self, scene: Sequence[Thing]) -> list[int]:
        """Which objects are."""
        return [number for number, thing in enumerate(scene) if self.fits(thing)]

    def phrase(self, *, many: bool = False) -> str:
        """``small striped red circle``, or ``things`` where the shape is not said."""
        words = {attribute: ATTRIBUTES[attribute][value] for attribute, value in self.values}
        noun = words.pop("shape", "thing")
        noun = plural(noun) if many else noun
        return " ".join([*(words[name] for name in ("size", "texture", "colour") if name in words), noun])


def description(thing: Thing, attributes: Sequence[str]) -> Description:
    """An object by some of its attributes."""
    return Description(tuple((name, thing.value(name)) for name in ATTRIBUTES if name in attributes))


_SETS = tuple(chosen for count in (1, 2, 3, 4) for chosen in combinations(ATTRIBUTES, count))


def attribute_sets(textures: int) -> tuple[tuple[str, ...], ...]:
    """Sets of attributes that a description may use: no textures where all objects are plain."""
    return _SETS if textures > 1 else tuple(chosen for chosen in _SETS if "texture" not in chosen)


def unique(scene: Sequence[Thing], number: int, sets: Sequence[tuple[str, ...]], rng: np.random.Generator) -> Description | None:
    """A short description that only this object answers to, at random among the shortest and those one longer; None if there is
    none."""
    found: list[Description] = []
    shortest = 0
    for chosen in sets:
        if found and len(chosen) > shortest + 1:
            break
        candidate = description(scene[number], chosen)
        if candidate.among(scene) == [number]:
            shortest = shortest or len(chosen)
            found.append(candidate)
    return found[int(rng.integers(len(found)))] if found else None
