"""Timings of kernels -> a cost table.

What is wanted is a price: how many per cent of a site's bytes one per cent of its latency is worth. It is 1 where nothing is
preferred, little for ``size``, much for ``latency``. All limits follow from it and from the timings:

- ``max_segments``: the most blocks at which a model made of the measured sites stays within a budget of latency;
- ``min_segment``: the units that are computed in the time that a further block costs, times the price: a narrower segment saves
  fewer bytes than its block costs time;
- ``multiple``: where price times the time lost off it, and the units that are stored to reach it, are least together;
- ``rounding``: price times the time lost by the worst widths: more bytes than that are not worth a better width.

Timings of several sites are weighed by their time, as in a model that has one of each; of several thread counts the worst counts.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from types import MappingProxyType
from typing import Final

from inarch.structure.cost import CostTable, Limits, Preference
from inarch.structure.cost_figures import Figure, Form, Measured, Place

Wish = Preference | None

PRICE: Final[Mapping[Wish, float]] = MappingProxyType({"size": 0.05, None: 1.0, "latency": 4.0})
"""Bytes of a site, in per cent, that one per cent of its latency is worth."""

BUDGET: Final[Mapping[Wish, float]] = MappingProxyType({"size": 0.10, None: 0.02, "latency": 0.005})
"""How much slower than dense sites may be that are split into as many blocks as are allowed."""

MULTIPLES: Final = (1, 2, 4, 8, 16, 32, 64)
FEWEST_SEGMENTS: Final = 2
"""A plan that shares a part of a site needs two blocks, whatever they cost."""


@dataclass(frozen=True)
class Findings:
    """What the timings say, before anyone's preference.

    Attributes:
        slower: blocks -> time over dense, of a model made of all measured sites split into so many.
        block_units: units of a site that are computed in the time that a further block costs.
        lost: multiple -> fraction of the time that widths lose which are multiples of it and of nothing more.
        typical: units of a block that is rounded.
    """

    slower: Mapping[int, float]
    block_units: float
    lost: Mapping[int, float]
    typical: float


def findings(figures: Sequence[Figure]) -> Findings:
    """Read the timings. O(figures).

    Raises:
        ValueError: a place lacks its dense form, or no form was split.
    """
    places: defaultdict[Place, list[Figure]] = defaultdict(list)
    for figure in figures:
        places[figure.place].append(figure)
    if not any(figure.form == "split" for figure in figures):
        raise ValueError("no site was timed split")
    by_threads: defaultdict[int, dict[Place, list[Figure]]] = defaultdict(dict)
    for place, mine in places.items():
        by_threads[place.threads][place] = mine
    runs = list(by_threads.values())
    slower = _worst([_slower(run) for run in runs])
    lost = _worst([_lost(run) for run in runs])
    narrow = [min((f.stored for f in mine if f.form == "width"), default=place.units) for place, mine in places.items()]
    return Findings(slower, max(_block_units(run) for run in runs), lost, float(median(narrow)))


def derive(measured: Measured) -> CostTable:
    """The cost table that a measurement amounts to.

    Raises:
        ValueError: as :func:`findings`.
    """
    found = findings(measured.figures)
    description = (
        f"measured by inarch calibrate on {measured.date}: {measured.device}, {measured.provider}, "
        f"onnxruntime {measured.onnxruntime}, {measured.precision}"
    )
    return CostTable(
        format="inarch.cost/1",
        description=description,
        balanced=limits(found, None),
        size=limits(found, "size"),
        latency=limits(found, "latency"),
        measured=measured,
    )


def limits(found: Findings, wish: Wish) -> Limits:
    """The limits for one preference. Counts of units are powers of two, so that two measurements of one machine agree."""
    price = PRICE[wish]
    most = FEWEST_SEGMENTS
    for blocks in sorted(found.slower):
        if found.slower[blocks] > 1 + BUDGET[wish]:
            break
        most = max(most, blocks)
    # Of equal prices the smallest multiple is taken.
    multiple = min(MULTIPLES, key=lambda m: (price * found.lost.get(m, 0.0) + (m - 1) / 2 / found.typical, m))
    return Limits(
        multiple=multiple,
        rounding=round(min(0.5, price * found.lost.get(1, 0.0)), 3) if multiple > 1 else 0.0,
        min_segment=max(multiple, _power_of_two(price * found.block_units)),
        max_segments=most,
    )


def _power_of_two(value: float) -> int:
    """The power of two that is nearest in ratio, at least 1."""
    return int(2 ** max(0, round(math.log2(value)))) if value > 0 else 1


def _dense(place: Place, figures: Sequence[Figure]) -> Figure:
    """The form that the place's ratios are over.

    Raises:
        ValueError: it was not timed.
    """
    found = next((figure for figure in figures if figure.form == "dense"), None)
    if found is None:
        raise ValueError(f"{place} lacks its dense form")
    return found


def _worst(runs: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Key by key the largest value of several runs."""
    keys = sorted({key for run in runs for key in run})
    return {key: max(run[key] for run in runs if key in run) for key in keys}


