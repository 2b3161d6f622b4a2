"""What ``inarch bench`` prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from inarch.tools import render

if TYPE_CHECKING:
    from inarch.runtime.latency import LatencyReport
    from inarch.runtime.memory import MemoryReport
    from inarch.runtime.size import SizeReport
    from inarch.tools.bench_result import Comparison, Measured

_TITLES = {"dense": "dense", "pruned": "pruned", "shared": "shared", "compiled": "both"}
"""Columns of a comparison with a plan's parts."""

_COUNTS: Mapping[str, Callable[[SizeReport], int]] = {
    "parameters stored": lambda size: size.stored,
    "parameters unique": lambda size: size.unique,
}
_BYTES: Mapping[str, Callable[[SizeReport], int]] = {
    "file": lambda size: size.file_bytes,
    "unique tensor bytes": lambda size: size.unique_bytes,
    "bytes after ORT's optimisation": lambda size: size.optimised_bytes,
}
_MEMORY: Mapping[str, Callable[[MemoryReport], int]] = {
    "anonymous memory of the model": lambda memory: memory.model_anonymous,
    "RSS after load": lambda memory: memory.loaded.rss,
    "PSS after load": lambda memory: memory.loaded.pss,
    "RSS after a run": lambda memory: memory.ran.rss,
    "PSS after a run": lambda memory: memory.ran.pss,
    "anonymous memory at peak": lambda memory: memory.peak_anonymous,
    "RSS at peak": lambda memory: memory.peak_rss,
}


def show(found: Comparison) -> None:
    """Print one table of sizes and memory, one of latency, and what has to be known to read them."""
    _sizes(found)
    closing = f"inputs: {found.case}; memory in a process of its own"
    if found.compiled.latency:
        _times(found)
        counts = ", ".join(dict.fromkeys(filter(None, map(_threads, found.compiled.latency))))
        closing = f"medians of {found.compiled.latency[0].pairs} interleaved pairs{f' on {counts}' if counts else ''}; {closing}"
    render.say(closing)
    for note in found.notes:
        render.say(note, style="bold yellow" if note.startswith("WARNING") else None)


def _sizes(found: Comparison) -> None:
    models = list(found.models.values())
    paired = len(models) == 2
    titles = [name if paired else _TITLES[name] for name in found.models]
    shown = render.table("", *((title, "right") for title in [*titles, *(["change"] if paired else [])]))

    def add(label: str, values: list[int], write: Callable[[int], str]) -> None:
        render.add_row(shown, label, *map(write, values), *([render.change(*values)] if paired else []))

    planned = _planned(models)
    if planned is not None:
        add("parameters planned", planned, render.count)
    for label, count in _COUNTS.items():
        add(label, [count(model.size) for model in models], render.count)
    for label, size in _BYTES.items():
        add(label, [size(model.size) for model in models], render.size)
    work = [model.multiplications for model in models if model.multiplications is not None]
    if len(work) == len(models):
        add("multiplications of a run", work, render.count)
    device = [model.memory.model_device for model in models]
    known = [value for value in device if value is not None]
    if len(known) == len(models):
        add("GPU memory of the model", known, render.size)
    for label, memory in _MEMORY.items():
        add(label, [memory(model.memory) for model in models], render.size)
    render.show(shown)


def _planned(models: list[Measured]) -> list[int] | None:
    """Parameters that each model's plan asked for: all of them of the dense one; None where a file does not say."""
    dense, *others = (model.size for model in models)
    values = [size.planned for size in others]
    if any(value is None for value in values):
        return None
    return [dense.planned or dense.stored, *(value for value in values if value is not None)]


def _times(found: Comparison) -> None:
    paired = len(found.models) == 2
    columns = ("dense", "p95", "compiled" if paired else "model", "p95", "ratio")
    shown = render.table("latency in ms", *((column, "right") for column in columns), "95 % interval")
    swept = len({item.case for item in found.compiled.latency}) > 1
    several = not swept or len({item.threads for item in found.compiled.latency}) > 1
    for number in range(len(found.compiled.latency)):
        for name, model in found.models.items():
            if model.latency:
                item = model.latency[number]
                cells = (f"{v:.2f}" for v in (item.dense.median, item.dense.p95, item.compiled.median, item.compiled.p95))
                words = ("" if paired else _TITLES[name], item.case if swept else "", _threads(item) if several else "")
                label = ", ".join(filter(None, words)) or "one run"
                render.add_row(shown, label, *cells, f"{item.ratio:.3f}", f"{item.low:.3f} to {item.high:.3f}")
    render.show(shown)


def _threads(item: LatencyReport) -> str:
    return f"{item.threads} thread{'s' if item.threads > 1 else ''}" if item.threads else ""
