from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("PIL")

from inarch.learning.tasks.drawn import attribute_words
from inarch.learning.tasks.scenes.baseline import question_only
from inarch.learning.tasks.scenes.data import ScenesConfig
from inarch.learning.tasks.scenes.expressions import meaning
from inarch.learning.tasks.scenes.task import ScenesTask
from inarch.learning.tasks.scenes.texts import KINDS
from inarch.learning.tasks.sprites import package
from inarch.learning.tasks.sprites.data import SPLITS, SpritesData, SpriteSplit
from inarch.learning.tasks.sprites.package import PINS, STYLES, Pins, find_packages, load_pictures, measure
from inarch.learning.tasks.sprites.words import ANSWERS, ATTRIBUTES, HELD_OUT, KNOWN, NAMES, SPRITES, WORDS
from inarch.learning.tasks.sprites.world import LEVELS
from inarch.structure.errors import DataError

from tests.learning.tasks.emoji import colour, make_packages, write
from tests.learning.tasks.scene_reader import referents, reply

REAL = os.environ.get("INARCH_SPRITES")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_packages(tmp_path_factory.mktemp("sprites"))


@pytest.fixture(scope="module")
def pins(home: Path) -> Pins:
    return measure(home)


@pytest.fixture(scope="module")
def data(home: Path, pins: Pins) -> dict[SpriteSplit, SpritesData]:
    """A split of each sort."""
    return {split: compose(split, home, pins) for split in SPLITS}


def compose(
    split: SpriteSplit, home: Path | None = None, pins: Pins = PINS, *, level: str = "medium", **changes: Any
) -> SpritesData:
    scenes, style = SPLITS[split]
    sizes = {"count": 300, "texts": 4, "side": 64, "seed": 1} | changes
    return SpritesData.compose(ScenesConfig(LEVELS[level], scenes, **sizes), style, home, pins)


def test_words_fit_the_smallest_vocabulary() -> None:
    assert len(WORDS) == len(set(WORDS)) < 128
    assert len(ANSWERS) == len(set(ANSWERS)) == 7 + 60 + 2
    words = [word for name in NAMES for word in name.split()]
    assert len(words) == len(set(words)), "a word names two concepts"
    assert not set(words) & set("left right top bottom small large thing".split())
    assert sorted((*HELD_OUT, *KNOWN)) == list(range(60))
    table = attribute_words(SPRITES, 200)
    assert table.shape == (200, 2)
    assert table[WORDS.index("palm")].tolist() == table[WORDS.index("tree")].tolist() == [NAMES.index("palm tree"), -1]
    assert table[WORDS.index("large")].tolist() == [-1, 1]
    assert (table >= 0).sum() == len(words) + 2


def test_every_name_can_be_asked_for() -> None:
    for name in NAMES:
        for text in (f"is there a small {name} ?", f"the {name} left of the large thing"):
            assert SPRITES.decode(SPRITES.encode(text)) == text


def test_pictures_are_cut_to_what_is_painted(home: Path, pins: Pins) -> None:
    for style in STYLES:
        pictures = load_pictures(style, home, pins)
        assert [picture.shape for picture in pictures[:3]] == [(40, 40, 4), (20, 40, 4), (40, 20, 4)]
        for number, picture in enumerate(pictures):
            assert (picture == (*colour(number, style), 255)).all()


def test_packages_are_found_below_npms_prefix_and_by_the_environment(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "node_modules").symlink_to(home)
    assert find_packages(tmp_path) == tmp_path / "node_modules"
    monkeypatch.setenv("INARCH_SPRITES", str(home))
    assert find_packages() == home
    monkeypatch.delenv("INARCH_SPRITES")
    with pytest.raises(
        DataError, match=r"nothing says where .* \(npm install .*google@16\.0\.0 .*twitter@16\.0\.0 .*data@17\.0\.0"
    ):
        find_packages()


