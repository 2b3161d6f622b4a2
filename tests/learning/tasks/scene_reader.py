"""A second reader of scenes' texts, written without the first: regular expressions and counting, from words and plain numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from inarch.learning.tasks.scenes.language import Thing

Attributes = Mapping[str, Sequence[str]]

GAP = 0.06
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven")


def singular(noun: str) -> str:
    for ending, kept in (("sses", 2), ("xes", 2), ("uses", 2), ("s", 1)):
        if noun.endswith(ending):
            return noun[:-kept]
    raise AssertionError(f"{noun} is no plural")


def select(phrase: str, things: Sequence[Thing], attributes: Attributes, *, many: bool = False) -> set[int]:
    """The objects that a noun phrase fits, its every word accounted for."""
    words = phrase.split()
    if many:
        words[-1] = singular(words[-1])
    value_of = {value: (name, number) for name, values in attributes.items() for number, value in enumerate(values)}
    found = set(range(len(things)))
    while words:
        for size in (2, 1):
            word = " ".join(words[:size])
            if word in value_of:
                name, number = value_of[word]
                found = {n for n in found if things[n].values[name] == number}
                break
        else:
            assert words == ["thing"], f"{phrase}: what is {words}"
            size = 1
        words = words[size:]
    return found


def offset(one: Thing, other: Thing, relation: str) -> float:
    """How far the first stands that way, image coordinates growing to the right and downwards."""
    return {
        "left of": other.x - one.x,
        "right of": one.x - other.x,
        "above": other.y - one.y,
        "below": one.y - other.y,
    }[relation]


_RELATION = re.compile(r"the (.+?) (left of|right of|above|below) the (.+)")
_ORDINAL = re.compile(r"the (first|second|third) (.+) from the (left|right|top|bottom)")


def referents(text: str, things: Sequence[Thing], attributes: Attributes) -> set[int]:
    """The objects that an expression may be said to mean, with doubtful ones among them."""
    if ordinal := _ORDINAL.fullmatch(text):
        rank = ("first", "second", "third").index(ordinal[1])
        axis, sign = {"left": ("x", 1), "right": ("x", -1), "top": ("y", 1), "bottom": ("y", -1)}[ordinal[3]]
        places = {n: sign * getattr(things[n], axis) for n in select(ordinal[2], things, attributes)}
        # Whoever may have this rank if everyone were moved by half the gap.
        return {
            n
            for n, at in places.items()
            if sum(p < at - GAP for p in places.values()) <= rank <= sum(p <= at + GAP for p in places.values()) - 1
        }
    if relation := _RELATION.fullmatch(text):
        (anchor,) = select(relation[3], things, attributes)
        return {
            n for n in select(relation[1], things, attributes) - {anchor} if offset(things[n], things[anchor], relation[2]) > -GAP
        }
    return select(text.removeprefix("the "), things, attributes)


def reply(text: str, things: Sequence[Thing], attributes: Attributes, noun: str) -> str:
    """The answer to a question; an assertion fails where it has none or several."""
    said = text.removesuffix(" ?")
    if match := re.fullmatch(r"is there a (.+)", said):
        return "yes" if select(match[1], things, attributes) else "no"
    if match := re.fullmatch(r"how many (.+) are there", said):
        return NUMBERS[len(select(match[1], things, attributes, many=True))]
    if match := re.fullmatch(r"are there more (.+) than (.+)", said):
        first, second = (len(select(part, things, attributes, many=True)) for part in match.groups())
        assert first != second
        return "yes" if first > second else "no"
    if match := re.fullmatch(r"what is (left of|right of|above|below) the (.+)", said):
        (anchor,) = select(match[2], things, attributes)
        apart = {n: offset(things[n], things[anchor], match[1]) for n in range(len(things)) if n != anchor}
        assert max(apart.values()) > GAP
        (kind,) = {things[n].values[noun] for n, far in apart.items() if far > -GAP}
        return attributes[noun][kind]
    if match := re.fullmatch(r"is the (.+?) (left of|right of|above|below) the (.+)", said):
        (first,), (second,) = (select(part, things, attributes) for part in (match[1], match[3]))
        apart_by = offset(things[first], things[second], match[2])
        assert abs(apart_by) > GAP
        return "yes" if apart_by > 0 else "no"
    match = re.fullmatch(r"what(?: (color|shape|size|texture))? is the (.+)", said)
    assert match, text
    (number,) = select(match[2], things, attributes)
    name = {"color": "colour", None: noun}.get(match[1], match[1])
    return attributes[name][things[number].values[name]]
