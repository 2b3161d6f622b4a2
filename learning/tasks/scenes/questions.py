"""Questions about a scene, balanced: the answer is drawn first, then a question that has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from inarch.learning.tasks.scenes.expressions import GAP, ahead, standing
from inarch.learning.tasks.scenes.language import MOST, NUMBERS, RELATIONS, Description, Scene, Topic
from inarch.learning.tasks.scenes.words import SCENES

ANSWERS: tuple[str, ...] = SCENES.answers
"""Every answer about scenes, at the place that is its class."""


@dataclass(frozen=True)
class Question:
    """A question and its answer, an index into the language's answers."""

    text: str
    answer: int
    kind: str


def existence(scene: Scene, topic: Topic, rng: np.random.Generator) -> Question | None:
    """``is there a red circle ?``: what is asked for in vain differs from an object of the scene in one attribute."""
    wanted = int(rng.integers(2))
    for _ in range(20):
        asked = topic.some(scene, rng)
        if not wanted:
            asked = _changed(asked, topic, rng)
        if bool(asked.among(scene)) == bool(wanted) and (wanted or topic.in_vain(asked, scene)):
            return Question(f"is there a {topic.language.phrase(asked)} ?", wanted, "existence")
    return None


def _changed(said: Description, topic: Topic, rng: np.random.Generator) -> Description:
    """A description with another value of one attribute."""
    place = int(rng.integers(len(said.values)))
    name, value = said.values[place]
    others = [other for other in topic.values[name] if other != value]
    return Description((*said.values[:place], (name, others[int(rng.integers(len(others)))]), *said.values[place + 1 :]))


def count(scene: Scene, topic: Topic, rng: np.random.Generator) -> Question | None:
    """``how many red things are there ?``, every number up to :data:`MOST` alike."""
    wanted = int(rng.integers(MOST + 1))
    for _ in range(40):
        asked = topic.some(scene, rng)
        if not wanted:
            asked = _changed(asked, topic, rng)
        if len(asked.among(scene)) == wanted and (wanted or topic.in_vain(asked, scene)):
            text = f"how many {topic.language.phrase(asked, many=True)} are there ?"
            return Question(text, topic.language.answers.index(NUMBERS[wanted]), "count")
    return None


def attribute(scene: Scene, topic: Topic, rng: np.random.Generator) -> Question | None:
    """``what color is the small circle ?``"""
    language = topic.language
    names = [name for name in language.attributes if len(topic.values[name]) > 1]
    name = names[int(rng.integers(len(names)))]
    number = int(rng.integers(len(scene)))
    told = topic.unique(scene, number, rng, without=name)
    if told is None:
        return None
    asked = f"what {language.asked.get(name, name)}".rstrip()
    value = language.attributes[name][scene[number].value(name)]
    return Question(f"{asked} is the {language.phrase(told)} ?", language.answers.index(value), "attribute")


def comparison(scene: Scene, topic: Topic, rng: np.random.Generator) -> Question | None:
    """``are there more circles than red things ?``; equal numbers are not asked about."""
    wanted = int(rng.integers(2))
    for _ in range(6):
        first, second = (topic.some(scene, rng, 4) for _ in range(2))
        more = len(first.among(scene)) - len(second.among(scene))
        if more and (more > 0) == bool(wanted):
            one, other = (topic.language.phrase(said, many=True) for said in (first, second))
            return Question(f"are there more {one} than {other} ?", wanted, "comparison")
    return None


def relation(scene: Scene, topic: Topic, rng: np.random.Generator) -> Question | None:
    """``is the red circle left of the square ?``"""
    if len(scene) < 2:
        return None
    first, second = (int(n) for n in rng.choice(len(scene), 2, replace=False))
    one, other = topic.unique(scene, first, rng), topic.unique(scene, second, rng)
    wanted, number = int(rng.integers(2)), int(rng.integers(len(RELATIONS)))
    apart = ahead(scene[first], scene[second], number)
    if one is None or other is None or abs(apart) <= GAP:
        return None
    if (apart > 0) != bool(wanted):
        number ^= 1  # the opposite one
    text = f"is the {topic.language.phrase(one)} {RELATIONS[number]} the {topic.language.phrase(other)} ?"
    return Question(text, wanted, "relation")


def place(scene: Scene, topic: Topic, rng: np.random.Generator) -> Question | None:
    """``what is left of the small cat ?``, where everything that may be said to stand there has one name."""
    anchor, number = int(rng.integers(len(scene))), int(rng.integers(len(RELATIONS)))
    told = topic.unique(scene, anchor, rng)
    near, doubtful = standing(scene, anchor, number)
    noun = topic.language.noun
    if told is None or not near or len({scene[n].value(noun) for n in (*near, *doubtful)}) > 1:
        return None
    answer = topic.language.answers.index(topic.language.attributes[noun][scene[near[0]].value(noun)])
    return Question(f"what is {RELATIONS[number]} the {topic.language.phrase(told)} ?", answer, "place")


_MAKERS: Mapping[str, Callable[[Scene, Topic, np.random.Generator], Question | None]] = {
    "existence": existence,
    "count": count,
    "attribute": attribute,
    "comparison": comparison,
    "relation": relation,
    "place": place,
}

KINDS = tuple(_MAKERS)

_AGAIN = 3
"""Tries for one kind: those that seldom succeed would else be seldom asked."""


def ask(scene: Scene, topic: Topic, rng: np.random.Generator) -> Question | None:
    """One question at random: hard ones with the topic's hardness; None where no try succeeds."""
    for _ in range(8):
        kinds = topic.language.hard if rng.random() < topic.hardness else topic.language.plain
        maker = _MAKERS[kinds[int(rng.integers(len(kinds)))]]
        for _ in range(_AGAIN):
            found = maker(scene, topic, rng)
            if found is not None:
                return found
    return None
