from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from inarch.learning.tasks.scenes.language import Description, Language, Topic
from inarch.learning.tasks.scenes.questions import ANSWERS, KINDS, Question, ask, place
from inarch.learning.tasks.scenes.words import SCENES, topic
from inarch.learning.tasks.scenes.world import ATTRIBUTES, LEVELS, SPLITS, Split, draw, held_out_colour

from tests.learning.tasks.scene_reader import reply


def asked(name: str, split: Split, scenes: int = 1000, each: int = 6) -> list[Question]:
    """Questions whose answers the second reader gives too."""
    about, rng = topic(LEVELS[name]), np.random.default_rng(3)
    questions = []
    for scene in SCENES.things(draw(scenes, LEVELS[name], split, 4)):
        for _ in range(each):
            found = ask(scene, about, rng)
            if found is not None:
                assert reply(found.text, scene, ATTRIBUTES, "shape") == ANSWERS[found.answer], found.text
                questions.append(found)
    return questions


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", LEVELS)
def test_answers_are_right_and_balanced(name: str, split: Split) -> None:
    questions = asked(name, split)
    assert len(questions) > 5900
    by_kind = {kind: Counter(ANSWERS[q.answer] for q in questions if q.kind == kind) for kind in KINDS if kind != "place"}
    for kind in ("existence", "comparison", "relation"):
        counts = by_kind[kind]
        assert set(counts) == {"yes", "no"}
        assert counts.total() > 500
        assert 0.45 < counts["yes"] / counts.total() < 0.55, (kind, counts)
    assert set(by_kind["count"]) == {"zero", "one", "two", "three", "four"}
    assert max(by_kind["count"].values()) < 0.4 * by_kind["count"].total()
    difficulty = LEVELS[name]
    values = [*ATTRIBUTES["shape"][: difficulty.shapes], *ATTRIBUTES["colour"][: difficulty.colours], *ATTRIBUTES["size"]]
    textures = ATTRIBUTES["texture"][: difficulty.textures] if difficulty.textures > 1 else ()
    assert set(by_kind["attribute"]) == {*values, *textures}
    hard = sum(q.kind in ("comparison", "relation") for q in questions) / len(questions)
    assert abs(hard - difficulty.hardness) < 0.1


def test_every_answer_has_one_class() -> None:
    assert len(set(ANSWERS)) == len(ANSWERS)
    assert ANSWERS[:2] == ("no", "yes")


def held_out_named(text: str, colours: int) -> bool:
    words = text.replace("?", "").split()
    pairs = [(shape, ATTRIBUTES["colour"][held_out_colour(n, colours)]) for n, shape in enumerate(ATTRIBUTES["shape"])]
    return any(colour == a and b.startswith(shape) for shape, colour in pairs for a, b in pairwise(words))


@pytest.mark.parametrize("name", LEVELS)
def test_training_does_not_speak_of_held_out_combinations(name: str) -> None:
    # Asked for in vain, they would teach that there are none; where there are some, they are asked for in vain too.
    colours = LEVELS[name].colours
    assert not any(held_out_named(q.text, colours) for q in asked(name, "train"))
    unseen = [q for q in asked(name, "unseen") if q.kind == "existence" and held_out_named(q.text, colours)]
    assert {q.answer for q in unseen} == {0, 1}


def test_what_stands_there_is_asked_only_where_it_has_one_name() -> None:
    about, rng = topic(LEVELS["medium"]), np.random.default_rng(0)
    answers = []
    for scene in SCENES.things(draw(300, LEVELS["medium"], "train", 6)):
        found = place(scene, about, rng)
        if found is not None:
            assert reply(found.text, scene, ATTRIBUTES, "shape") == ANSWERS[found.answer], found.text
            answers.append(found.answer)
    assert len(answers) > 30


def test_kinds_are_the_languages() -> None:
    words = SCENES.words
    only = Language(ATTRIBUTES, "shape", ("size", "texture", "colour"), words, plain=("count",), hard=("place",))
    about: Topic = replace(topic(LEVELS["easy"]), language=only, hardness=0.5)
    rng = np.random.default_rng(0)
    found = [ask(scene, about, rng) for scene in SCENES.things(draw(100, LEVELS["easy"], "train", 0))]
    assert {question.kind for question in found if question} == {"count", "place"}


def test_one_object_has_no_relations() -> None:
    scene = [next(iter(SCENES.things(draw(1, LEVELS["easy"], "train", 0))))[0]]
    rng = np.random.default_rng(0)
    found = [ask(scene, replace(topic(LEVELS["easy"]), hardness=1.0), rng) for _ in range(50)]
    assert {question.kind for question in found if question} <= {"comparison"}
    assert Description(()).among(scene) == [0]
