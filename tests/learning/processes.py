"""What each of several processes runs, started by torchrun; see ``test_processes``. The arguments are a folder and steps."""

from __future__ import annotations

import json
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from inarch.learning import runs
from inarch.learning.config import TuneConfig
from inarch.learning.folders import WEIGHTS
from inarch.learning.phases import LearnPhase, WeightPhase
from inarch.learning.runs import learn_phase
from inarch.learning.trainer import accelerator, is_main, run
from inarch.learning.weights import keep_weights, read_weights
from inarch.learning.workshop import Workshop, replaced

from tests.learning import tiny


def phases(shop: Workshop) -> list[LearnPhase | WeightPhase]:
    """One of each kind, and one with a teacher."""
    place = accelerator("no", "cpu")
    course = shop.pretraining()
    plain = WeightPhase("dense", shop.trainee(course), course, shop.config.dense, place, shop.config.seed)
    teacher = replaced(shop, seed=shop.config.seed + 1).trainee(course)
    taught = shop.trainee(course).taught_by(teacher, 5.0)
    distilled = WeightPhase("distilled", taught, course, shop.config.dense, place, shop.config.seed)
    return [plain, learn_phase(shop, None, place), distilled]


def whole_run(shop: Workshop, folder: Path) -> dict[str, float]:
    """Learning and tuning, one after the other in one process, with a main process that writes slowly."""
    with pytest.MonkeyPatch.context() as patch:
        taught = replaced(shop, distil=2.0)
        patch.setattr(runs, "workshop", lambda config: taught)
        if accelerator("no", "cpu").is_main_process:
            patch.setattr(runs, "keep_weights", slowly(keep_weights))
        runs.learn(taught.config, folder, device="cpu")
        found = runs.tune(
            folder, TuneConfig(kind="grounding", optimisation=shop.config.dense, distil=1.0), folder / "tuned", device="cpu"
        )
        read_weights(folder / "tuned" / WEIGHTS)
        assert is_main() == (accelerator("no", "cpu").process_index == 0)
    return dict(found["test"].overall)


def slowly(write: Callable[..., None]) -> Callable[..., None]:
    """A function that takes its time, so that who does not wait for it is found out."""

    def late(*arguments: Any) -> None:
        time.sleep(0.5)
        write(*arguments)

    return late


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    shop: Workshop = pickle.loads((folder / "shop.pickle").read_bytes())
    rank = accelerator("no", "cpu").process_index
    for phase in phases(shop):
        run(phase, folder / phase.name, main=rank == 0)
        torch.save(phase.state(), folder / f"{phase.name}{rank}.pt")
    (folder / f"found{rank}.json").write_text(json.dumps(whole_run(shop, folder / "whole")))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    with tiny.presets():
        main(Path(sys.argv[1]))
