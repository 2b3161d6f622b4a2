"""The grid of accuracies as a table and as pictures: means over seeds, differences to dense and to ours with their intervals."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inarch.runtime.accuracy import Paired, paired_over_seeds
from inarch.tools import render
from inarch.tools.benchmarks import machine
from inarch.tools.benchmarks.accuracy_grid import Cell

Cells = Mapping[Cell, Mapping[str, Any]]
About = tuple[str, str]
"""Setting and task: what methods are compared within."""

OURS = ("joint", "tied", "unbound")
"""Our method as the grid began with it, for models that grew in depth, and as it is now: the first that is there is compared."""


def pack(scores: npt.NDArray[np.float64]) -> str:
    """Scores between 0 and 1 as text: eight a byte where each is right or wrong, else in steps of 1/255."""
    if np.isin(scores, (0, 1)).all():
        return base64.b64encode(np.packbits(scores > 0).tobytes()).decode()
    return base64.b64encode(np.round(scores * 255).astype(np.uint8).tobytes()).decode()


def unpack(text: str, count: int) -> npt.NDArray[np.float64]:
    """The inverse of :func:`pack`."""
    found = np.frombuffer(base64.b64decode(text), np.uint8)
    if len(found) == count > 1:
        return found / 255
    return np.unpackbits(found, count=count).astype(np.float64)


LINES = {"": "-", ", distilled": "--", ", distilled throughout": ":"}
MARKERS = {"": "o", ", distilled": "s", ", distilled throughout": "^"}
"""How a line and its points are drawn, by how long what they show had a teacher."""


def of(cells: Cells, label: str, keep: float, about: About) -> dict[int, Mapping[str, Any]]:
    """Seed -> what a method did on a task."""
    return {cell.seed: data for cell, data in cells.items() if (cell.about, cell.label, cell.keep) == (about, label, keep)}


def compare(cells: Cells, first: tuple[str, float], second: tuple[str, float], about: About) -> Paired | None:
    """Second less first over the seeds that both have; None where there is none."""
    one, other = (of(cells, *which, about) for which in (first, second))
    seeds = sorted(one.keys() & other.keys())
    if not seeds:
        return None
    return paired_over_seeds([_scores(one[seed]) for seed in seeds], [_scores(other[seed]) for seed in seeds])


def _scores(data: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    return unpack(data["scores"], data["samples"])


def _kept(runs: Sequence[Mapping[str, Any]]) -> float:
    """Parameters stored, as a fraction of the whole model's: more than was asked for where a method cannot reach that."""
    return float(np.mean([data["stored"] / data["parameters"] for data in runs]))


def ours_in(cells: Cells, about: About) -> str:
    """Which of ours the others of a setting and task are compared with."""
    methods = {cell.method for cell in cells if cell.about == about}
    return next((one for one in OURS if one in methods), OURS[0])


def table_rows(cells: Cells, about: About) -> list[list[str]]:
    """One row a method and fraction: what it stores, accuracy, difference to dense, difference of ours to it.

    Means are over a row's own seeds, which it names: only the differences compare rows that have others.
    """
    rows = []
    there = {(cell.label, cell.keep) for cell in cells if cell.about == about}
    mine_is = ours_in(cells, about)
    for method, keep in sorted(there, key=lambda one: (-one[1], not one[0].startswith(mine_is), one[0])):
        _, comma, taught = method.partition(",")
        ours = mine_is + comma + taught  # like is compared with like
        runs = of(cells, method, keep, about)
        mine = list(runs.values())
        kept = _kept(mine)
        inside = f"{100 * np.mean([data['backbones'] for data in mine]):.1f}" if all("backbones" in data for data in mine) else ""
        rows.append(
            [
                method,
                f"{keep:.2f}",
                f"{100 * kept:.1f}",
                inside,
                _seeds(runs),
                _before(cells, (method, keep), about),
                f"{100 * np.mean([_scores(data).mean() for data in mine]):.2f}",
                _interval(compare(cells, ("dense", 1.0), (method, keep), about)) if method != "dense" else "",
                _interval(compare(cells, (method, keep), (ours, keep), about)) if method not in ("dense", ours) else "",
            ]
        )
    return rows


def _before(cells: Cells, which: tuple[str, float], about: About) -> str:
    """What it was worth before tuning, and how much less that is than dense after as many steps: what hardening costs."""
    mine, dense = of(cells, *which, about), of(cells, "dense", 1.0, about)
    found = f"{100 * np.mean([data['before'] for data in mine.values()]):.2f}"
    seeds = sorted(mine.keys() & dense.keys())
    if which[0] == "dense" or not seeds:
        return found
    return f"{found} ({100 * np.mean([mine[seed]['before'] - dense[seed]['before'] for seed in seeds]):+.2f})"


def _seeds(runs: Mapping[int, object]) -> str:
    """Which there are: ``0-2``, or ``0, 2``."""
    seeds = sorted(runs)
    if len(seeds) > 1 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]}-{seeds[-1]}"
    return ", ".join(map(str, seeds))


def _interval(found: Paired | None) -> str:
    if found is None:
        return ""
    return f"{100 * found.difference:+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"


