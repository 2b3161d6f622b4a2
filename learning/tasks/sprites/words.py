"""What sprites are called, and what may be said of them."""

from __future__ import annotations

from inarch.learning.tasks.scenes.language import (
    DIRECTIONS,
    ENDINGS,
    MARKS,
    MOST,
    NUMBERS,
    ORDINALS,
    Language,
    Scene,
    Topic,
)
from inarch.learning.tasks.scenes.world import Split

_ONE_WORD = (
    "monkey fox cat tiger zebra elephant penguin owl frog turtle snake dolphin octopus snail crab rose sunflower cactus mushroom "
    "pineapple banana lemon watermelon carrot avocado pretzel hamburger pizza doughnut lollipop castle tractor bicycle "
    "helicopter rocket anchor sailboat umbrella crown guitar trumpet drum bell camera key hammer magnet envelope"
)
_TWO_WORDS = (
    "palm tree, wine glass, beer mug, light bulb, birthday cake, alarm clock, police car, ice cream, test tube, red apple, "
    "money bag, safety pin"
)

NAMES: tuple[str, ...] = (*_ONE_WORD.split(), *_TWO_WORDS.split(", "))
"""Concepts, by the names that emojibase has for them: concrete, told apart at a glance in both styles, with a regular plural. No
two share a word, so that each word names one concept."""

HELD_OUT: tuple[int, ...] = tuple(range(5, len(NAMES), 6))
"""Concepts that neither pictures nor texts of training have."""

KNOWN: tuple[int, ...] = tuple(number for number in range(len(NAMES)) if number not in HELD_OUT)

ATTRIBUTES: dict[str, tuple[str, ...]] = {"concept": NAMES, "size": ("small", "large")}
"""Attribute -> its values."""

_OTHERS = "the a thing things from of above below is are there how many what size more than , ?"

WORDS: tuple[str, ...] = tuple(
    dict.fromkeys(
        [
            *MARKS,
            *ENDINGS,
            *(word for values in ATTRIBUTES.values() for value in values for word in value.split()),
            *NUMBERS[: MOST + 1],
            *ORDINALS,
            *DIRECTIONS,
            *_OTHERS.split(),
        ]
    )
)
"""Every word, at the place that is its token; a plural is the word and an ending."""

COLUMNS = {"concept": "shape"}
"""A sprite's concept is kept where an object's shape is."""

SPRITES = Language(
    ATTRIBUTES, "concept", ("size",), WORDS, asked={"concept": ""}, columns=COLUMNS, hard=("comparison", "relation", "place")
)

ANSWERS: tuple[str, ...] = SPRITES.answers
"""Every answer, at the place that is its class."""


def topic(split: Split, hardness: float) -> Topic:
    """What may be said: of held-out concepts only in the split that has them, where expressions refer to nothing else."""
    sizes = range(len(ATTRIBUTES["size"]))
    if split == "unseen":
        values = {"concept": range(len(NAMES)), "size": sizes}
        return Topic(SPRITES, SPRITES.sets(), values, hardness, targets=_new)
    return Topic(SPRITES, SPRITES.sets(), {"concept": KNOWN, "size": sizes}, hardness)


def _new(scene: Scene) -> list[int]:
    """The objects that training does not know."""
    return [number for number, thing in enumerate(scene) if thing.value("concept") in HELD_OUT]
