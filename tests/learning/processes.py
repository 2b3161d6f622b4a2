"""What each of several processes runs, started by torchrun; see ``test_processes``. The arguments are a folder and steps."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import torch

from inarch.learning.phases import LearnPhase, WeightPhase
from inarch.learning.runs import Workshop, learn_phase
from inarch.learning.trainer import accelerator, run


def phases(shop: Workshop) -> list[LearnPhase | WeightPhase]:
    """One of each kind."""
    place = accelerator("no", "cpu")
    course = shop.pretraining()
    plain = WeightPhase("dense", shop.trainee(course), course, shop.config.dense, place, shop.config.seed)
    return [plain, learn_phase(shop, None, place)]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    shop: Workshop = pickle.loads((folder / "shop.pickle").read_bytes())
    rank = accelerator("no", "cpu").process_index
    for phase in phases(shop):
        run(phase, folder / phase.name, main=rank == 0)
        torch.save(phase.state(), folder / f"{phase.name}{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
