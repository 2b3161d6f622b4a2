from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from inarch.learning.tasks.scenes.expressions import at_the_edge, by_order, by_relation, meaning, refer
from inarch.learning.tasks.scenes.language import Thing
from inarch.learning.tasks.scenes.words import SCENES, topic
from inarch.learning.tasks.scenes.world import ATTRIBUTES, LEVELS, SPLITS, draw

from tests.learning.tasks.scene_reader import GAP, referents, select


def thing(said: str, x: float, y: float = 0.5) -> Thing:
    """An object by the words for all its attributes but texture."""
    return Thing(dict(SCENES.read(said).values) | {"texture": 0}, x, y)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", LEVELS)
def test_expressions_are_true_of_their_target_alone(name: str, split: str) -> None:
    difficulty = LEVELS[name]
    about, rng = topic(difficulty), np.random.default_rng(0)
    kinds: Counter[str] = Counter()
    for scene in SCENES.things(draw(500, difficulty, SPLITS[[*map(str, SPLITS)].index(split)], 1)):
        for hardness in (0.0, 0.5, 1.0):
            found = refer(scene, about, hardness, rng)
            if found is None:
                continue
            kinds[found.kind] += 1
            assert referents(found.text, scene, ATTRIBUTES) == {found.target}, found.text
            assert meaning(found.text, scene) == [found.target], found.text
    assert set(kinds) == {"attribute", "relation", "ordinal"}
    assert min(kinds.values()) > 100
    assert kinds.total() > 1400


def test_hard_expressions_say_less_than_would_do_alone() -> None:
    about, rng = topic(LEVELS["medium"]), np.random.default_rng(1)
    said = 0
    for scene in SCENES.things(draw(300, LEVELS["medium"], "train", 2)):
        relation, order = by_relation(scene, about, rng), by_order(scene, about, rng)
        for found, start in ((relation, 1), (order, 2)):
            if found is None:
                continue
            said += 1
            head = re.split(" left of| right of| above| below| from", found.text)[0].split()[start:]
            assert len(select(" ".join(head), scene, ATTRIBUTES)) > 1, found.text
    assert said > 200


def test_doubtful_places_are_not_spoken_of() -> None:
    close = [thing("small red circle", 0.5), thing("small blue circle", 0.5 + GAP * 0.9)]
    about, rng = topic(LEVELS["easy"]), np.random.default_rng(0)
    for _ in range(100):
        for found in (by_relation(close, about, rng), by_order(close, about, rng)):
            assert found is None or not any(word in found.text for word in ("left", "right"))
    far = [close[0], thing("small blue circle", 0.5 + GAP * 1.1)]
    assert any(by_order(far, about, rng) for _ in range(100))


def test_twins_are_told_apart_by_place() -> None:
    twins = [thing("small red circle", 0.30, 0.2), thing("small red circle", 0.32, 0.5), thing("small red circle", 0.34, 0.9)]
    edge = at_the_edge(twins)
    assert (edge.text, edge.target) == ("the first thing from the bottom", 2)
    assert at_the_edge(twins[:1]).target == 0
    about, rng = topic(LEVELS["easy"]), np.random.default_rng(0)
    assert refer(twins, about, 0.0, rng) is None
    found = refer(twins, about, 1.0, rng)
    assert found is not None
    assert found.kind == "ordinal"


def test_only_wanted_targets_are_spoken_of() -> None:
    about, rng = replace(topic(LEVELS["medium"]), targets=lambda scene: [0]), np.random.default_rng(0)
    for scene in SCENES.things(draw(200, LEVELS["medium"], "train", 2)):
        found = refer(scene, about, 0.7, rng)
        assert found is None or found.target == 0


def test_meaning() -> None:
    scene = [thing("small red circle", 0.1), thing("large red circle", 0.5), thing("large blue square", 0.9)]
    assert meaning("the red circle", scene) == [0, 1]
    assert meaning("the thing", scene) == [0, 1, 2]
    assert meaning("the circle left of the blue square", scene) == [0, 1]
    assert meaning("the thing right of the large circle", scene) == [2]
    assert meaning("the second circle from the right", scene) == [0]
    assert meaning("the third circle from the right", scene) == []
    assert meaning("the circle above the square", scene) == []
