"""What is said of objects, of any sort: words as tokens, descriptions, and what the texts of a split may say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations

import numpy as np

from inarch.learning.tasks.scenes.world import Scenes
from inarch.structure.errors import InarchError
from inarch.structure.units import Indices

PAD, START, STOP = 0, 1, 2
MARKS = ("[pad]", "[start]", "[stop]")

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven")
ORDINALS = ("first", "second", "third")
DIRECTIONS = ("left", "right", "top", "bottom")
RELATIONS = ("left of", "right of", "above", "below")
"""Opposites stand next to each other."""

MOST = 4
"""The largest number that a question counts to."""

ENDINGS = ("##s", "##es")
"""Tokens for the plurals that a language has no word for."""


def plural(noun: str) -> str:
    """Several of them."""
    return noun + ("es" if noun.endswith(("s", "x")) else "s")


@dataclass(frozen=True)
class Thing:
    """One object of a scene, in plain numbers.

    Attributes:
        values: attribute -> index of its value.
        x, y: its centre.
    """

    values: Mapping[str, int]
    x: float
    y: float

    def value(self, attribute: str) -> int:
        """Index of an attribute's value."""
        return self.values[attribute]


@dataclass(frozen=True)
class Description:
    """Attributes and the values that they have, in the order of the language's attributes."""

    values: tuple[tuple[str, int], ...]

    def fits(self, thing: Thing) -> bool:
        """Whether an object is described."""
        return all(thing.values[attribute] == value for attribute, value in self.values)

    def among(self, scene: Sequence[Thing]) -> list[int]:
        """Which objects are."""
        return [number for number, thing in enumerate(scene) if self.fits(thing)]


@dataclass(frozen=True, eq=False)
class Language:
    """Words for one sort of objects.

    Attributes:
        attributes: attribute -> its values, in the words for them.
        noun: the attribute that objects are called by.
        adjectives: the others, in the order in which they are said.
        words: every word, at the place that is its token.
        asked: attribute -> what is asked for; itself where it is not here.
        columns: attribute -> the array of :class:`~inarch.learning.tasks.scenes.world.Scenes` that holds it; likewise.
        plain, hard: kinds of questions.
    """

    attributes: Mapping[str, tuple[str, ...]]
    noun: str
    adjectives: tuple[str, ...]
    words: tuple[str, ...]
    asked: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    plain: tuple[str, ...] = ("existence", "count", "attribute")
    hard: tuple[str, ...] = ("comparison", "relation")

    @cached_property
    def answers(self) -> tuple[str, ...]:
        """Every answer, at the place that is its class."""
        return ("no", "yes", *NUMBERS[: MOST + 1], *(value for values in self.attributes.values() for value in values))

    @cached_property
    def _token(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, between a start and a stop; a plural that is no word is its singular and an ending.

        Raises:
            InarchError: a word that the language does not have.
        """
        return [START, *(token for word in text.split() for token in self._pieces(word)), STOP]

    def _pieces(self, word: str) -> list[int]:
        if word in self._token:
            return [self._token[word]]
        for ending in ENDINGS:
            stem = word.removesuffix(ending[2:])
            if ending in self._token and stem in self._token and plural(stem) == word:
                return [self._token[stem], self._token[ending]]
        raise InarchError(f"scenes have no word {word!r}", hint=f"they have {', '.join(self.words[len(MARKS) :])}")

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens."""
        return " ".join(self.words[token] for token in tokens if token > STOP).replace(" ##", "")

    def phrase(self, said: Description, *, many: bool = False) -> str:
        """``small striped red circle``, or ``things`` where it is not said what they are."""
        words = {attribute: self.attributes[attribute][value] for attribute, value in said.values}
        noun = words.pop(self.noun, "thing")
        noun = plural(noun) if many else noun
        return " ".join([*(words[name] for name in self.adjectives if name in words), noun])

    def read(self, phrase: str) -> Description:
        """What a phrase describes, in the singular."""
        text = f" {phrase} "
        found = [
            (name, number)
            for name, values in self.attributes.items()
            for number, value in enumerate(values)
            if f" {value} " in text
        ]
        return Description(tuple(found))

    def describe(self, thing: Thing, attributes: Sequence[str]) -> Description:
        """An object by some of its attributes."""
        return Description(tuple((name, thing.values[name]) for name in self.attributes if name in attributes))

    def sets(self, without: Sequence[str] = ()) -> tuple[tuple[str, ...], ...]:
        """Sets of attributes that a description may use, small ones first; none of those in ``without``."""
        names = [name for name in self.attributes if name not in without]
        return tuple(chosen for count in range(1, len(names) + 1) for chosen in combinations(names, count))

    def things(self, scenes: Scenes) -> Iterator[list[Thing]]:
        """The objects of every scene."""
        columns = {name: getattr(scenes, self.columns.get(name, name)).tolist() for name in self.attributes}
        x, y = scenes.x.tolist(), scenes.y.tolist()
        for row, count in enumerate(scenes.count.tolist()):
            yield [Thing({name: values[row][k] for name, values in columns.items()}, x[row][k], y[row][k]) for k in range(count)]


Scene = Sequence[Thing]


def _always(said: Description, scene: Scene) -> bool:
    return True


def _all(scene: Scene) -> list[int]:
    return list(range(len(scene)))


@dataclass(frozen=True, eq=False)
class Topic:
    """What a split's texts may say.

    Attributes:
        language: in which words.
        sets: sets of attributes that a description may use.
        values: attribute -> the values that may be asked for in vain.
        hardness: share of relations and ordinals among the expressions, and of hard questions.
        in_vain: whether something that a scene does not have may be asked for. What never occurs in training must not be asked
            for there: it would teach that the answer is no.
        targets: the objects of a scene that expressions refer to.
    """

    language: Language
    sets: tuple[tuple[str, ...], ...]
    values: Mapping[str, Sequence[int]]
    hardness: float
    in_vain: Callable[[Description, Scene], bool] = _always
    targets: Callable[[Scene], list[int]] = _all

    def unique(self, scene: Scene, number: int, rng: np.random.Generator, *, without: str | None = None) -> Description | None:
        """A short description that only this object answers to, at random among the shortest and those one longer.

        Args:
            scene: all objects.
            number: which is described.
            rng: chooses.
            without: an attribute that is not used.

        Returns:
            None if there is none.
        """
        found: list[Description] = []
        shortest = 0
        for chosen in self.sets:
            if without in chosen:
                continue
            if found and len(chosen) > shortest + 1:
                break
            candidate = self.language.describe(scene[number], chosen)
            if candidate.among(scene) == [number]:
                shortest = shortest or len(chosen)
                found.append(candidate)
        return found[int(rng.integers(len(found)))] if found else None

    def some(self, scene: Scene, rng: np.random.Generator, most: int | None = None) -> Description:
        """A description of an object of the scene, and maybe of others; by one of the first ``most`` sets."""
        sets = self.sets[:most]
        return self.language.describe(scene[int(rng.integers(len(scene)))], sets[int(rng.integers(len(sets)))])


def pack(texts: Sequence[Sequence[int]], length: int | None = None) -> tuple[Indices, Indices]:
    """Token lists as one array [n, T] and its mask, padded to the longest or to ``length``."""
    size = max(map(len, texts)) if length is None else length
    ids = np.zeros((len(texts), size), np.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
    return ids, (ids != PAD).astype(np.int64)