def _slower(run: Mapping[Place, Sequence[Figure]]) -> dict[int, float]:
    """Blocks -> time over dense of all sites together; an MSA half in groups of heads, half inside its heads."""
    counts = sorted({figure.blocks for figures in run.values() for figure in figures if figure.form == "split"})
    result: dict[int, float] = {}
    for blocks in counts:
        before = after = 0.0
        for place, figures in run.items():
            ratios = [f.ratio for f in figures if f.form in ("split", "inside") and f.blocks == blocks]
            if ratios:
                time = _dense(place, figures).milliseconds
                before += time
                after += time * mean(ratios)
        result[blocks] = after / before
    return result


def _block_units(run: Mapping[Place, Sequence[Figure]]) -> float:
    """The median over sites and forms of the units that are computed in the time of one further block."""
    forms: tuple[Form, ...] = ("split", "inside")
    found: list[float] = []
    for place, figures in run.items():
        for form in forms:
            mine = [(f.blocks - 1, f.ratio - 1) for f in figures if f.form == form and f.blocks > 1]
            if mine:
                # Least squares through the dense form: time grows by the same with each block.
                slope = sum(x * y for x, y in mine) / sum(x * x for x, _ in mine)
                found.append(max(0.0, slope) * place.units)
    return float(median(found)) if found else 0.0


def width_losses(figures: Sequence[Figure]) -> list[tuple[Figure, float]]:
    """A place's widths between its two good ones, each with the ratio that a line between these gives it."""
    widths = sorted((f for f in figures if f.form == "width"), key=lambda f: f.stored)
    if len(widths) < 3:
        return []
    first, last = widths[0], widths[-1]
    slope = (last.ratio - first.ratio) / (last.stored - first.stored)
    return [(figure, first.ratio + slope * (figure.stored - first.stored)) for figure in widths[1:-1]]


def multiple_of(units: int) -> int:
    """The largest power of two that divides a width."""
    return units & -units


def _lost(run: Mapping[Place, Sequence[Figure]]) -> dict[int, float]:
    """Multiple -> fraction of time lost by widths that are multiples of no more, against a line between two good widths.

    It does not rise with the multiple: where a larger one was timed worse, what holds for it holds below.
    """
    lost: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
    for place, figures in run.items():
        time = _dense(place, figures).milliseconds
        for figure, ideal in width_losses(figures):
            # What lies within the interval may be noise, and a multiple is paid for in bytes: only the rest counts.
            lost[multiple_of(figure.stored)].append((time, figure.low / ideal - 1))
    means = {m: sum(t * x for t, x in rows) / sum(t for t, _ in rows) for m, rows in lost.items()}
    result: dict[int, float] = {}
    worst = 0.0
    for multiple in sorted({*means, *MULTIPLES}, reverse=True):
        worst = max(worst, means.get(multiple, 0.0))
        result[multiple] = worst
    return result
