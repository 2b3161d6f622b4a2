"""Time a machine's kernels: every form of a site beside its dense form, in rounds, so that all see the same machine.

A round runs each form of one place once, in an order of its own. What is kept is the ratio to the dense form within the round: a
machine that slows down slows both. Rounds go on until every ratio's interval is narrow enough, or the place's share of the time
is over; what one place leaves over goes to the next ones.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

import numpy as np
import numpy.typing as npt

from inarch.runtime.binding import Binding
from inarch.runtime.kernels import SHAPES, Shape, Variant, kernel_feeds, kernel_model, variants
from inarch.runtime.latency import DEVICE_WARM_UP, WARM_UP
from inarch.runtime.placement import measure_placement
from inarch.runtime.providers import CPU, device_memory, software_device
from inarch.runtime.session import Session, SessionOptions
from inarch.structure.cost_figures import Figure, Precision
from inarch.structure.errors import RuntimeFailure

Floats = npt.NDArray[np.float64]
Clock = Callable[[], float]

MIN_ROUNDS = 15
"""Below this a 95 % interval of a median says little."""

CHECK_EVERY = 5
TIGHT = 0.005
"""Half width of a ratio's interval at which more rounds are not worth their time."""

ACCELERATOR_DEPTH = 8
"""Sites in a row away from the CPU: there, copying inputs and outputs would outweigh one site."""


@dataclass(frozen=True)
class Timings:
    """A finished measurement.

    Attributes:
        figures: place by place, the dense form first.
        tight: whether every interval got narrow enough.
        seconds: how long it took.
    """

    figures: tuple[Figure, ...]
    tight: bool
    seconds: float

    @property
    def noise(self) -> float:
        """The median half width of the ratios' intervals, over the ratios."""
        return median((figure.high - figure.low) / 2 / figure.ratio for figure in self.figures if figure.form != "dense")


def time_kernels(
    provider: str = CPU,
    *,
    seconds: float,
    threads: Sequence[int] = (1,),
    precision: Precision = "fp32",
    shapes: Sequence[Shape] = SHAPES,
    warm_up: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    clock: Clock = time.perf_counter,
) -> Timings:
    """Time every form of every site at every thread count.

    Args:
        provider: ORT's name of the execution provider.
        seconds: time to spend; :data:`MIN_ROUNDS` rounds are always run.
        threads: intra-op thread counts.
        precision: of weights and activations.
        shapes: the dense sites.
        warm_up: untimed runs of each form; more where kernels are chosen while running, by default.
        progress: told what is timed, seconds spent and seconds in all.
        clock: seconds from some start on.

    Raises:
        RuntimeFailure: ORT is missing, lacks the provider, falls back from it in whole or in part, or refuses a model; the
            provider's GPU is a program.
    """
    software = software_device(provider)
    if software:
        raise RuntimeFailure(
            f"kernels are timed on a real GPU alone: {software}", hint="run it where the GPU is, or --provider cpu"
        )
    if precision == "fp16" and provider == CPU:
        hint = "fp16 files are for GPUs: name one with --provider, or measure fp32"
        raise RuntimeFailure("ONNX Runtime computes fp16 in fp32 on a CPU, so there is nothing to measure", hint=hint)
    untimed = warm_up if warm_up is not None else DEVICE_WARM_UP if device_memory(provider) is not None else WARM_UP
    report = progress or (lambda stage, done, total: None)
    started = clock()
    places = [(shape, count) for count in threads for shape in shapes]
    figures: list[Figure] = []
    tight = True
    for number, (shape, count) in enumerate(places):
        spent = clock() - started
        stage = f"{shape}, {count} thread{'' if count == 1 else 's'}" if count else str(shape)
        report(stage, round(spent), round(seconds))
        share = max(0.0, seconds - spent) / (len(places) - number)
        forms = variants(shape)
        if provider != CPU:
            _refuse_strays(shape, provider, precision)
        times, narrow = _rounds(
            shape, forms, SessionOptions("all", (provider,), count, rests=True), precision, share, untimed, clock
        )
        figures += [_figure(shape, count, form, times, column) for column, form in enumerate(forms)]
        tight = tight and narrow
    return Timings(tuple(figures), tight, clock() - started)


def _refuse_strays(shape: Shape, provider: str, precision: Precision) -> None:
    """Refuse a provider that leaves products of the dense form to another one.

    Raises:
        RuntimeFailure: it does.
    """
    dense = kernel_model(shape, variants(shape)[0], precision=precision)
    warning = measure_placement(dense, kernel_feeds(shape, precision), provider).warning
    if warning:
        raise RuntimeFailure(f"{shape}: {warning}", hint="what ran elsewhere says nothing about this provider")


def _rounds(
    shape: Shape,
    forms: Sequence[Variant],
    options: SessionOptions,
    precision: Precision,
    seconds: float,
    warm_up: int,
    clock: Clock,
) -> tuple[Floats, bool]:
    """Time one place.

    Returns:
        [rounds, forms] seconds, and whether every interval got narrow enough.
    """
    started = clock()
    rng = np.random.default_rng(0)
    feeds = kernel_feeds(shape, precision)
    depth = 1 if options.providers[0] == CPU else ACCELERATOR_DEPTH
    rows: list[Floats] = []
    with ExitStack() as stack:
        runs: list[Binding] = []
        for form in forms:
            session = stack.enter_context(Session(kernel_model(shape, form, depth=depth, precision=precision), options))
            runs.append(stack.enter_context(session.bind(feeds)))
        for bound in runs:
            for _ in range(warm_up):
                bound.run()
        while True:
            row = np.empty(len(forms))
            for which in rng.permutation(len(forms)):
                before = clock()
                runs[which].run()
                row[which] = clock() - before
            rows.append(row)
            if len(rows) < MIN_ROUNDS:
                continue
            times = np.array(rows)
            if len(rows) % CHECK_EVERY == 0 and widest(times) <= TIGHT:
                return times, True
            if clock() - started >= seconds:
                return times, widest(times) <= TIGHT


def ratio_interval(ratios: Floats) -> tuple[float, float, float]:
    """The median of ratios, and a 95 % interval of it that assumes nothing of their distribution: two of the ordered ratios."""
    ordered = np.sort(ratios)
    count = len(ordered)
    outside = max(0, math.floor((count - 1.96 * math.sqrt(count)) / 2))
    return float(np.median(ordered)), float(ordered[outside]), float(ordered[count - 1 - outside])


def widest(times: Floats) -> float:
    """The largest half width of the forms' intervals; ``times`` is [rounds, forms], the dense form first."""
    return max(((high - low) / 2 for _, low, high in map(ratio_interval, (times / times[:, :1]).T)), default=0.0)


def _figure(shape: Shape, threads: int, form: Variant, times: Floats, column: int) -> Figure:
    mine = times[:, column]
    early, middle, late = (float(value) for value in np.quantile(mine, [0.25, 0.5, 0.75]))
    ratio, low, high = ratio_interval(mine / times[:, 0])
    return Figure(
        kind=shape.kind,
        width=shape.width,
        units=shape.units,
        heads=shape.heads,
        tokens=shape.tokens,
        threads=threads,
        form=form.form,
        stored=form.stored,
        blocks=form.blocks,
        rounds=len(times),
        milliseconds=_digits(middle * 1e3),
        spread=_digits((late - early) / middle),
        ratio=_digits(ratio),
        low=_digits(low),
        high=_digits(high),
    )


def _digits(value: float) -> float:
    """As many digits as such a figure has."""
    return float(f"{value:.5g}")
