"""The training loop: steps, checkpoints that resume bit for bit, a log.

A step depends on its number, the seed and the state that a checkpoint holds, and on nothing else: batches and noise are drawn
from (seed, number). Several processes go through accelerate, which wraps modules in DistributedDataParallel.
"""

from __future__ import annotations

import csv
import importlib.util
import math
import os
import pickle
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
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
    """What modules are prepared with.

    Args:
        precision: ``no``, ``bf16`` or ``fp16``.
        device: ``cpu`` keeps it off GPUs, ``cuda`` wants one; None takes one where there is one.

    Raises:
        InarchError: there is no such device, or it does not know the precision.
    """
    if device not in (None, "cpu", "cuda"):
        raise InarchError(f"there is no device {device!r}", where="--device", hint="cpu, or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise InarchError("torch sees no GPU", where="--device", hint="cpu")
    if AcceleratorState._shared_state:
        # accelerate keeps one state a process, and refuses another precision or device; a second run may want one.
        AcceleratorState._reset_state(not torch.distributed.is_initialized())
    if precision == "fp16" and (device == "cpu" or not torch.cuda.is_available()):
        raise InarchError("fp16 needs a GPU", where="precision", hint="bf16, or no")
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)  # heads of tasks that a phase does not train
    try:
        return Accelerator(cpu=device == "cpu", mixed_precision=precision, kwargs_handlers=[unused])
    except ValueError as error:
        raise InarchError(str(error), where="precision", hint="no, bf16 or fp16") from None


def is_main() -> bool:
    """Whether this process is the one of several that writes and speaks."""
    return bool(PartialState().is_main_process)


def rate_at(settings: Optimisation, number: int) -> float:
    """Learning rate of a step: linear warm-up, of half of all steps at most, then a cosine down to a fiftieth."""
    warmup = min(settings.warmup, settings.steps // 2)
    if number < warmup:
        return settings.rate * (number + 1) / warmup
    done = (number - warmup) / max(settings.steps - warmup, 1)
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
    start, pending = _resume(phase, folder)
    end = settings.steps if stop is None else min(stop, settings.steps)
    if start >= end:
        return start >= settings.steps
    with _Log(folder / LOG, start, pending) if main else nullcontext() as log:
        for number in range(start, end):
            values = phase.step(number)
            wrong = [name for name, value in values.items() if not math.isfinite(value)]
            if wrong:
                raise InarchError(
                    f"{wrong[0]} is not finite at step {number}",
                    where=phase.name,
                    hint="a lower rate; the last checkpoint is as it was",
                )
            if log is not None:
                log.write(number, values, last=number + 1 == settings.steps)
                if (number + 1) % settings.interval == 0 or number + 1 == end:
                    state = {"phase": phase.name, "step": number + 1, "state": phase.state(), "log": log.pending()}
                    _save(folder / CHECKPOINT, state)
            if progress is not None:
                progress(phase.name, number + 1, settings.steps)
    return end == settings.steps


def _resume(phase: Phase, folder: Path) -> tuple[int, dict[str, list[float]]]:
    """The step to go on with, and the values of the steps before it that are not in the log yet."""
    path = folder / CHECKPOINT
    if not path.exists():
        return 0, {}
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        name, step, state, pending = saved["phase"], saved["step"], saved["state"], saved["log"]
    except (OSError, EOFError, RuntimeError, LookupError, TypeError, pickle.UnpicklingError) as error:
        # What torch says of a file that it would not unpickle advises to load it unsafely.
        reason = "the file is damaged" if isinstance(error, pickle.UnpicklingError) else error
        raise InarchError(
            f"no checkpoint can be read: {reason}", where=str(path), hint="without it the phase begins anew"
        ) from None
    if name != phase.name:
        raise InarchError(f"the checkpoint is of {name!r}, not {phase.name!r}", where=str(path))
    try:
        phase.restore(state)
    except (RuntimeError, LookupError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InarchError(f"the checkpoint is of another model: {reason}", where=str(path)) from None
    return int(step), pending


def _save(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file that is whole or not there."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        torch.save(dict(content), file)
        file.flush()
        os.fsync(file.fileno())  # a power cut leaves the old one or the new one
    os.replace(part, path)


class _Log:
    """``step,name,value``: means over the last :data:`EVERY` steps, in a CSV file and for TensorBoard where that is installed.

    Rows of steps that a resumed run carries out again are dropped first.

    Args:
        path: the file.
        start: the step that the run begins with.
        pending: values of earlier steps of which no row was written yet.
    """

    def __init__(self, path: Path, start: int, pending: Mapping[str, list[float]]) -> None:
        kept: list[list[str]] = []
        if path.exists() and start:
            with path.open(newline="", encoding="utf-8") as file:
                kept = [row for row in list(csv.reader(file))[1:] if len(row) == 3 and int(row[0]) <= start]
        part = path.with_suffix(".part")
        with part.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["step", "name", "value"], *kept])
        os.replace(part, path)  # a run that is killed right here has its log still
        self._file = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file)
        self._sums: dict[str, list[float]] = {name: list(values) for name, values in pending.items()}
        self._board = _board(path.parent / "tensorboard", start)

    def write(self, number: int, values: Mapping[str, float], *, last: bool) -> None:
        """Add a step; ``last`` where no other follows."""
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

    def pending(self) -> dict[str, list[float]]:
        """What is not written yet, for a checkpoint; what is written is on its way to the disk."""
        self._file.flush()
        return {name: list(values) for name, values in self._sums.items()}

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
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


def use_threads(count: int) -> None:
    """Let torch use so many threads; for callers that do not import it."""
    torch.set_num_threads(count)


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
    for step, name, value in (row for row in rows if len(row) == 3):  # a killed run's last row may be cut off
        steps, values = found.setdefault(name, ([], []))
        steps.append(int(step))
        values.append(float(value))
    return found
