"""easy-VQA to train on: batches of one number are equal, parts are disjoint, and a step lowers the loss."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from inarch.learning.models.registry import build
from inarch.learning.tasks.courses import tensors
from inarch.learning.tasks.easy_vqa_course import EasyVqaCourse
from inarch.structure.errors import InarchError

from tests.learning.tiny import MDETR

pytestmark = pytest.mark.skipif(importlib.util.find_spec("easy_vqa") is None, reason="the package easy-vqa is not installed")


@pytest.fixture(scope="module")
def course() -> EasyVqaCourse:
    return EasyVqaCourse(images=4, each=2)


def test_batches_depend_on_their_number(course: EasyVqaCourse) -> None:
    first, again, other = course.batch(0, 3), course.batch(0, 3), course.batch(0, 4)
    for name, values in first.items():
        np.testing.assert_array_equal(values, again[name])
    assert (first["pixel_values"] != other["pixel_values"]).any()


def test_questions_are_about_their_image(course: EasyVqaCourse) -> None:
    for row, questions in enumerate(course.questions[:50]):
        assert len(questions)
        assert (course.data.image[questions] == row).all()


def test_training_lowers_the_loss_and_is_judged(course: EasyVqaCourse) -> None:
    torch.manual_seed(0)
    model = build(MDETR.model_copy(update={"answers": 13}))
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
    task = course.held_out()
    rows = np.arange(6)
    with torch.no_grad():
        outputs = model.eval()(**{name: torch.from_numpy(value) for name, value in task.feeds(rows).items()})
    predictions = task.predict(rows, {name: value.numpy() for name, value in outputs.items()})
    assert predictions["margin"].shape == task.score(rows, predictions)["accuracy"].shape == (6,)
    assert (predictions["margin"] >= 0).all()


def test_too_few_answers_are_refused(course: EasyVqaCourse) -> None:
    with pytest.raises(InarchError, match="13"):
        course.trainee(build(MDETR.model_copy(update={"answers": 5})))
