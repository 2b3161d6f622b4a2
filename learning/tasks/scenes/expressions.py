"""Referring expressions: attributes, relations and ordinals, each true of exactly one object of its scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inarch.learning.tasks.scenes.words import DIRECTIONS, ORDINALS, RELATIONS, Description, Thing, description, unique

GAP = 0.06
"""Two objects are told apart by place only where their centres are this far apart, in sides of the image."""

Sets = Sequence[tuple[str, ...]]


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


def related(first: Thing, second: Thing, relation: int) -> bool:
    """Whether the first object clearly stands so to the second; relation is an index into :data:`RELATIONS`."""
    return (second.x - first.x, first.x - second.x, second.y - first.y, first.y - second.y)[relation] > GAP


def by_attributes(scene: Sequence[Thing], sets: Sets, rng: np.random.Generator) -> Expression | None:
    """``the small red circle``."""
    target = int(rng.integers(len(scene)))
    found = unique(scene, target, sets, rng)
    return Expression(f"the {found.phrase()}", target, "attribute") if found else None


def by_relation(scene: Sequence[Thing], sets: Sets, rng: np.random.Generator) -> Expression | None:
    """``the circle left of the red square``: what is described first would be ambiguous alone."""
    anchor = int(rng.integers(len(scene)))
    base = unique(scene, anchor, sets, rng)
    if base is None:
        return None
    relation = int(rng.integers(len(RELATIONS)))
    # Who nearly stands so is left out of what is asked for, not counted as one who doesn't.
    near = [n for n, thing in enumerate(scene) if n != anchor and related(thing, scene[anchor], relation)]
    doubtful = [n for n, thing in enumerate(scene) if n != anchor and _doubtful(thing, scene[anchor], relation)]
    rng.shuffle(near)
    for target in near:
        for place in rng.permutation(len(sets))[:6]:
            head = description(scene[target], sets[place])
            described = head.among(scene)
            if len(described) > 1 and [n for n in described if n in near] == [target] and not set(described) & set(doubtful):
                return Expression(f"the {head.phrase()} {RELATIONS[relation]} the {base.phrase()}", target, "relation")
    return None


def _doubtful(first: Thing, second: Thing, relation: int) -> bool:
    apart = (second.x - first.x, first.x - second.x, second.y - first.y, first.y - second.y)[relation]
    return -GAP < apart <= GAP


def by_order(scene: Sequence[Thing], sets: Sets, rng: np.random.Generator) -> Expression | None:
    """``the second circle from the left``."""
    target = int(rng.integers(len(scene)))
    for place in rng.permutation(len(sets))[:6]:
        group = description(scene[target], sets[place])
        members = group.among(scene)
        if len(members) < 2:
            continue
        direction = int(rng.integers(len(DIRECTIONS)))
        along = sorted(members, key=lambda n: _along(scene[n], direction))
        rank = along.index(target)
        if rank < len(ORDINALS) and _apart(scene, along, rank, direction):
            return Expression(f"the {ORDINALS[rank]} {group.phrase()} from the {DIRECTIONS[direction]}", target, "ordinal")
    return None


def _along(thing: Thing, direction: int) -> float:
    return (thing.x, -thing.x, thing.y, -thing.y)[direction]


def _apart(scene: Sequence[Thing], order: Sequence[int], rank: int, direction: int) -> bool:
    """Whether everyone up to the rank, and the next one, clearly stand one behind the other."""
    places = [_along(scene[n], direction) for n in order[: rank + 2]]
    return all(b - a > GAP for a, b in zip(places, places[1:], strict=False))


def refer(scene: Sequence[Thing], sets: Sets, hardness: float, rng: np.random.Generator) -> Expression | None:
    """One expression at random: relations and ordinals with probability ``hardness``, half each; None where no try succeeds."""
    for _ in range(6):
        draw = rng.random()
        if draw < hardness / 2:
            found = by_relation(scene, sets, rng)
        elif draw < hardness:
            found = by_order(scene, sets, rng)
        else:
            found = by_attributes(scene, sets, rng)
        if found is not None:
            return found
    return None


def meaning(text: str, scene: Sequence[Thing]) -> list[int]:
    """Which objects an expression is true of, read from its words alone: what checks the generators.

    Clear relations count, as :func:`related` has them.
    """
    words = text.split()[1:]
    for number, relation in enumerate(RELATIONS):
        parts = " ".join(words).split(f" {relation} the ")
        if len(parts) == 2:
            (anchor,) = _read(parts[1].split()).among(scene)
            return [n for n in _read(parts[0].split()).among(scene) if n != anchor and related(scene[n], scene[anchor], number)]
    if words[0] in ORDINALS and "from" in words:
        direction = DIRECTIONS.index(words[-1])
        members = sorted(_read(words[1 : words.index("from")]).among(scene), key=lambda n: _along(scene[n], direction))
        return [members[ORDINALS.index(words[0])]]
    return _read(words).among(scene)


def _read(words: Sequence[str]) -> Description:
    from inarch.learning.tasks.scenes.world import ATTRIBUTES

    found = {name: values.index(word) for word in words for name, values in ATTRIBUTES.items() if word in values}
    return Description(tuple((name, found[name]) for name in ATTRIBUTES if name in found))
