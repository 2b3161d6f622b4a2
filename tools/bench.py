"""``inarch bench DENSE OUT``: two models side by side: parameters, bytes, memory, latency."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inarch.structure.errors import InarchError
from inarch.tools import render
from inarch.tools.options import Compiled, Debug, Inputs, Json, Provider, Seed

if TYPE_CHECKING:
    from inarch.runtime.inputs import Case
    from inarch.runtime.latency import LatencyReport
    from inarch.runtime.memory import MemoryReport
    from inarch.runtime.size import SizeReport


@dataclass(frozen=True)
class Comparison:
    """Two models, measured alike.

    Attributes:
        sizes: dense, compiled.
        memory: dense, compiled, each in a process of its own.
        latency: one report a thread count, interleaved pairs.
        case: name of the inputs.
    """

    sizes: tuple[SizeReport, SizeReport]
    memory: tuple[MemoryReport, MemoryReport]
    latency: tuple[LatencyReport, ...]
    case: str


def run(
    dense: Annotated[Path, typer.Argument(metavar="DENSE", help="The original model.", show_default=False)],
    compiled: Compiled,
    threads: Annotated[str, typer.Option("--threads", metavar="N,N", help="Thread counts to time, one after another.")] = "1,2",
    pairs: Annotated[int, typer.Option("--pairs", help="Interleaved timed pairs a thread count.")] = 30,
    inputs: Inputs = None,
    seed: Seed = 0,
    provider: Provider = "CPUExecutionProvider",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare size, memory and latency of two models.

    Latency is the median of interleaved pairs, with a 95 % confidence interval of the ratio; memory is of a fresh process for
    each model. Nothing is checked here: run inarch verify first, a wrong model is easily fast.
    """
    counts = thread_counts(threads)
    with render.progress(quiet=json) as report:
        found = measure(dense, compiled, counts, pairs=pairs, inputs=inputs, seed=seed, provider=provider, report=report)
    if json:
        render.emit_json({"format": "inarch.bench/1", **as_data(found)})
    else:
        show(found)


def thread_counts(text: str) -> tuple[int, ...]:
    """Read ``1,2``.

    Raises:
        InarchError: not a list of positive integers.
    """
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise InarchError(f"{text!r} is not a list of thread counts", where="--threads", hint="for example 1,2")
    return tuple(int(part) for part in parts)


def measure(
    dense: Path,
    compiled: Path,
    threads: tuple[int, ...],
    *,
    pairs: int,
    inputs: Path | None = None,
    seed: int = 0,
    provider: str = "CPUExecutionProvider",
    report: render.Report,
) -> Comparison:
    """Measure both models on one set of inputs that the dense one accepts.

    Raises:
        RuntimeFailure: ONNX Runtime is missing or refuses a model or the inputs.
    """
    from inarch.runtime.latency import measure_latency
    from inarch.runtime.memory import measure_memory
    from inarch.runtime.size import measure_size

    providers = (provider,)
    case = _case(dense, inputs, seed, providers)
    report("timing", 0, 1)
    latency = measure_latency(
        dense,
        compiled,
        case,
        threads=threads,
        pairs=pairs,
        providers=providers,
        progress=lambda done, total: report("timing", done, total),
    )
    memory = []
    sizes = []
    for done, model in enumerate((dense, compiled)):
        report("memory and size", done, 2)
        memory.append(measure_memory(model, case, providers=providers))
        sizes.append(measure_size(model, providers=providers))
    report("memory and size", 2, 2)
    return Comparison((sizes[0], sizes[1]), (memory[0], memory[1]), latency, case.name)


def _case(dense: Path, inputs: Path | None, seed: int, providers: tuple[str, ...]) -> Case:
    from inarch.runtime.session import load
    from inarch.runtime.verify import choose_cases

    return choose_cases(load(dense), dense, inputs, providers=providers, seed=seed).cases[0]


def as_data(found: Comparison) -> dict[str, object]:
    """What ``bench --json`` prints."""
    models = {
        name: {"size": size.to_json(), "memory": memory.to_json()}
        for name, size, memory in zip(("dense", "compiled"), found.sizes, found.memory, strict=True)
    }
    return {"inputs": found.case, **models, "latency": [item.to_json() for item in found.latency]}


def show(found: Comparison) -> None:
    """Print one table of sizes and memory, and one of latency."""
    shown = render.table("", ("dense", "right"), ("compiled", "right"), ("change", "right"))
    for label, before, after in _counts(found):
        render.add_row(shown, label, render.count(before), render.count(after), render.change(before, after))
    for label, before, after in _bytes(found):
        render.add_row(shown, label, render.size(before), render.size(after), render.change(before, after))
    render.show(shown)
    numbers = ("dense", "p95", "compiled", "p95", "ratio")
    times = render.table("latency in ms", *((column, "right") for column in numbers), "95 % interval")
    for item in found.latency:
        cells = (f"{v:.2f}" for v in (item.dense.median, item.dense.p95, item.compiled.median, item.compiled.p95))
        label = f"{item.threads} thread{'s' if item.threads > 1 else ''}"
        render.add_row(times, label, *cells, f"{item.ratio:.3f}", f"{item.low:.3f} to {item.high:.3f}")
    render.show(times)
    pairs = found.latency[0].pairs
    render.say(f"medians of {pairs} interleaved pairs; inputs: {found.case}; memory in a process of its own")


def _counts(found: Comparison) -> list[tuple[str, int, int]]:
    dense, compiled = found.sizes
    rows = [
        ("parameters stored", dense.stored, compiled.stored),
        ("parameters unique", dense.unique, compiled.unique),
    ]
    if compiled.planned is not None:
        rows.insert(0, ("parameters planned", dense.planned or dense.stored, compiled.planned))
    return rows


def _bytes(found: Comparison) -> list[tuple[str, int, int]]:
    dense, compiled = found.sizes
    before, after = found.memory
    return [
        ("file", dense.file_bytes, compiled.file_bytes),
        ("unique tensor bytes", dense.unique_bytes, compiled.unique_bytes),
        ("bytes after ORT's optimisation", dense.optimised_bytes, compiled.optimised_bytes),
        ("anonymous memory of the model", before.model_anonymous, after.model_anonymous),
        ("RSS after load", before.loaded.rss, after.loaded.rss),
        ("PSS after load", before.loaded.pss, after.loaded.pss),
        ("RSS after a run", before.ran.rss, after.ran.rss),
        ("PSS after a run", before.ran.pss, after.ran.pss),
        ("anonymous memory at peak", before.peak_anonymous, after.peak_anonymous),
        ("RSS at peak", before.peak_rss, after.peak_rss),
    ]
