"""Latency of models side by side: interleaved runs in one process, so that all of them see the same machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from inarch.runtime.inputs import Case
from inarch.runtime.providers import CPU, device_memory, software_device
from inarch.runtime.session import Array, ModelLike, Session, SessionOptions
from inarch.structure.errors import RuntimeFailure

MIN_PAIRS = 30
"""Fewer pairs give no interval worth printing."""

WARM_UP = 3
"""Untimed runs of each model."""

DEVICE_WARM_UP = 10
"""The same where kernels are chosen and memory is laid out while running."""

_RESAMPLES = 4000


@dataclass(frozen=True)
class Timing:
    """Runs of one model, in milliseconds.

    Attributes:
        median: of all runs.
        p95: the 95th percentile.
        spread: interquartile range over the median.
    """

    median: float
    p95: float
    spread: float


@dataclass(frozen=True)
class LatencyReport:
    """Two models at one thread count.

    Attributes:
        threads: intra-op threads.
        pairs: how many times both were run, one right after the other.
        dense: the first model.
        compiled: the second.
        ratio: median of compiled over median of dense.
        low: lower end of the ratio's 95 % bootstrap interval, over pairs.
        high: upper end.
        case: name of the inputs.
    """

    threads: int
    pairs: int
    dense: Timing
    compiled: Timing
    ratio: float
    low: float
    high: float
    case: str

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        return asdict(self)


def measure_latency(
    dense: ModelLike,
    compiled: ModelLike,
    case: Case,
    *,
    threads: Sequence[int] = (1, 2),
    pairs: int = MIN_PAIRS,
    warm_up: int | None = None,
    providers: Sequence[str] = (CPU,),
    progress: Callable[[int, int], None] | None = None,
) -> tuple[LatencyReport, ...]:
    """Time two models on the same inputs: :func:`measure_side_by_side` with one model beside the first.

    Raises:
        RuntimeFailure: as there.
    """
    return measure_side_by_side(
        dense, (compiled,), case, threads=threads, rounds=pairs, warm_up=warm_up, providers=providers, progress=progress
    )[0]


def measure_side_by_side(
    dense: ModelLike,
    others: Sequence[ModelLike],
    case: Case,
    *,
    threads: Sequence[int] = (1,),
    rounds: int = MIN_PAIRS,
    warm_up: int | None = None,
    providers: Sequence[str] = (CPU,),
    progress: Callable[[int, int], None] | None = None,
) -> tuple[tuple[LatencyReport, ...], ...]:
    """Time several models on the same inputs, all of them in every round.

    A round begins with another model each time, and goes backward half of the time, so that none always finds the cache as one
    other left it; the threads of all but one sleep. On other providers than the CPU inputs are bound once. A run ends when its
    outputs are computed, on a GPU too.

    Args:
        dense: the model that the others are held against.
        others: the others.
        case: the inputs.
        threads: thread counts to measure, one after another.
        rounds: timed runs of each model a thread count; at least :data:`MIN_PAIRS`.
        warm_up: untimed runs of each model; by default :data:`WARM_UP`, and more where kernels are chosen while running.
        providers: execution providers.
        progress: told rounds done, and rounds in all.

    Returns:
        For each of the others, one report a thread count.

    Raises:
        RuntimeFailure: ORT refuses a model or the inputs; too few rounds; the provider's GPU is a program.
    """
    if rounds < MIN_PAIRS:
        raise RuntimeFailure(f"{rounds} pairs are too few to say anything", hint=f"at least {MIN_PAIRS}")
    software = software_device(providers[0])
    if software:
        raise RuntimeFailure(f"latency is reported from a real GPU alone: {software}")
    on_device = device_memory(providers[0]) is not None
    untimed = warm_up if warm_up is not None else DEVICE_WARM_UP if on_device else WARM_UP
    reports: list[list[LatencyReport]] = [[] for _ in others]
    for step, count in enumerate(threads):
        options = SessionOptions("all", tuple(providers), count, rests=True)
        with ExitStack() as stack:
            sessions = [stack.enter_context(Session(model, options)) for model in (dense, *others)]
            runs = [_runner(stack, session, case, bound=providers[0] != CPU) for session in sessions]
            for run in runs:
                for _ in range(untimed):
                    run()
            times = np.empty((rounds, len(runs)))
            for number in range(rounds):
                for which in order_of(number, len(runs)):
                    started = time.perf_counter()
                    runs[which]()
                    times[number, which] = (time.perf_counter() - started) * 1e3
                if progress is not None:
                    progress(step * rounds + number + 1, len(threads) * rounds)
        for column, found in enumerate(reports, start=1):
            found.append(summarise(times[:, [0, column]], count, case.name))
    return tuple(tuple(found) for found in reports)


def order_of(number: int, models: int) -> list[int]:
    """Which model runs when in round ``number``: rotated by one a round, and backward every other turn."""
    first = number % models
    order = [*range(first, models), *range(first)]
    return order[::-1] if number // models % 2 else order


def _runner(stack: ExitStack, session: Session, case: Case, *, bound: bool) -> Callable[[], object]:
    """What runs a session once; on the CPU there is no memory to bind, and a run is what a caller's run is."""
    return stack.enter_context(session.bind(case.feeds)).run if bound else lambda: session.run(case.feeds)


def summarise(times: Array, threads: int, case: str, *, seed: int = 0) -> LatencyReport:
    """Medians, and a confidence interval of their ratio.

    Args:
        times: [pairs, 2] milliseconds: dense, compiled.
        threads: intra-op threads, for the record.
        case: name of the inputs, for the record.
        seed: of the bootstrap.
    """
    pairs = len(times)
    medians = np.median(times, axis=0)
    picks = np.random.default_rng(seed).integers(0, pairs, (_RESAMPLES, pairs))
    # Whole pairs are drawn, so that what slowed both runs of a pair stays in both.
    resampled = np.median(times[picks], axis=1)
    low, high = np.quantile(resampled[:, 1] / resampled[:, 0], [0.025, 0.975])
    return LatencyReport(
        threads, pairs, _timing(times[:, 0]), _timing(times[:, 1]), float(medians[1] / medians[0]), float(low), float(high), case
    )


def _timing(times: Array) -> Timing:
    first, middle, third, late = (float(value) for value in np.quantile(times, [0.25, 0.5, 0.75, 0.95]))
    return Timing(middle, late, (third - first) / middle if middle and math.isfinite(middle) else 0.0)
