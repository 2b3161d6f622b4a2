"""The words of scenes, and what their texts may say."""

from __future__ import annotations

from inarch.learning.tasks.scenes.language import (
    DIRECTIONS,
    MARKS,
    NUMBERS,
    ORDINALS,
    Description,
    Language,
    Scene,
    Topic,
    plural,
)
from inarch.learning.tasks.scenes.world import ATTRIBUTES, Difficulty, held_out_colour

__all__ = ["SCENES", "WORDS", "plural", "topic"]

_OTHERS = "the a thing things from of above below is are there how many what color shape size texture more than and , ?"

WORDS: tuple[str, ...] = tuple(
    dict.fromkeys(
        [
            *MARKS,
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

SCENES = Language(ATTRIBUTES, "shape", ("size", "texture", "colour"), WORDS, asked={"colour": "color"})


def topic(difficulty: Difficulty) -> Topic:
    """What may be said of scenes.

    Combinations that no training scene has are asked for in vain only in scenes that have one.
    """

    def held_out(shape: int, colour: int) -> bool:
        return held_out_colour(shape, difficulty.colours) == colour

    def in_vain(said: Description, scene: Scene) -> bool:
        values = dict(said.values)
        if not {"shape", "colour"} <= values.keys() or not held_out(values["shape"], values["colour"]):
            return True
        return any(held_out(thing.value("shape"), thing.value("colour")) for thing in scene)

    counts = {"shape": difficulty.shapes, "colour": difficulty.colours, "size": 2, "texture": difficulty.textures}
    single = [name for name, count in counts.items() if count < 2]
    values = {name: range(count) for name, count in counts.items()}
    return Topic(SCENES, SCENES.sets(single), values, difficulty.hardness, in_vain)
