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
from inarch.tools.benchmarks.accuracy_grid import KINDS, Cell

Cells = Mapping[Cell, Mapping[str, Any]]
OURS = "joint"


def pack(right: npt.NDArray[np.bool_]) -> str:
    """Booleans as text, eight a byte."""
    return base64.b64encode(np.packbits(right).tobytes()).decode()


def unpack(text: str, count: int) -> npt.NDArray[np.float64]:
    """The inverse of :func:`pack`, as numbers."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=count).astype(np.float64)


def of(cells: Cells, method: str, keep: float, kind: str) -> dict[int, Mapping[str, Any]]:
    """Seed -> what a method did on a task."""
    return {cell.seed: data for cell, data in cells.items() if (cell.kind, cell.method, cell.keep) == (kind, method, keep)}


def compare(cells: Cells, first: tuple[str, float], second: tuple[str, float], kind: str) -> Paired | None:
    """Second less first over the seeds that both have; None where there is none."""
    one, other = (of(cells, *which, kind) for which in (first, second))
    seeds = sorted(one.keys() & other.keys())
    if not seeds:
        return None
    return paired_over_seeds([_right(one[seed]) for seed in seeds], [_right(other[seed]) for seed in seeds])


def _right(data: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    return unpack(data["right"], data["samples"])


def _kept(runs: Sequence[Mapping[str, Any]]) -> float:
    """Parameters stored, as a fraction of the whole model's: more than was asked for where a method cannot reach that."""
    return float(np.mean([data["stored"] / data["parameters"] for data in runs]))


def table_rows(cells: Cells, kind: str) -> list[list[str]]:
    """One row a method and fraction: what it stores, accuracy, difference to dense, difference of ours to it."""
    rows = []
    there = {(cell.method, cell.keep) for cell in cells if cell.kind == kind}
    for method, keep in sorted(there, key=lambda one: (-one[1], one[0] != OURS, one[0])):
        mine = list(of(cells, method, keep, kind).values())
        kept = _kept(mine)
        inside = f"{100 * np.mean([data['backbones'] for data in mine]):.1f}" if all("backbones" in data for data in mine) else ""
        rows.append(
            [
                method,
                f"{keep:.2f}",
                f"{100 * kept:.1f}",
                inside,
                str(len(mine)),
                f"{100 * np.mean([data['grounding'] for data in mine]):.2f}",
                f"{100 * np.mean([_right(data).mean() for data in mine]):.2f}",
                _interval(compare(cells, ("dense", 1.0), (method, keep), kind)) if method != "dense" else "",
                _interval(compare(cells, (method, keep), (OURS, keep), kind)) if method not in ("dense", OURS) else "",
            ]
        )
    return rows


def _interval(found: Paired | None) -> str:
    if found is None:
        return ""
    return f"{100 * found.difference:+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"


def write_report(cells: Cells, folder: Path, kinds: Sequence[str] = KINDS, name: str = "accuracy") -> None:
    """Print the tables, and write them as ``accuracy.md`` with the pictures beside it."""
    if not cells:
        render.say("no cell is stored yet")
        return
    there = [kind for kind in kinds if any(cell.kind == kind for cell in cells)]
    methods = {(cell.method, cell.keep, cell.seed): data["learning_seconds"] for cell, data in cells.items()}
    hours = (sum(data["seconds"] for data in cells.values()) + sum(methods.values())) / 3600
    described = ", ".join(f"{key} {value}" for key, value in machine.describe().items() if key != "load_before")
    lines = [
        "# Accuracy",
        "",
        "`make bench-accuracy` (`--table` prints what is stored). Every cell starts from one dense model a seed and gets as",
        "many steps; figures are per cent of held-out samples, differences are paired, with 95 % intervals over samples and",
        "seeds. `stored` is of the whole model, `backbones` of the two backbones' sites alone, and `keep` what was asked for,",
        "which not every rule can reach; `grounding` is recall before tuning.",
        f"{len(cells)} cells, {hours:.1f} hours in all without dense pre-training.",
        f"Printed on: {described}.",
        "",
    ]
    for kind in there:
        samples = next(data["samples"] for cell, data in cells.items() if cell.kind == kind)
        rows = table_rows(cells, kind)
        header = ["method", "keep", "stored %", "backbones %", "seeds", "grounding", kind, "less dense", "ours less it"]
        lines += [f"## {kind}, {samples:,} held-out samples", ""]
        lines += ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)] + [""]
        render.say(f"{kind}: {len(rows)} methods and fractions")
        for row in rows:
            render.say("  ".join(row))
    if draw(cells, there, folder / f"{name}.png"):
        lines += [f"![accuracy against parameters]({name}.png)", ""]
    (folder / f"{name}.md").write_text("\n".join(lines), encoding="utf-8")
    render.say(f"{len(cells)} cells, written to {folder / name}.md")


def draw(cells: Cells, kinds: Sequence[str], out: Path) -> bool:
    """Accuracy against what is stored, one panel a task; False where there is nothing to draw with."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(5.2 * len(kinds), 3.8), layout="constrained")
    for panel, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        mine = [cell for cell in cells if cell.kind == kind]
        for method in sorted({cell.method for cell in mine}, key=lambda one: (one != OURS, one)):
            keeps = sorted({cell.keep for cell in mine if cell.method == method})
            runs = [of(cells, method, keep, kind).values() for keep in keeps]
            means = [100 * float(np.mean([_right(data).mean() for data in found])) for found in runs]
            if method == "dense":
                panel.axhline(means[0], color="black", linewidth=0.8, label="dense")
                continue
            style = {"linewidth": 2.2, "zorder": 3} if method == OURS else {"linewidth": 1.0, "alpha": 0.8}
            panel.plot([100 * _kept(list(found)) for found in runs], means, marker="o", markersize=4, label=method, **style)
        panel.set(title=kind, xlabel="stored parameters, % of the whole model", ylabel="accuracy, %")
        panel.legend(frameon=False, fontsize=7)
    figure.savefig(out, dpi=110)
    return True
