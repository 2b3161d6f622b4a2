"""Worlds: what each model can learn in each of them, on which images, and what it is judged on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("PIL")

from inarch.learning.data_config import ScenesSettings, SpritesSettings
from inarch.learning.models.registry import Config, build
from inarch.learning.tasks.drawn import Drawn, attribute_words
from inarch.learning.tasks.mdetr_trainee import MdetrTrainee
from inarch.learning.tasks.scenes.words import SCENES
from inarch.learning.tasks.sprites import package
from inarch.learning.tasks.sprites.package import measure
from inarch.learning.tasks.sprites.words import SPRITES
from inarch.learning.tasks.sprites_world import SpritesWorld
from inarch.learning.tasks.worlds import open_world
from inarch.structure.errors import DataError, InarchError

from tests.learning.tasks.emoji import make_packages
from tests.learning.tiny import GLIP, MDETR

SIZES: dict[str, Any] = {"scenes": 60, "held_out": 8, "texts": 3, "judged": 2, "images": 4, "each": 2, "side": 64}
SETTINGS: dict[str, ScenesSettings | SpritesSettings] = {"scenes": ScenesSettings(**SIZES), "sprites": SpritesSettings(**SIZES)}
MODELS: dict[str, Config] = {"mdetr": MDETR, "glip": GLIP}


@pytest.fixture(scope="module", autouse=True)
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Made-up emoji, which the environment leads to."""
    home = make_packages(tmp_path_factory.mktemp("emoji"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INARCH_SPRITES", str(home))
        patch.setattr(package, "PINS", measure(home))
        yield home


def opened(task: str, model: str) -> Drawn:
    world = open_world(SETTINGS[task], MODELS[model])
    assert isinstance(world, Drawn)
    return world


@pytest.mark.parametrize(
    ("task", "model", "kinds"),
    [
        ("scenes", "mdetr", ("referring", "grounding", "vqa")),
        ("scenes", "glip", ("referring", "grounding", "detection")),
        ("sprites", "mdetr", ("referring", "grounding", "vqa")),
        ("sprites", "glip", ("referring", "grounding")),
    ],
)
def test_every_kind_can_be_trained_and_judged(task: str, model: str, kinds: tuple[Any, ...]) -> None:
    world = opened(task, model)
    assert (world.kinds, world.first, world.side) == (kinds, "grounding", 64)
    fitted = world.fitted(MODELS[model])
    network = build(fitted)
    for kind in kinds:
        course = world.course(kind)
        assert course.name == f"{task}/{kind}"
        course.trainee(network)
        batch = course.batch(0, 0)
        assert batch["pixel_values"].shape == (4, 3, 64, 64)
        assert batch["input_ids"].max() < fitted.text.vocabulary
        for split in world.splits:
            judged = world.task(kind, split)
            assert judged.name == (f"{task}/{kind}" if split == "test" else f"{task}-{split}/{kind}")
            assert judged.samples == (8 if kind == "detection" else 16)
            assert ("pixel_mask" in judged.feeds(np.arange(2))) == (model == "mdetr")


def test_the_splits_are_different_images() -> None:
    assert opened("scenes", "mdetr").splits == ("test", "unseen")
    assert opened("sprites", "mdetr").splits == ("test", "style", "concept")
    for task in SETTINGS:
        world = opened(task, "mdetr")
        images = [image.tobytes() for split in ("train", *world.splits) for image in world.data(split).images]
        assert len(set(images)) == len(images) == 60 + 8 * len(world.splits)


@pytest.mark.parametrize("task", SETTINGS)
def test_cells_have_the_attributes_that_words_name(task: str) -> None:
    world = opened(task, "mdetr")
    assert world.grid == 8
    trainee = world.course("grounding").trainee(build(world.fitted(MDETR)))
    assert isinstance(trainee, MdetrTrainee)
    attributes = list(world.source.language.attributes)
    assert trainee.words.shape == (max(80, len(world.source.language.words)), len(attributes))
    rows = np.array([4, 9, 2])
    owner, scenes = world.data("train").cells(rows, 8), world.data("train").scenes
    assert (owner >= 0).any(1).all()
    course = world.course("grounding")
    pixels = {image.tobytes(): row for row, image in enumerate(world.data("train").pixels(np.arange(60)))}
    batch = course.batch(0, 7)
    rows = np.array([pixels[image.tobytes()] for image in batch["pixel_values"]])
    owner = world.data("train").cells(rows, 8)
    for number, name in enumerate(attributes):
        values = getattr(scenes, {"concept": "shape"}.get(name, name))[rows]
        wanted = np.where(owner < 0, -1, np.take_along_axis(values, np.maximum(owner, 0), 1))
        assert batch["cells"][..., number].tolist() == wanted.tolist(), name
    assert batch["cells"].flags.c_contiguous


def test_words_that_name_attributes() -> None:
    table = attribute_words(SCENES, 80)
    assert table.shape == (80, 4)
    named = {SCENES.words[number]: row for number, row in enumerate(table.tolist()) if max(row) >= 0}
    assert named["red"] == [-1, 0, -1, -1]
    cross = SCENES.attributes["shape"].index("cross")
    assert named["crosses"] == named["cross"] == [cross, -1, -1, -1]
    assert "left" not in named
    assert len(named) == sum(len(values) for values in SCENES.attributes.values()) + len(SCENES.attributes["shape"])


@pytest.mark.parametrize("task", SETTINGS)
def test_models_are_fitted(task: str) -> None:
    language = {"scenes": SCENES, "sprites": SPRITES}[task]
    small = {
        name: model.model_copy(update={"text": model.text.model_copy(update={"vocabulary": 3})}) for name, model in MODELS.items()
    }
    for name, model in small.items():
        found = opened(task, name).fitted(model)
        assert found.text.vocabulary == len(language.words)
        assert found.model_dump()["vision"]["image"] == 64
    deep = opened(task, "mdetr").fitted(MDETR.model_copy(update={"decoder_layers": 3})).model_dump()
    assert (deep["answers"], deep["answer_layer"]) == (len(language.answers), 2)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InarchError, match="no detection with MDETR on scenes"):
        opened("scenes", "mdetr").course("detection")
    with pytest.raises(InarchError, match=r"no vqa with GLIP on scenes \(there are referring, grounding, detection"):
        opened("scenes", "glip").task("vqa")
    with pytest.raises(InarchError, match="no detection with GLIP on sprites"):
        opened("sprites", "glip").course("detection")
    with pytest.raises(InarchError, match=r"scenes have no split 'style' \(there are train, test, unseen"):
        opened("scenes", "mdetr").task("vqa", "style")
    with pytest.raises(InarchError, match="patch"):
        Drawn(ScenesSettings(side=50), MDETR).fitted(MDETR)
    with pytest.raises(InarchError, match="multiple of 32"):
        Drawn(ScenesSettings(side=48), GLIP).fitted(GLIP)


def test_sprites_without_packages_say_what_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = SpritesWorld(SpritesSettings(), MDETR)
    assert world.kinds, "what there is can be said without any data"
    fetch = r"npm install .*google@16\.0\.0 .*twitter@16\.0\.0 .*data@17\.0\.0 && export INARCH_SPRITES=FOLDER"
    monkeypatch.setenv("INARCH_SPRITES", str(tmp_path))
    with pytest.raises(DataError, match=rf"package\.json: cannot be read: .*{fetch}"):
        world.fitted(MDETR)
    monkeypatch.delenv("INARCH_SPRITES")
    with pytest.raises(DataError, match=rf"INARCH_SPRITES: nothing says where .*{fetch}"):
        world.fitted(MDETR)
