"""The cells of the accuracy grid: which there are, what they depend on, and where they are stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inarch.learning.config import LearnConfig

STORE = Path("docs/measurements/accuracy")
WORK = Path("bench-out/accuracy")
KINDS = ("referring", "vqa")
BASELINES = ("uniform", "prune", "magnitude", "similarity", "rule-layer", "rule-cross", "share", "scratch")
ABLATIONS = ("importance", "no-alignment", "free", "per-modality", "separate", "cross", "layer", "gates")


@dataclass(frozen=True)
class Cell:
    """One cell of the grid.

    Attributes:
        kind: the task that is tuned for and judged on.
        method: see :data:`inarch.learning.methods.METHODS`.
        keep: fraction of the whole model's parameters that is stored.
        seed: of weights, batches and noise; the data are the same.
    """

    kind: str
    method: str
    keep: float
    seed: int


def grid() -> Iterator[Cell]:
    """All cells, the most telling first; some come up twice."""
    for seed in range(3):
        yield Cell("referring", "dense", 1.0, seed)
        for keep in (0.6, 0.4):
            for method in ("joint", "prune", "uniform"):
                yield Cell("referring", method, keep, seed)
    for seed in range(3):
        for kind in KINDS:
            yield Cell(kind, "dense", 1.0, seed)
            for method in ("joint", *BASELINES):
                yield Cell(kind, method, 0.6, seed)
        for keep in (0.5, 0.65, 0.3, 0.2):
            for method in ("joint", "prune", "uniform", "magnitude", "scratch"):
                yield Cell("referring", method, keep, seed)
    for method in ABLATIONS:
        yield Cell("referring", method, 0.4, 0)
    for seed in (3, 4):
        for method, keep in (("dense", 1.0), ("joint", 0.6), ("prune", 0.6), ("uniform", 0.6)):
            yield Cell("referring", method, keep, seed)


def base_config(seed: int) -> LearnConfig:
    """What all cells of a seed have in common."""
    from inarch.learning.config import LearnConfig, Optimisation, ScenesSettings

    return LearnConfig(
        model="mdetr-tiny",
        data=ScenesSettings(level="medium"),
        dense=Optimisation(steps=8000, rate=3e-3),
        learning=Optimisation(steps=2000, rate=1.5e-3, warmup=100),
        precision="bf16",
        seed=seed,
    )


TUNING: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {"referring": {"steps": 2000, "rate": 1e-3, "warmup": 100}, "vqa": {"steps": 6000, "rate": 1e-3, "warmup": 100}}
)
"""Task -> how every method is tuned for it."""

LEARNED = ("joint", "prune", "share", *ABLATIONS)
"""Methods that depend on how a structure is learned."""


def key_of(cell: Cell) -> str:
    """The cell's name: readable, with a hash of every setting that it depends on behind it."""
    digest = _digest([_settings(cell), dict(TUNING[cell.kind])])
    return f"{cell.kind}-{cell.method}-{cell.keep:.2f}-{cell.seed}-{digest}"


def method_key(cell: Cell) -> str:
    """The name of what a method gives before it is tuned, which all tasks share."""
    return f"{cell.method}-{cell.keep:.2f}-{cell.seed}-{_digest(_settings(cell))}"


def dense_key(seed: int) -> str:
    """The name of a seed's dense model, with a hash of what its pre-training depends on."""
    settings = base_config(seed).model_dump(mode="json")
    return f"dense-{seed}-{_digest([settings[name] for name in ('model', 'data', 'dense', 'precision', 'seed')])}"


def _settings(cell: Cell) -> dict[str, Any]:
    settings = base_config(cell.seed).model_dump(mode="json")
    if cell.method not in LEARNED:
        del settings["structure"]
    return settings


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