def write_report(cells: Cells, folder: Path, name: str = "accuracy") -> None:
    """Print the tables, and write them as ``accuracy.md`` with the pictures beside it."""
    if not cells:
        render.say("no cell is stored yet")
        return
    there = list(dict.fromkeys(cell.about for cell in cells))
    methods = {
        (cell.setting, cell.method, cell.taught, cell.keep, cell.seed): data["learning_seconds"] for cell, data in cells.items()
    }
    hours = (sum(data["seconds"] for data in cells.values()) + sum(methods.values())) / 3600
    described = ", ".join(f"{key} {value}" for key, value in machine.describe().items() if key != "load_before")
    lines = [
        "# Accuracy",
        "",
        "`make bench-accuracy` (`--table` prints what is stored). Every cell starts from one dense model a seed and gets as",
        "many steps; figures are per cent of held-out samples, differences are paired, with 95 % intervals over samples and",
        "seeds. Means are over the seeds that a row names, so only differences compare rows with others. `stored` is of the",
        "whole model, `backbones` of the two backbones' sites alone, and `keep` what was asked for, which not every rule can",
        "reach; `before` is what a model is worth before tuning, on what the structure was learned by: recall of phrases, or",
        "accuracy where a task has only questions; in brackets, less what dense is worth after as many steps: what the way to",
        "the structure costs. `distilled` was tuned with the tuned dense model as its teacher, which costs a third more a step;",
        "`throughout`, the dense model after as many further steps was its teacher before that, too. `ours` is taught alike.",
        "`ours` is `joint`, in which, as in its ablations, attentions of a family lose heads together though they share nothing:",
        "the default when the grid was begun. `unbound` is the same without that, the default now, and ours where a setting has",
        "no `joint`. Dense models of `scenes-grown` had half the layers for half of their steps, and then each of them twice:",
        "`tied`, in which such neighbours share everything that they keep, is ours there.",
        f"{len(cells)} cells, {hours:.1f} hours in all without dense pre-training.",
        f"Printed on: {described}.",
        "",
    ]
    for about in there:
        first = next(data for cell, data in cells.items() if cell.about == about)
        rows = table_rows(cells, about)
        setting, kind = about
        title = f"{setting}, {kind}: {first['metric']} of {first['samples']:,} held-out samples"
        header = ["method", "keep", "stored %", "backbones %", "seeds", "before", kind, "less dense", "ours less it"]
        lines += [f"## {title}", ""]
        lines += ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)] + [""]
        render.say(f"{setting}, {kind}: {len(rows)} methods and fractions")
        for row in rows:
            render.say("  ".join(row))
    if draw(cells, there, folder / f"{name}.png"):
        lines += [f"![accuracy against parameters]({name}.png)", ""]
    (folder / f"{name}.md").write_text("\n".join(lines), encoding="utf-8")
    render.say(f"{len(cells)} cells, written to {folder / name}.md")


def draw(cells: Cells, there: Sequence[About], out: Path) -> bool:
    """Difference to dense against what is stored, one panel a setting and task; False where there is nothing to draw with."""
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ImportError:
        return False
    wide = min(len(there), 2)
    high = -(-len(there) // wide)
    figure = Figure(figsize=(7.0 * wide, 3.8 * high), layout="constrained")
    spectrum = [*range(0, 20, 2), *range(1, 20, 2)]  # the strong ones first
    methods = sorted({cell.method for cell in cells}, key=lambda one: (one not in OURS, one))
    colours = {method: colormaps["tab20"](spectrum[number % 20]) for number, method in enumerate(methods)}
    looks = {cell.label: (colours[cell.method], LINES[cell.how], MARKERS[cell.how]) for cell in cells}
    panels = list(figure.subplots(high, wide, squeeze=False).flat)
    for panel, about in zip(panels, there, strict=False):
        mine = [cell for cell in cells if cell.about == about]
        for method in sorted({cell.label for cell in mine}, key=lambda one: (not one.startswith(OURS), one)):
            colour, line, marker = looks[method]
            keeps = sorted({cell.keep for cell in mine if cell.label == method})
            found = [(keep, compare(cells, ("dense", 1.0), (method, keep), about)) for keep in keeps]
            there_too = [(keep, 100 * paired.difference) for keep, paired in found if paired is not None]
            if method == "dense" or not there_too:
                continue
            kept = [100 * _kept(list(of(cells, method, keep, about).values())) for keep, _ in there_too]
            style = {"linewidth": 2.2, "zorder": 3} if method.startswith(OURS) else {"linewidth": 1.0, "alpha": 0.8}
            points = [value for _, value in there_too]
            panel.plot(kept, points, marker=marker, markersize=5, label=method, color=colour, linestyle=line, **style)
        panel.axhline(0, color="black", linewidth=0.8, label="dense")
        panel.set(title=", ".join(about), xlim=(15, 100), ylabel="points above dense, same seeds")
        panel.set_xlabel("stored parameters, % of the whole model")
        low, top = panel.get_ylim()
        panel.set_ylim(min(low, -1.0), max(top, 0.5))  # no panel makes much of a tenth of a point
        panel.legend(frameon=False, fontsize=7, handlelength=3, loc="upper left", bbox_to_anchor=(1, 1))
    for panel in panels[len(there) :]:
        panel.set_axis_off()
    figure.savefig(out, dpi=110)
    return True
