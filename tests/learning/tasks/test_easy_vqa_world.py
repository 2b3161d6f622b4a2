"""easy-VQA to train on: batches of one number are equal, parts are disjoint, a step lowers the loss; and what it cannot do."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("PIL")

from inarch.learning.data_config import EasyVqaSettings
from inarch.learning.models.registry import build
from inarch.learning.tasks import easy_vqa
from inarch.learning.tasks.coco.images import MDETR as PREPARATION
from inarch.learning.tasks.coco.images import normalise
from inarch.learning.tasks.courses import tensors
from inarch.learning.tasks.easy_vqa_world import EasyVqaWorld
from inarch.structure.errors import DataError, InarchError

from tests.learning.tiny import GLIP, MDETR

installed = pytest.mark.skipif(importlib.util.find_spec("easy_vqa") is None, reason="the package easy-vqa is not installed")


@pytest.fixture(scope="module")
def world() -> EasyVqaWorld:
    return EasyVqaWorld(EasyVqaSettings(scenes=60, held_out=6, images=4, each=2), MDETR)


@installed
def test_batches_depend_on_their_number(world: EasyVqaWorld) -> None:
    course = world.course("vqa")
    first, again, other = course.batch(0, 3), course.batch(0, 3), course.batch(0, 4)
    for name, values in first.items():
        np.testing.assert_array_equal(values, again[name])
    assert (first["pixel_values"] != other["pixel_values"]).any()
    assert first["image"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@installed
def test_weights_and_structure_see_different_images(world: EasyVqaWorld) -> None:
    course, images = world.course("vqa"), world.data("train").images
    assert len(images) == 60
    pixels = normalise(images, PREPARATION)
    place = {image.tobytes(): number for number, image in enumerate(pixels)}
    seen: dict[Any, set[int]] = {"weights": set(), "structure": set()}
    for step in range(60):
        for part, found in seen.items():
            found |= {place[image.tobytes()] for image in course.batch(0, step, part)["pixel_values"]}
    assert seen == {"weights": set(range(54)), "structure": set(range(54, 60))}


@installed
def test_questions_are_about_their_image(world: EasyVqaWorld) -> None:
    course, data = world.course("vqa"), world.data("train")
    assert len(course.questions) == 60
    for row, questions in enumerate(course.questions):
        assert len(questions)
        assert (data.image[questions] == row).all()


@installed
def test_training_lowers_the_loss_and_is_judged(world: EasyVqaWorld) -> None:
    model, course = build(world.fitted(MDETR)), world.course("vqa")
    trainee = course.trainee(model).train()
    optimiser = torch.optim.AdamW(trainee.parameters(), lr=3e-3)
    batch = tensors(course.batch(0, 0), torch.device("cpu"))
    seen = []
    for _ in range(12):
        loss = torch.stack(list(trainee(batch).values())).sum()
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        seen.append(float(loss.detach()))
    assert seen[-1] < 0.8 * seen[0]
    task = world.task("vqa")
    assert (task.name, task.headline) == ("easy-vqa/vqa", "accuracy")
    assert world.task("vqa", "val").name == "easy-vqa-val/vqa"
    assert set(world.data("test").image.tolist()) == set(range(6))
    rows = np.arange(6)
    with torch.no_grad():
        outputs = model.eval()(**{name: torch.from_numpy(value) for name, value in task.feeds(rows).items()})
    predictions = task.predict(rows, {name: value.numpy() for name, value in outputs.items()})
    assert predictions["margin"].shape == task.score(rows, predictions)["accuracy"].shape == (6,)
    assert (predictions["margin"] >= 0).all()


@installed
def test_the_model_is_fitted(world: EasyVqaWorld) -> None:
    small = MDETR.model_copy(update={"text": MDETR.text.model_copy(update={"vocabulary": 3}), "decoder_layers": 2})
    found = world.fitted(small)
    assert (found.model_dump()["vision"]["image"], found.text.vocabulary) == (64, len(world.data("train").vocabulary.words))
    assert (found.model_dump()["answers"], found.model_dump()["answer_layer"]) == (13, 1)


@installed
def test_other_models_are_refused(world: EasyVqaWorld) -> None:
    with pytest.raises(InarchError, match="the model has 5 answers, easy-VQA 13"):
        world.course("vqa").trainee(build(MDETR.model_copy(update={"answers": 5})))
    with pytest.raises(InarchError, match="not Linear"):
        world.course("vqa").trainee(nn.Linear(1, 1))
    with pytest.raises(InarchError, match="patch"):
        world.fitted(MDETR.model_copy(update={"vision": MDETR.vision.model_copy(update={"patch": 7})}))


def test_there_are_questions_alone(world: EasyVqaWorld) -> None:
    assert (world.kinds, world.first, world.splits) == (("vqa",), "vqa", ("test",))
    for wrong in (world.course, world.task):
        with pytest.raises(InarchError, match="no referring on easy-vqa"):
            wrong("referring")
    with pytest.raises(InarchError, match="no split 'unseen'"):
        world.task("vqa", "unseen")
    with pytest.raises(InarchError, match="no vqa with GLIP"):
        EasyVqaWorld(EasyVqaSettings(), GLIP)


def test_without_its_package_it_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(easy_vqa, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"easy-vqa is not installed \(pip install --no-deps easy-vqa==1\.0"):
        EasyVqaWorld(EasyVqaSettings(), MDETR).fitted(MDETR)