def test_other_packages_are_refused(tmp_path: Path, pins: Pins) -> None:
    home = make_packages(tmp_path)
    with pytest.raises(DataError, match=r"emoji\.json: does not hold what the pinned version does: its sha256 is"):
        load_pictures("google", home)
    picture = home / "emoji-datasource-google/img/google/64/1f007.png"
    picture.write_bytes(picture.read_bytes() + b"\0")
    with pytest.raises(DataError, match=r"64: does not hold what"):
        load_pictures("google", home, pins)
    assert len(load_pictures("twitter", home, pins)) == 60
    picture.unlink()
    with pytest.raises(DataError, match=r"1f007\.png: cannot be read: No such file"):
        load_pictures("google", home, pins)
    table = home / "emoji-datasource-twitter/emoji.json"
    write(table, [row | {"has_img_twitter": row["image"] != "1f007.png"} for row in json.loads(table.read_bytes())])
    with pytest.raises(DataError, match=f"no picture of '{NAMES[7]}'"):
        package.picture_paths(home, "twitter")
    write(home / "emojibase-data/en/data.json", [])
    with pytest.raises(DataError, match=f"no emoji '{NAMES[0]}'"):
        package.picture_paths(home, "twitter")
    (home / "emojibase-data/en/data.json").write_text("{")
    with pytest.raises(DataError, match=r"data\.json: is not JSON"):
        package.picture_paths(home, "twitter")
    write(home / "emojibase-data/package.json", {"version": "1.0.0"})
    with pytest.raises(DataError, match=r"is not version 17\.0\.0 of emojibase-data"):
        find_packages(home)


def used(data: SpritesData) -> np.ndarray:
    return np.arange(data.scenes.shape.shape[1]) < data.scenes.count[:, None]


def test_scenes_depend_on_the_seed_alone(home: Path, pins: Pins, data: dict[SpriteSplit, SpritesData]) -> None:
    again, other = (compose("train", home, pins, seed=seed) for seed in (1, 2))
    assert np.array_equal(data["train"].images, again.images)
    assert not np.array_equal(data["train"].images, other.images)
    for kind in KINDS:
        first, second = data["train"].texts(kind), again.texts(kind)
        assert all(np.array_equal(getattr(first, field.name), getattr(second, field.name)) for field in fields(first))


def test_splits(data: dict[SpriteSplit, SpritesData]) -> None:
    for split, found in data.items():
        new = np.isin(found.scenes.shape, HELD_OUT) & used(found)
        assert new[:, 0].all() if split == "concept" else not new.any()
        assert not new[:, 1:].any()
        low, high = LEVELS["medium"].objects
        assert set(found.scenes.count.tolist()) == set(range(low, high + 1))
    images = {split: {image.tobytes() for image in found.images} for split, found in data.items()}
    assert all(len(images[split]) == 300 for split in images)
    assert not any(images[a] & images[b] for a in images for b in images if a != b)
    test, style = data["test"].scenes, data["style"].scenes
    assert np.array_equal(test.shape, style.shape)
    assert np.abs(test.boxes - style.boxes).max() < 1e-6  # the two styles have the same proportions here
    assert not np.array_equal(test.x, data["train"].scenes.x)


@pytest.mark.parametrize("split", SPLITS)
def test_boxes_are_what_is_painted(data: dict[SpriteSplit, SpritesData], split: SpriteSplit) -> None:
    found = data[split]
    boxes = found.scenes.boxes
    for row, k in zip(*np.nonzero(used(found)), strict=True):
        x, y, wide, high = boxes[row, k] * 64
        left, top, right, bottom = (round(float(v)) for v in (x - wide / 2, y - high / 2, x + wide / 2, y + high / 2))
        assert np.abs(np.array([left, top]) - (x - wide / 2, y - high / 2)).max() < 1e-3
        assert min(left, top) >= 0
        assert max(right, bottom) <= 64
        image = found.images[row].astype(int)
        inside = np.abs(image - colour(int(found.scenes.shape[row, k]), SPLITS[split][1])).max(-1) <= 1
        assert inside[top:bottom, left:right].all()
        beside = [inside[top:bottom, at] for at in (left - 1, right) if 0 <= at < 64]
        beside += [inside[at, left:right] for at in (top - 1, bottom) if 0 <= at < 64]
        assert not any(line.all() for line in beside)
        proportion = ((1, 1), (2, 1), (1, 2))[int(found.scenes.shape[row, k]) % 3]
        assert abs(wide * proportion[1] - high * proportion[0]) <= 2
        assert (max(wide, high) > 18) == (found.scenes.size[row, k] == 1)


