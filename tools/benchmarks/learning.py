"""``make bench-learning``: what a structure-learning step costs beside a plain training step, in one run, one after the other."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from inarch.tools import render
from inarch.tools.benchmarks import machine

LIMIT = 1.3
SAMPLE = 3.0
"""Milliseconds a sample that a tiny preset's training step may cost on 2 cores."""


def main(argv: Sequence[str] | None = None) -> int:
    """Time both kinds of steps in turn; the exit code is 1 where a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60, help="of each kind")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="", help="no or bf16; without it, what is faster here")
    parser.add_argument("--out", type=Path, default=Path("docs/measurements"))
    args = parser.parse_args(argv)
    from inarch.learning.config import LearnConfig, configure
    from inarch.learning.precision import faster_precision
    from inarch.learning.runs import learn_phase
    from inarch.learning.trainer import use_threads
    from inarch.learning.workshop import workshop

    use_threads(args.threads)
    settings = {"data.scenes": 1000, "learning.steps": 1_000_000}
    precision = args.precision or faster_precision(workshop(configure(LearnConfig, settings)))
    config = configure(LearnConfig, settings | {"precision": precision})
    phase = learn_phase(workshop(config))
    for number in range(6):
        phase.step(number)
    times: dict[str, list[float]] = {"weights": [], "structure": []}
    for number in range(6, 6 + 2 * args.steps):
        times["structure" if number % 2 else "weights"].append(_timed(phase.step, number))
    ratios = np.array(times["structure"]) / np.array(times["weights"])
    plain, structure = (1e3 * float(np.median(times[name])) for name in ("weights", "structure"))
    ratio = float(np.median(ratios))
    samples = config.data.images * config.data.each
    low, high = np.percentile(ratios, [5, 95])
    text = (
        f"# A step of learning\n\n`make bench-learning`: {config.model}, {samples} samples a step, {args.threads} threads, "
        f"precision {precision}.\n\n"
        "| | ms a step | ms a sample |\n| --- | --- | --- |\n"
        f"| weights | {plain:.1f} | {plain / samples:.2f} |\n| structure | {structure:.1f} | {structure / samples:.2f} |\n\n"
        f"Median of {args.steps} paired ratios {ratio:.3f}, from {low:.3f} to {high:.3f} (5 to 95 %); allowed {LIMIT}.\n\n"
        f"{', '.join(f'{key} {value}' for key, value in machine.describe().items())}\n"
    )
    data = {"weights_ms": plain, "structure_ms": structure, "ratio": ratio, "samples": samples, "machine": machine.describe()}
    machine.record(args.out, "learning", data, text)
    render.say(text)
    return int(ratio > LIMIT or plain / samples > SAMPLE)


def _timed(step: Callable[[int], object], number: int) -> float:
    start = time.perf_counter()
    step(number)
    return time.perf_counter() - start


if __name__ == "__main__":
    raise SystemExit(main())
