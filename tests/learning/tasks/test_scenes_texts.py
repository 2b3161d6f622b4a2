from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from inarch.learning.tasks.scenes.baseline import question_only
from inarch.learning.tasks.scenes.data import ScenesConfig, ScenesData
from inarch.learning.tasks.scenes.language import ENDINGS, MARKS, START, STOP, Description, Language, pack, plural
from inarch.learning.tasks.scenes.questions import ANSWERS
from inarch.learning.tasks.scenes.texts import KINDS, PHRASES, Kind, Texts, write_texts
from inarch.learning.tasks.scenes.words import SCENES, WORDS
from inarch.learning.tasks.scenes.world import ATTRIBUTES, LEVELS, draw
from inarch.structure.errors import InarchError

from tests.learning.tasks.scene_reader import referents, reply

SCENES_OF = {name: draw(200, difficulty, "train", 7) for name, difficulty in LEVELS.items()}


def texts(kind: Kind, name: str = "medium", seed: int = 0) -> Texts:
    return write_texts(SCENES_OF[name], kind, 5, LEVELS[name], seed)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_depend_on_the_seed_alone(kind: Kind) -> None:
    first, again, other = texts(kind), texts(kind), texts(kind, seed=1)
    for field in fields(first):
        assert np.array_equal(getattr(first, field.name), getattr(again, field.name))
    assert first.ids.shape != other.ids.shape or not np.array_equal(first.ids, other.ids)


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_fit_together(kind: Kind) -> None:
    found = texts(kind)
    places = PHRASES if kind == "grounding" else 1
    rows, length = (200, 5), found.ids.shape[-1]
    assert found.mask.shape == found.ids.shape == (*rows, length)
    assert found.targets.shape == (*rows, places)
    assert found.spans.shape == (*rows, places, length)
    assert found.answers.shape == found.kinds.shape == rows
    assert (found.ids[found.mask == 0] == 0).all()
    assert (np.diff(found.mask, axis=-1) <= 0).all()
    assert (found.ids[..., 0] == START).all()
    assert ((found.ids == STOP).sum(-1) == 1).all()
    assert found.mask.sum(-1).max() == length
    assert found.ids.max() < len(WORDS)
    assert (found.targets < SCENES_OF["medium"].count[:, None, None]).all()
    assert (found.spans.any(-1) == (found.targets >= 0)).all()
    assert not (found.spans & (found.mask == 0)[:, :, None]).any()
    assert ((found.answers >= 0) == (kind == "vqa")).all()
    assert ((found.targets >= 0).any(-1) == (kind != "vqa")).all()


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("kind", ["grounding", "referring"])
def test_every_span_means_its_target(kind: Kind, name: str) -> None:
    found = texts(kind, name)
    lengths = set()
    for row, scene in enumerate(SCENES.things(SCENES_OF[name])):
        for ids, targets, spans in zip(found.ids[row], found.targets[row], found.spans[row], strict=True):
            real = targets >= 0
            lengths.add(int(real.sum()))
            assert len(set(targets[real])) == real.sum()
            for target, span in zip(targets[real], spans[real], strict=True):
                assert referents(SCENES.decode(ids[span].tolist()), scene, ATTRIBUTES) == {target}
            # Nothing but commas lies between the spans.
            assert set(SCENES.decode(ids[~spans.any(0)].tolist()).split()) <= {","}
    assert lengths == ({1, 2, 3} if kind == "grounding" else {1})


@pytest.mark.parametrize("name", LEVELS)
def test_questions_have_their_answers(name: str) -> None:
    found = texts("vqa", name)
    for row, scene in enumerate(SCENES.things(SCENES_OF[name])):
        for ids, answer in zip(found.ids[row], found.answers[row], strict=True):
            assert reply(SCENES.decode(ids.tolist()), scene, ATTRIBUTES, "shape") == ANSWERS[answer]


def test_words() -> None:
    assert len(set(WORDS)) == len(WORDS) < 128
    assert WORDS[:3] == MARKS
    text = "how many small crosses are there ?"
    assert SCENES.decode(SCENES.encode(text)) == text
    with pytest.raises(InarchError, match="scenes have no word 'dog'"):
        SCENES.encode("the dog")


def test_plurals_of_words_that_have_none_are_in_two_pieces() -> None:
    words = (*MARKS, *ENDINGS, "fox", "wine", "glass", "bus", "thing", "small")
    animals = Language({"name": ("fox", "wine glass", "bus")}, "name", (), words)
    assert animals.decode(animals.encode("foxes wine glasses buses things small")) == "foxes wine glasses buses things small"
    assert animals.encode("foxes") == [START, 5, 4, STOP]
    assert [plural(word) for word in ("fox", "glass", "dog")] == ["foxes", "glasses", "dogs"]
    assert animals.read("wine glass") == Description((("name", 1),))
    with pytest.raises(InarchError, match="no word 'smalles'"):
        animals.encode("smalles")


def test_pack() -> None:
    ids, mask = pack([[1, 5, 2], [1, 2]])
    assert ids.tolist() == [[1, 5, 2], [1, 2, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert pack([[1, 2]], 4)[0].shape == (1, 4)


def questions(rows: list[tuple[str, str]]) -> Texts:
    ids, mask = pack([SCENES.encode(text) for text, _ in rows])
    answers = np.array([[ANSWERS.index(answer)] for _, answer in rows])
    targets, spans = np.full((len(rows), 1, 1), -1), np.zeros((len(rows), 1, 1, ids.shape[1]), bool)
    return Texts(ids[:, None], mask[:, None], targets, spans, answers, np.full(answers.shape, "vqa"))


def test_question_only() -> None:
    train = questions(
        [
            ("is there a red circle ?", "yes"),
            ("is there a red circle ?", "yes"),
            ("is there a red circle ?", "no"),
            ("is there a ring ?", "no"),
            ("is there a star ?", "no"),
            ("how many things are there ?", "four"),
        ]
    )
    held = questions(
        [
            ("is there a red circle ?", "yes"),  # known
            ("is there a heart ?", "no"),  # by its first words
            ("how many hearts are there ?", "four"),
            ("what shape is the thing ?", "no"),  # by the commonest of all
            ("is there a ring ?", "yes"),
        ]
    )
    assert question_only(train, held) == 0.8


def test_questions_alone_do_not_say_the_answer() -> None:
    config = ScenesConfig(LEVELS["medium"], "train", 1500, 4, 16)
    train, test = (
        ScenesData(c, draw(c.count, c.level, c.split, 0), np.zeros(0, np.uint8))
        for c in (config, ScenesConfig(LEVELS["medium"], "test", 500, 4, 16))
    )
    assert 0.4 < question_only(train.texts("vqa"), test.texts("vqa")) < 0.65