@pytest.mark.parametrize("split", SPLITS)
def test_expressions_are_true_of_their_target_alone(data: dict[SpriteSplit, SpritesData], split: SpriteSplit) -> None:
    found = data[split]
    for kind in ("grounding", "referring"):
        texts = found.texts(kind)
        for row, scene in enumerate(SPRITES.things(found.scenes)):
            for ids, targets, spans in zip(texts.ids[row], texts.targets[row], texts.spans[row], strict=True):
                for target, span in zip(targets[targets >= 0].tolist(), spans, strict=False):
                    text = SPRITES.decode(ids[span].tolist())
                    assert referents(text, scene, ATTRIBUTES) == {target}, text
                    assert meaning(text, scene, SPRITES) == [target], text
                    assert split != "concept" or scene[target].value("concept") in HELD_OUT
        if kind == "referring" and split != "concept":
            assert min(Counter(texts.kinds.ravel().tolist()).values()) > 20
            assert set(texts.kinds.ravel().tolist()) == {"attribute", "relation", "ordinal"}


def said(ids: np.ndarray) -> set[int]:
    """The concepts that texts name."""
    table = attribute_words(SPRITES, len(WORDS))
    return set(table[np.unique(ids), 0].tolist()) - {-1}


def test_only_one_split_speaks_of_held_out_concepts(data: dict[SpriteSplit, SpritesData]) -> None:
    for split, found in data.items():
        for kind in KINDS:
            assert bool(said(found.texts(kind).ids) & set(HELD_OUT)) == (split == "concept")
        answers = {ANSWERS[answer] for answer in found.texts("vqa").answers.ravel().tolist()}
        assert bool(answers & {NAMES[number] for number in HELD_OUT}) == (split == "concept")


@pytest.mark.parametrize("level", LEVELS)
def test_answers_are_right_and_balanced(home: Path, pins: Pins, level: str) -> None:
    data = compose("test", home, pins, level=level, count=1200, side=48)
    texts = data.texts("vqa")
    answers: dict[str, Counter[str]] = {}
    for row, scene in enumerate(SPRITES.things(data.scenes)):
        for ids, answer, kind in zip(texts.ids[row], texts.answers[row], texts.kinds[row].tolist(), strict=True):
            text = SPRITES.decode(ids.tolist())
            assert reply(text, scene, ATTRIBUTES, "concept") == ANSWERS[answer], text
            answers.setdefault(kind, Counter())[ANSWERS[answer]] += 1
    assert set(answers) == {"existence", "count", "attribute", "comparison", "relation", "place"}
    for kind in ("existence", "comparison", "relation"):
        assert 0.45 < answers[kind]["yes"] / answers[kind].total() < 0.55, (kind, answers[kind])
    assert max(answers["count"].values()) < 0.4 * answers["count"].total()
    assert len(answers["place"]) >= 45
    assert max(answers["place"].values()) < 0.1 * answers["place"].total()


def test_scenes_tasks_take_them(data: dict[SpriteSplit, SpritesData]) -> None:
    found = data["style"]
    texts = found.texts("vqa")
    task = ScenesTask("vqa", found, texts, "sprites-style")
    assert (task.name, task.samples) == ("sprites-style/vqa", 1200)
    logits = np.eye(len(ANSWERS))[texts.answers.reshape(-1)[:7]]
    rows = np.arange(7)
    assert task.score(rows, task.predict(rows, {"answer": logits}))["accuracy"].all()


def test_questions_alone_do_not_say_the_answer(data: dict[SpriteSplit, SpritesData]) -> None:
    train = data["train"].texts("vqa")
    assert all(0.3 < question_only(train, data[split].texts("vqa")) < 0.65 for split in ("test", "style", "concept"))


@pytest.mark.skipif(REAL is None, reason="INARCH_SPRITES does not say where the emoji packages are")
def test_the_real_packages() -> None:
    assert measure(Path(REAL or "")) == PINS
    pictures = {style: load_pictures(style) for style in STYLES}
    for style in STYLES:
        assert all(30 < max(picture.shape[:2]) <= 64 for picture in pictures[style])
        assert len({picture.tobytes() for picture in pictures[style]}) == 60
    found = {split: compose(split) for split in SPLITS}
    test, other = found["test"], found["style"]
    assert np.array_equal(test.scenes.shape, other.scenes.shape)
    moved = np.abs(test.scenes.boxes[..., :2] - other.scenes.boxes[..., :2])[used(test)]
    assert moved.max() < 1.5 / 64  # other proportions, in whole pixels
    assert not np.array_equal(test.images, other.images)
    for data in found.values():
        texts = data.texts("vqa")
        for row, scene in enumerate(SPRITES.things(data.scenes)):
            for ids, answer in zip(texts.ids[row], texts.answers[row], strict=True):
                assert reply(SPRITES.decode(ids.tolist()), scene, ATTRIBUTES, "concept") == ANSWERS[answer]
