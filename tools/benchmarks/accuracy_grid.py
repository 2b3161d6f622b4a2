"""The cells of the accuracy grid: which there are, what they depend on, and where they are stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inarch.learning.config import LearnConfig

STORE = Path("docs/measurements/accuracy")
WORK = Path("bench-out/accuracy")
KINDS = ("referring", "vqa")
BASELINES = ("prune", "magnitude", "uniform", "similarity", "rule-layer", "rule-cross", "share", "scratch")
ABLATIONS = ("gates", "free", "per-modality", "separate", "no-alignment", "cross", "layer")


@dataclass(frozen=True)
class Cell:
    """One cell of the grid.

    Attributes:
        method: see :data:`inarch.learning.methods.METHODS`.
        keep: fraction of the whole model's parameters that is stored.
        seed: of weights, batches and noise; the data are the same.
    """

    method: str
    keep: float
    seed: int


def grid() -> Iterator[Cell]:
    """All cells, the most telling first."""
    for seed in range(3):
        yield Cell("dense", 1.0, seed)
        for keep in (0.6, 0.3):
            yield Cell("joint", keep, seed)
            yield Cell("prune", keep, seed)
        for method in BASELINES[1:]:
            yield Cell(method, 0.6, seed)
        for keep in (0.2, 0.5, 0.65):
            yield Cell("joint", keep, seed)
            yield Cell("prune", keep, seed)
        for method in ("magnitude", "uniform", "scratch"):
            yield Cell(method, 0.3, seed)
            yield Cell(method, 0.2, seed)
    for method in ABLATIONS:
        yield Cell(method, 0.5, 0)
    for seed in (3, 4):
        for method, keep in (("dense", 1.0), ("joint", 0.6), ("prune", 0.6), ("uniform", 0.6)):
            yield Cell(method, keep, seed)


def base_config(seed: int) -> LearnConfig:
    """What all cells of a seed have in common."""
    from inarch.learning.config import DataSettings, LearnConfig, Optimisation

    return LearnConfig(
        model="mdetr-tiny",
        data=DataSettings(level="medium"),
        dense=Optimisation(steps=8000, rate=3e-3),
        learning=Optimisation(steps=2000, rate=1.5e-3, warmup=100),
        precision="bf16",
        seed=seed,
    )


TUNING = {"steps": 2000, "rate": 1e-3, "warmup": 100}


LEARNED = ("joint", "prune", "share", *ABLATIONS)
"""Methods that depend on how a structure is learned."""


def key_of(cell: Cell) -> str:
    """The cell's name: readable, with a hash of every setting that it depends on behind it."""
    settings = base_config(cell.seed).model_dump(mode="json")
    if cell.method not in LEARNED:
        del settings["structure"]
    return f"{cell.method}-{cell.keep:.2f}-{cell.seed}-{_digest([settings, TUNING])}"


def dense_key(seed: int) -> str:
    """The name of a seed's dense model, with a hash of what its pre-training depends on."""
    settings = base_config(seed).model_dump(mode="json")
    return f"dense-{seed}-{_digest([settings[name] for name in ('model', 'data', 'dense', 'precision', 'seed')])}"


def _digest(settings: object) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def stored(store: Path) -> dict[Cell, dict[str, Any]]:
    """The cells that are done, under the present settings."""
    found = {}
    for cell in dict.fromkeys(grid()):
        path = store / f"{key_of(cell)}.json"
        if path.exists():
            found[cell] = json.loads(path.read_text(encoding="utf-8"))
    return found
