"""The training loop: steps, checkpoints that resume bit for bit, a log.

A step depends on its number, the seed and the state that a checkpoint holds, and on nothing else: batches and noise are drawn
from (seed, number). Several processes go through accelerate, which wraps modules in DistributedDataParallel.
"""

from __future__ import annotations

import csv
import importlib.util
import math
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from inarch.learning.config import Optimisation
from inarch.structure.errors import InarchError

Progress = Callable[[str, int, int], None]

CHECKPOINT = "checkpoint.pt"
LOG = "log.csv"
EVERY = 10
"""Steps whose mean is one row of the log."""


class Phase(Protocol):
    """One stage of training."""

    @property
    def name(self) -> str:
        """What it is called, in logs and checkpoints."""

    @property
    def settings(self) -> Optimisation:
        """How long it runs, and how often it is kept."""

    def step(self, number: int) -> dict[str, float]:
        """Carry out step ``number``, from 0 on; returns what is logged."""

    def state(self) -> dict[str, Any]:
        """Everything that later steps depend on."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a state."""


def accelerator(precision: str = "no", device: str | None = None) -> Accelerator:
    """What modules are prepared with; ``device`` ``cpu`` keeps it off GPUs."""
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)  # heads of tasks that a phase does not train
    return Accelerator(cpu=device == "cpu", mixed_precision=precision, kwargs_handlers=[unused])


def rate_at(settings: Optimisation, number: int) -> float:
    """Learning rate of a step: linear warm-up, then a cosine down to a fiftieth."""
    if number < settings.warmup:
        return settings.rate * (number + 1) / settings.warmup
    done = (number - settings.warmup) / max(settings.steps - settings.warmup, 1)
    return settings.rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def run(phase: Phase, folder: Path, *, main: bool = True, progress: Progress | None = None, stop: int | None = None) -> bool:
    """Run a phase, from its last checkpoint in the folder if there is one.

    Args:
        phase: the phase.
        folder: where its checkpoint and log are; made if need be.
        main: whether this process writes (one of several does).
        progress: called after every step.
        stop: stop before this step, as if killed, but with a checkpoint.

    Returns:
        Whether the phase is complete.

    Raises:
        InarchError: the loss is not finite, or the checkpoint is another phase's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = phase.settings
    start = _resume(phase, folder)
    log = _Log(folder / LOG, start) if main else None
    end = settings.steps if stop is None else min(stop, settings.steps)
    for number in range(start, end):
        values = phase.step(number)
        wrong = [name for name, value in values.items() if not math.isfinite(value)]
        if wrong:
            raise InarchError(
                f"{wrong[0]} is not finite at step {number}",
                where=phase.name,
                hint="a lower rate; the last checkpoint is as it was",
            )
        kept = (number + 1) % settings.interval == 0 or number + 1 == end
        if log is not None:
            log.write(number, values, last=kept)
        if main and kept:
            _save(folder / CHECKPOINT, {"phase": phase.name, "step": number + 1, "state": phase.state()})
        if progress is not None:
            progress(phase.name, number + 1, settings.steps)
    if log is not None:
        log.close()
    return end == settings.steps


def _resume(phase: Phase, folder: Path) -> int:
    """The step to go on with."""
    path = folder / CHECKPOINT
    if not path.exists():
        return 0
    saved = torch.load(path, map_location="cpu", weights_only=True)
    if saved["phase"] != phase.name:
        raise InarchError(f"the checkpoint is of {saved['phase']!r}, not {phase.name!r}", where=str(path))
    phase.restore(saved["state"])
    return int(saved["step"])


def _save(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file that is whole or not there."""
    part = path.with_suffix(".part")
    torch.save(dict(content), part)
    os.replace(part, path)


class _Log:
    """``step,name,value``: means over the last :data:`EVERY` steps, in a CSV file and for TensorBoard where that is installed.

    Rows of steps that a resumed run carries out again are dropped first.
    """

    def __init__(self, path: Path, start: int) -> None:
        kept: list[list[str]] = []
        if path.exists() and start:
            with path.open(newline="", encoding="utf-8") as file:
                kept = [row for row in list(csv.reader(file))[1:] if len(row) == 3 and int(row[0]) <= start]
        self._file = path.open("w", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file)
        self._writer.writerows([["step", "name", "value"], *kept])
        self._sums: dict[str, list[float]] = {}
        self._board = _board(path.parent / "tensorboard", start)

    def write(self, number: int, values: Mapping[str, float], *, last: bool) -> None:
        """Add a step; ``last`` before a checkpoint, so that nothing is pending when a run resumes."""
        for name, value in values.items():
            self._sums.setdefault(name, []).append(value)
        if (number + 1) % EVERY and not last:
            return
        for name, seen in self._sums.items():
            mean = sum(seen) / len(seen)
            self._writer.writerow([number + 1, name, f"{mean:.6g}"])
            if self._board is not None:
                self._board.add_scalar(name, mean, number + 1)
        self._sums.clear()
        if last:
            self._file.flush()

    def close(self) -> None:
        """Bring it to the disk."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def _board(folder: Path, start: int) -> Any:
    """A TensorBoard writer, or None where it is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own imports' deprecations
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(folder), purge_step=start)


def read_log(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """A log: name -> steps and values.

    Raises:
        InarchError: it cannot be read.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))[1:]
    except OSError as error:
        raise InarchError(f"cannot be read: {error.strerror}", where=str(path)) from None
    found: dict[str, tuple[list[int], list[float]]] = {}
    for step, name, value in rows:
        steps, values = found.setdefault(name, ([], []))
        steps.append(int(step))
        values.append(float(value))
    return found
