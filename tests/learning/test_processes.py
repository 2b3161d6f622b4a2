"""Two processes that each take half of a batch learn what one process learns."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from inarch.learning.phases import LearnPhase, WeightPhase
from inarch.learning.tasks.courses import tensors
from inarch.learning.tasks.worlds import open_world
from inarch.learning.trainer import LOG, read_log, run
from inarch.learning.workshop import Workshop

from tests.learning import tiny
from tests.learning.processes import phases

ROOT = Path(__file__).resolve().parents[2]


def test_two_processes_learn_what_one_does(shop: Workshop, tmp_path: Path) -> None:
    """One test, since the processes take half a minute, and a fixture would start them for each worker of pytest anew."""
    pair = trained_by_two(shop, tmp_path / "pair")
    for phase in phases(shop):
        assert_alike(phase, pair, shop, tmp_path / phase.name)
    assert_gone_the_whole_way(pair)
    assert_written_by_one(pair)


def trained_by_two(shop: Workshop, folder: Path) -> Path:
    """A folder in which two processes have trained; torchrun looks for a free port itself."""
    folder.mkdir()
    # The child makes its own scenes, which depend on the settings alone.
    world = open_world(shop.config.data, shop.model)
    (folder / "shop.pickle").write_bytes(pickle.dumps(replace(shop, world=world)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.learning.processes", str(folder)]
    hidden = {"MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK"}
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def assert_alike(phase: LearnPhase | WeightPhase, pair: Path, shop: Workshop, folder: Path) -> None:
    """One process ends where the two did."""
    assert run(phase, folder)
    states = [torch.load(pair / f"{phase.name}{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert tiny.differing(states[0], states[1]) == []
    expected, found = phase.state(), states[0]
    assert tiny.flat(expected).keys() == tiny.flat(found).keys()
    for part in ("module", "hypernetwork") if isinstance(phase, LearnPhase) else ("module",):
        apart = torch.cat([(found[part][name] - value).abs().flatten() for name, value in expected[part].items()])
        # Adam divides by the gradient's size: where that is all noise (biases of keys), so are steps of the whole rate.
        assert float((apart > 1e-4).float().mean()) < 0.01
    if isinstance(phase, LearnPhase):
        assert tiny.differing(expected["hard"], found["hard"]) == []
    assert read_log(folder / LOG).keys() == read_log(pair / phase.name / LOG).keys()
    # Losses are logged by one process, of its own half; what they are of the weights is checked on a whole batch.
    course = shop.pretraining()
    losses = []
    for state in (expected, found):
        trainee = shop.trainee(course, state["module"])
        with torch.no_grad():
            losses.append({name: float(loss) for name, loss in trainee(tensors(course.batch(5, 0), torch.device("cpu"))).items()})
    assert losses[1] == pytest.approx(losses[0], rel=2e-4)


def assert_gone_the_whole_way(pair: Path) -> None:
    """Learning and tuning end with the same figures in both, which are those that are written."""
    found = [json.loads((pair / f"found{rank}.json").read_text()) for rank in (0, 1)]
    assert found[0] == found[1]
    written = json.loads((pair / "whole" / "tuned" / "evaluation.json").read_text())
    assert written["splits"]["test"] == found[0]


def assert_written_by_one(pair: Path) -> None:
    """There is one log, and one checkpoint."""
    assert sorted(path.name for path in (pair / "dense").iterdir()) == ["checkpoint.pt", "log.csv", "tensorboard"]
    assert len(list((pair / "dense" / "tensorboard").iterdir())) == 1
