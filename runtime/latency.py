"""Latency of two models side by side: interleaved pairs in one process, so that both see the same machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from inarch.runtime.inputs import Case
from inarch.runtime.session import Array, ModelLike, Session, SessionOptions
from inarch.structure.errors import RuntimeFailure

MIN_PAIRS = 30
"""Fewer pairs give no interval worth printing."""

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
    warm_up: int = 3,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    progress: Callable[[int, int], None] | None = None,
) -> tuple[LatencyReport, ...]:
    """Time two models on the same inputs.

    Pairs alternate in order (AB, BA, AB ...), so that neither always finds the cache as the other left it, and the threads of
    the one sleep while the other runs.

    Args:
        dense: the first model, A.
        compiled: the second, B.
        case: the inputs.
        threads: thread counts to measure, one after another.
        pairs: timed pairs a thread count; at least :data:`MIN_PAIRS`.
        warm_up: untimed runs of each model.
        providers: execution providers.
        progress: told pairs done, and pairs in all.

    Raises:
        RuntimeFailure: ORT refuses a model or the inputs; too few pairs.
    """
    if pairs < MIN_PAIRS:
        raise RuntimeFailure(f"{pairs} pairs are too few to say anything", hint=f"at least {MIN_PAIRS}")
    reports = []
    for step, count in enumerate(threads):
        options = SessionOptions("all", tuple(providers), count, rests=True)
        with Session(dense, options) as first, Session(compiled, options) as second:
            sessions = (first, second)
            for session in sessions:
                for _ in range(warm_up):
                    session.run(case.feeds)
            times = np.empty((pairs, 2))
            for pair in range(pairs):
                for which in (0, 1) if pair % 2 == 0 else (1, 0):
                    started = time.perf_counter()
                    sessions[which].run(case.feeds)
                    times[pair, which] = (time.perf_counter() - started) * 1e3
                if progress is not None:
                    progress(step * pairs + pair + 1, len(threads) * pairs)
        reports.append(summarise(times, count, case.name))
    return tuple(reports)


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
