"""Referring expressions: attributes, relations and ordinals, each true of exactly one object of its scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from inarch.learning.tasks.scenes.language import DIRECTIONS, ORDINALS, RELATIONS, Language, Scene, Thing, Topic
from inarch.learning.tasks.scenes.words import SCENES

GAP = 0.06
"""Two objects are told apart by place only where their centres are this far apart, in sides of the image."""

_SETS_TRIED = 6


@dataclass(frozen=True)
class Expression:
    """A text and the object that it refers to.

    Attributes:
        text: words.
        target: number of the object.
        kind: ``attribute``, ``relation`` or ``ordinal``.
    """

    text: str
    target: int
    kind: str


def ahead(first: Thing, second: Thing, relation: int) -> float:
    """How far the first object stands so to the second; relation is an index into :data:`RELATIONS`."""
    return (second.x - first.x, first.x - second.x, second.y - first.y, first.y - second.y)[relation]


def related(first: Thing, second: Thing, relation: int) -> bool:
    """Whether the first object clearly stands so to the second."""
    return ahead(first, second, relation) > GAP


def standing(scene: Scene, anchor: int, relation: int) -> tuple[list[int], list[int]]:
    """The objects that clearly stand so to another one, and those of which it is doubtful."""
    apart = {n: ahead(thing, scene[anchor], relation) for n, thing in enumerate(scene) if n != anchor}
    return [n for n, a in apart.items() if a > GAP], [n for n, a in apart.items() if -GAP < a <= GAP]


def by_attributes(scene: Scene, topic: Topic, rng: np.random.Generator) -> Expression | None:
    """``the small red circle``."""
    targets = topic.targets(scene)
    target = targets[int(rng.integers(len(targets)))]
    found = topic.unique(scene, target, rng)
    return Expression(f"the {topic.language.phrase(found)}", target, "attribute") if found else None


def by_relation(scene: Scene, topic: Topic, rng: np.random.Generator) -> Expression | None:
    """``the circle left of the red square``: what is described first would be ambiguous alone."""
    anchor = int(rng.integers(len(scene)))
    base = topic.unique(scene, anchor, rng)
    if base is None:
        return None
    relation = int(rng.integers(len(RELATIONS)))
    # Who nearly stands so is left out of what is asked for, not counted as one who doesn't.
    near, doubtful = standing(scene, anchor, relation)
    targets = [n for n in near if n in topic.targets(scene)]
    rng.shuffle(targets)
    for target in targets:
        for place in rng.permutation(len(topic.sets))[:_SETS_TRIED]:
            head = topic.language.describe(scene[target], topic.sets[place])
            described = head.among(scene)
            if len(described) > 1 and [n for n in described if n in near] == [target] and not set(described) & set(doubtful):
                first, second = topic.language.phrase(head), topic.language.phrase(base)
                return Expression(f"the {first} {RELATIONS[relation]} the {second}", target, "relation")
    return None


def by_order(scene: Scene, topic: Topic, rng: np.random.Generator) -> Expression | None:
    """``the second circle from the left``."""
    targets = topic.targets(scene)
    target = targets[int(rng.integers(len(targets)))]
    for place in rng.permutation(len(topic.sets))[:_SETS_TRIED]:
        group = topic.language.describe(scene[target], topic.sets[place])
        members = group.among(scene)
        if len(members) < 2:
            continue
        direction = int(rng.integers(len(DIRECTIONS)))
        order = sorted(members, key=lambda n: _along(scene[n], direction))
        rank = order.index(target)
        if rank < len(ORDINALS) and _apart(scene, order, rank, direction):
            phrase = topic.language.phrase(group)
            return Expression(f"the {ORDINALS[rank]} {phrase} from the {DIRECTIONS[direction]}", target, "ordinal")
    return None


def at_the_edge(scene: Scene) -> Expression:
    """``the first thing from the left``, or from where it is clearest: can be said of every scene."""

    def lead(direction: int) -> float:
        places = sorted(_along(thing, direction) for thing in scene)
        return places[1] - places[0] if len(places) > 1 else 1.0

    direction = max(range(len(DIRECTIONS)), key=lead)
    target = min(range(len(scene)), key=lambda n: _along(scene[n], direction))
    return Expression(f"the first thing from the {DIRECTIONS[direction]}", target, "ordinal")


def _along(thing: Thing, direction: int) -> float:
    return (thing.x, -thing.x, thing.y, -thing.y)[direction]


def _apart(scene: Scene, order: Sequence[int], rank: int, direction: int) -> bool:
    """Whether everyone up to the rank, and the next one, clearly stand one behind the other."""
    places = [_along(scene[n], direction) for n in order[: rank + 2]]
    return all(b - a > GAP for a, b in pairwise(places))


def refer(scene: Scene, topic: Topic, hardness: float, rng: np.random.Generator) -> Expression | None:
    """One expression at random: relations and ordinals with probability ``hardness``, half each; None where no try succeeds."""
    for _ in range(6):
        draw = rng.random()
        if draw < hardness / 2:
            found = by_relation(scene, topic, rng)
        elif draw < hardness:
            found = by_order(scene, topic, rng)
        else:
            found = by_attributes(scene, topic, rng)
        if found is not None:
            return found
    return None


def meaning(text: str, scene: Scene, language: Language = SCENES) -> list[int]:
    """Which objects an expression is true of, read from its words alone: what checks the generators.

    Clear relations count, as :func:`related` has them.
    """
    said = text.removeprefix("the ")
    for number, relation in enumerate(RELATIONS):
        head, found, base = said.partition(f" {relation} the ")
        if found:
            (anchor,) = language.read(base).among(scene)
            near = standing(scene, anchor, number)[0]
            return [n for n in language.read(head).among(scene) if n in near]
    first, _, rest = said.partition(" ")
    if first in ORDINALS:
        group, _, side = rest.partition(" from the ")
        direction = DIRECTIONS.index(side)
        members = sorted(language.read(group).among(scene), key=lambda n: _along(scene[n], direction))
        return members[ORDINALS.index(first) :][:1]
    return language.read(said).among(scene)
