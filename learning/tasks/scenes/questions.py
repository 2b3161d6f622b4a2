"""Questions about a scene, balanced: the answer is drawn first, then a question that has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from inarch.learning.tasks.scenes.expressions import GAP, Sets, related
from inarch.learning.tasks.scenes.words import NUMBERS, RELATIONS, Description, Thing, description, unique
from inarch.learning.tasks.scenes.world import ATTRIBUTES

MOST = 4
"""The largest number that a question counts to."""

ANSWERS: tuple[str, ...] = ("no", "yes", *NUMBERS[: MOST + 1], *(value for values in ATTRIBUTES.values() for value in values))
"""Every answer, at the place that is its class."""

KINDS = ("existence", "count", "attribute", "comparison", "relation")


@dataclass(frozen=True)
class Question:
    """A question and its answer, an index into :data:`ANSWERS`."""

    text: str
    answer: int
    kind: str


def _drawn(sets: Sets, limits: Mapping[str, int], rng: np.random.Generator) -> Description:
    """A description of anything, whether a scene has it or not."""
    chosen = sets[int(rng.integers(len(sets)))]
    return Description(tuple((name, int(rng.integers(limits[name]))) for name in ATTRIBUTES if name in chosen))


def existence(scene: Sequence[Thing], sets: Sets, limits: Mapping[str, int], rng: np.random.Generator) -> Question | None:
    """``is there a red circle ?``: what is asked for in vain differs from an object of the scene in one attribute."""
    wanted = int(rng.integers(2))
    for _ in range(20):
        asked = description(scene[int(rng.integers(len(scene)))], sets[int(rng.integers(len(sets)))])
        if not wanted:
            changed = list(asked.values)
            place = int(rng.integers(len(changed)))
            name, value = changed[place]
            if limits[name] > 1:
                changed[place] = name, (value + int(rng.integers(1, limits[name]))) % limits[name]
            asked = Description(tuple(changed))
        if bool(asked.among(scene)) == bool(wanted):
            return Question(f"is there a {asked.phrase()} ?", wanted, "existence")
    return None


def count(scene: Sequence[Thing], sets: Sets, limits: Mapping[str, int], rng: np.random.Generator) -> Question | None:
    """``how many red things are there ?``, every number up to :data:`MOST` alike."""
    wanted = int(rng.integers(MOST + 1))
    for _ in range(40):
        asked = (
            _drawn(sets, limits, rng)
            if not wanted
            else description(scene[int(rng.integers(len(scene)))], sets[int(rng.integers(len(sets)))])
        )
        if len(asked.among(scene)) == wanted:
            text = f"how many {asked.phrase(many=True)} are there ?"
            return Question(text, ANSWERS.index(NUMBERS[wanted]), "count")
    return None


def attribute(scene: Sequence[Thing], sets: Sets, limits: Mapping[str, int], rng: np.random.Generator) -> Question | None:
    """``what color is the small circle ?``"""
    names = [name for name in ATTRIBUTES if limits[name] > 1]
    name = names[int(rng.integers(len(names)))]
    number = int(rng.integers(len(scene)))
    told = unique(scene, number, [chosen for chosen in sets if name not in chosen], rng)
    if told is None:
        return None
    value = ATTRIBUTES[name][scene[number].value(name)]
    asked = "color" if name == "colour" else name
    return Question(f"what {asked} is the {told.phrase()} ?", ANSWERS.index(value), "attribute")


def comparison(scene: Sequence[Thing], sets: Sets, limits: Mapping[str, int], rng: np.random.Generator) -> Question | None:
    """``are there more circles than red things ?``; equal numbers are not asked about."""
    wanted = int(rng.integers(2))
    for _ in range(6):
        first, second = (
            description(scene[int(rng.integers(len(scene)))], sets[int(rng.integers(min(len(sets), 4)))]) for _ in range(2)
        )
        more = len(first.among(scene)) - len(second.among(scene))
        if more and (more > 0) == wanted:
            text = f"are there more {first.phrase(many=True)} than {second.phrase(many=True)} ?"
            return Question(text, wanted, "comparison")
    return None


def relation(scene: Sequence[Thing], sets: Sets, limits: Mapping[str, int], rng: np.random.Generator) -> Question | None:
    """``is the red circle left of the square ?``"""
    if len(scene) < 2:
        return None
    first, second = (int(n) for n in rng.choice(len(scene), 2, replace=False))
    one, other = unique(scene, first, sets, rng), unique(scene, second, sets, rng)
    if one is None or other is None:
        return None
    wanted, number = int(rng.integers(2)), int(rng.integers(len(RELATIONS)))
    apart = abs(scene[first].x - scene[second].x) if number < 2 else abs(scene[first].y - scene[second].y)
    if apart <= GAP or related(scene[first], scene[second], number) != wanted:
        return None
    return Question(f"is the {one.phrase()} {RELATIONS[number]} the {other.phrase()} ?", wanted, "relation")


_MAKERS: Mapping[str, Callable[[Sequence[Thing], Sets, Mapping[str, int], np.random.Generator], Question | None]] = {
    "existence": existence,
    "count": count,
    "attribute": attribute,
    "comparison": comparison,
    "relation": relation,
}


def ask(
    scene: Sequence[Thing], sets: Sets, limits: Mapping[str, int], hardness: float, rng: np.random.Generator
) -> Question | None:
    """One question at random: comparisons and relations with probability ``hardness``, half each; None where no try succeeds."""
    for _ in range(8):
        draw = rng.random()
        if draw < hardness:
            kind = KINDS[3 + int(draw < hardness / 2)]
        else:
            kind = KINDS[int(rng.integers(3))]
        found = _MAKERS[kind](scene, sets, limits, rng)
        if found is not None:
            return found
    return None
