"""The model that ``make demo`` made, on a GPU provider: as right there as on the CPU, sample by sample."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import inarch
from inarch.learning.folders import read_run
from inarch.learning.workshop import task_of
from inarch.runtime.accuracy import Evaluation, Task, evaluate
from inarch.runtime.inputs import Case
from inarch.runtime.session import Session, SessionOptions

pytestmark = pytest.mark.gpu

DEMO = Path(os.environ.get("INARCH_DEMO", "demo-out"))
SAMPLES = 256
BATCH = 32

MARGIN = 1e-4
"""Decisions that are nearer than this may fall either way."""


@pytest.fixture(scope="module")
def demo() -> Path:
    if not all((DEMO / name).is_file() for name in ("compiled.onnx", "plan.json", "small/model.onnx", "dense/model.onnx")):
        pytest.skip(f"no finished demo in {DEMO}: run make demo first")
    return DEMO


@pytest.fixture(scope="module")
def task(demo: Path) -> Task:
    return task_of(read_run(demo), "referring")


def test_compiled_equals_reference(provider: str, demo: Path, task: Task) -> None:
    cases = [Case(f"{count} samples", dict(task.feeds(np.arange(count)))) for count in (1, 3)]
    result = inarch.verify(
        demo / "small" / "model.onnx", demo / "plan.json", demo / "compiled.onnx", inputs=cases, provider=provider
    )
    assert result.ok, [check for check in result.equivalence.checks if not check.ok]
    assert result.placement is not None
    assert not result.placement.strayed


@pytest.mark.parametrize("model", ["compiled.onnx", "dense/model.onnx"])
def test_accuracy_is_that_of_the_cpu(provider: str, demo: Path, task: Task, model: str) -> None:
    def judged(options: SessionOptions) -> Evaluation:
        with Session(demo / model, options) as session:
            return evaluate(session.run, task, batch=BATCH, limit=SAMPLES)

    host, device = judged(SessionOptions()), judged(SessionOptions(providers=(provider,)))
    clear = np.minimum(host.predictions["margin"], device.predictions["margin"]) > MARGIN
    assert clear.mean() > 0.9, "nearly all decisions are clear, or nothing is compared"
    changed = np.flatnonzero((host.scores[task.headline] != device.scores[task.headline]) & clear)
    assert not len(changed), f"{task.headline} differs on samples {changed.tolist()}"
