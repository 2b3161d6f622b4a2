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
OURS = "joint"


def pack(right: npt.NDArray[np.bool_]) -> str:
    """Booleans as text, eight a byte."""
    return base64.b64encode(np.packbits(right).tobytes()).decode()


def unpack(text: str, count: int) -> npt.NDArray[np.float64]:
    """The inverse of :func:`pack`, as numbers."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=count).astype(np.float64)


def rights(cells: Cells, method: str, keep: float, kind: str, seeds: Sequence[int]) -> list[npt.NDArray[np.float64]]:
    """Which samples were right, one array a seed."""
    found = {cell.seed: data for cell, data in cells.items() if cell.method == method and cell.keep == keep}
    return [unpack(found[seed]["tasks"][kind]["right"], found[seed]["tasks"][kind]["samples"]) for seed in seeds]


def seeds_of(cells: Cells, method: str, keep: float) -> list[int]:
    """Seeds of which there is a cell."""
    return sorted(cell.seed for cell in cells if cell.method == method and cell.keep == keep)


def compare(cells: Cells, first: tuple[str, float], second: tuple[str, float], kind: str) -> Paired | None:
    """Second less first over the seeds that both have; None where there is none."""
    seeds = sorted(set(seeds_of(cells, *first)) & set(seeds_of(cells, *second)))
    if not seeds:
        return None
    return paired_over_seeds(rights(cells, *first, kind, seeds), rights(cells, *second, kind, seeds))


def table_rows(cells: Cells, kinds: Sequence[str]) -> list[list[str]]:
    """One row a method and fraction: what it stores, accuracy, difference to dense, difference of ours to it."""
    rows = []
    for method, keep in sorted({(cell.method, cell.keep) for cell in cells}, key=lambda one: (-one[1], one[0] != OURS, one[0])):
        mine = [data for cell, data in cells.items() if (cell.method, cell.keep) == (method, keep)]
        kept = np.mean([data["stored"] / data["parameters"] for data in mine])
        row = [method, f"{keep:.2f}", f"{100 * kept:.1f}", str(len(mine)), f"{100 * np.mean([d['grounding'] for d in mine]):.2f}"]
        for kind in kinds:
            values = [float(np.mean(one)) for one in rights(cells, method, keep, kind, seeds_of(cells, method, keep))]
            row.append(f"{100 * np.mean(values):.2f}")
            row.append(_interval(compare(cells, ("dense", 1.0), (method, keep), kind)) if method != "dense" else "")
            ours = compare(cells, (method, keep), (OURS, keep), kind) if method not in ("dense", OURS) else None
            row.append(_interval(ours))
        rows.append(row)
    return rows


def _interval(found: Paired | None) -> str:
    if found is None:
        return ""
    return f"{100 * found.difference:+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"


def write_report(cells: Cells, folder: Path, kinds: Sequence[str] = ("referring", "vqa"), name: str = "accuracy") -> None:
    """Print the table, and write it as ``accuracy.md`` with the pictures beside it."""
    if not cells:
        render.say("no cell is stored yet")
        return
    header = ["method", "keep", "stored %", "seeds", "grounding"]
    for kind in kinds:
        header += [kind, "- dense", "ours - it"]
    rows = table_rows(cells, kinds)
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    seconds = sum(data["seconds"] for data in cells.values())
    described = ", ".join(f"{key} {value}" for key, value in machine.describe().items() if key != "load_before")
    samples = next(iter(cells.values()))["tasks"][kinds[0]]["samples"]
    text = "\n".join(
        [
            "# Accuracy",
            "",
            "`make bench-accuracy` (`--table` prints what is stored). Every cell starts from one dense model a seed and gets as",
            "many steps; figures are per cent of held-out samples, differences are paired, with 95 % intervals over samples and",
            f"seeds. {len(cells)} cells, {samples:,} held-out samples a task, {seconds / 3600:.1f} hours in all without dense",
            "pre-training.",
            f"Printed on: {described}.",
            "",
            *lines,
            "",
            *([f"![accuracy against parameters]({name}.png)", ""] if draw(cells, kinds, folder / f"{name}.png") else []),
        ]
    )
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    render.say(f"{len(cells)} cells, written to {folder / name}.md")
    for row in rows:
        render.say("  ".join(row))


def draw(cells: Cells, kinds: Sequence[str], out: Path) -> bool:
    """Accuracy against what is stored, one panel a task; False where there is nothing to draw with."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(5.2 * len(kinds), 3.8), layout="constrained")
    for panel, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        for method in sorted({cell.method for cell in cells}, key=lambda one: (one != OURS, one)):
            keeps = sorted({cell.keep for cell in cells if cell.method == method})
            points = [(keep, rights(cells, method, keep, kind, seeds_of(cells, method, keep))) for keep in keeps]
            means = [100 * float(np.mean([one.mean() for one in runs])) for _, runs in points]
            if method == "dense":
                panel.axhline(means[0], color="black", linewidth=0.8, label="dense")
                continue
            style = {"linewidth": 2.2, "zorder": 3} if method == OURS else {"linewidth": 1.0, "alpha": 0.8}
            panel.plot([100 * keep for keep in keeps], means, marker="o", markersize=4, label=method, **style)
        panel.set(title=kind, xlabel="stored parameters, % of the whole model", ylabel="accuracy, %")
        panel.legend(frameon=False, fontsize=7)
    figure.savefig(out, dpi=110)
    return True
