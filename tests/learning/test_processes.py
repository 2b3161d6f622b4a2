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

from inarch.learning.phases import LearnPhase
from inarch.learning.tasks.courses import tensors
from inarch.learning.tasks.worlds import open_world
from inarch.learning.trainer import LOG, read_log, run
from inarch.learning.workshop import Workshop

from tests.learning import tiny
from tests.learning.processes import phases

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pair(shop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which two processes have trained; torchrun looks for a free port itself."""
    folder = tmp_path_factory.mktemp("pair")
    # The child makes its own scenes, which depend on the settings alone, and what is cached at the sites.
    table = replace(shop.table, sites=tuple(replace(site) for site in shop.table.sites))
    world = open_world(shop.config.data, shop.model)
    (folder / "shop.pickle").write_bytes(pickle.dumps(replace(shop, world=world, table=table)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.learning.processes", str(folder)]
    hidden = {"MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK"}
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("number", [0, 1, 2], ids=["weights", "learning", "distilled"])
def test_two_processes_learn_what_one_does(pair: Path, shop: Workshop, tmp_path: Path, number: int) -> None:
    phase = phases(shop)[number]
    assert run(phase, tmp_path)
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
    assert read_log(tmp_path / LOG).keys() == read_log(pair / phase.name / LOG).keys()
    # Losses are logged by one process, of its own half; what they are of the weights is checked on a whole batch.
    course = shop.pretraining()
    losses = []
    for state in (expected, found):
        trainee = shop.trainee(course, state["module"])
        with torch.no_grad():
            losses.append({name: float(loss) for name, loss in trainee(tensors(course.batch(5, 0), torch.device("cpu"))).items()})
    assert losses[1] == pytest.approx(losses[0], rel=2e-4)


def test_two_processes_go_the_whole_way(pair: Path) -> None:
    found = [json.loads((pair / f"found{rank}.json").read_text()) for rank in (0, 1)]
    assert found[0] == found[1]
    written = json.loads((pair / "whole" / "tuned" / "evaluation.json").read_text())
    assert written["splits"]["test"] == found[0]


def test_one_process_writes(pair: Path) -> None:
    assert sorted(path.name for path in (pair / "dense").iterdir()) == ["checkpoint.pt", "log.csv", "tensorboard"]
    assert len(list((pair / "dense" / "tensorboard").iterdir())) == 1
