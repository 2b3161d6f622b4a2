"""``inarch calibrate -o COST``: time this machine's kernels, and derive a cost table from them."""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inarch.structure.errors import InarchError
from inarch.tools import bench, render
from inarch.tools.options import Debug, Json, Provider

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inarch.runtime.calibrate import Timings
    from inarch.structure.cost import CostTable
    from inarch.structure.cost_figures import Figure, Measured, Place

FAILED = 1
TOO_NOISY = 0.02
"""Half width of the median interval above which blocks that cost two per cent cannot be told from blocks that cost nothing."""


class Numbers(StrEnum):
    """Precision of weights and activations."""

    fp32 = "fp32"
    fp16 = "fp16"


def _print_schema(wanted: bool) -> None:
    if wanted:
        from inarch.structure.cost import schema_text

        sys.stdout.write(schema_text())
        raise typer.Exit


def run(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="COST", help="Where the cost table is written.", show_default=False)
    ],
    provider: Provider = "cpu",
    minutes: Annotated[float, typer.Option("--minutes", min=0.0, help="Time to spend; less where enough is known.")] = 3.0,
    threads: Annotated[
        str | None,
        typer.Option("--threads", metavar="N,N", help="Thread counts; on a CPU 1 and all cores by default.", show_default=False),
    ] = None,
    precision: Annotated[Numbers, typer.Option("--precision", help="What is computed in; fp16 is for GPUs.")] = Numbers.fp32,
    schema: Annotated[
        bool, typer.Option("--schema", callback=_print_schema, is_eager=True, help="Print the format's JSON schema and exit.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure a cost table for this machine.

    Times attention and feed-forward networks of usual sizes with ONNX Runtime, whole, split into blocks as sharing splits them,
    and at good and bad widths, all of them in turn. The table goes to inarch compile --cost. Run it while nothing else runs:
    where the times scatter too much, nothing is written and the exit code is 1.
    """
    from inarch.runtime.calibrate import time_kernels
    from inarch.runtime.providers import resolve_provider
    from inarch.structure.cost import save_cost
    from inarch.structure.cost_derive import derive

    if out.is_dir() or not out.parent.is_dir():  # said now, not after minutes of measuring
        raise InarchError("no file can be written there", where=str(out), hint="name a file in a folder that exists")
    name = resolve_provider(provider)
    counts = thread_counts(threads, cpu=name.startswith("CPU"))
    if busy():
        render.warn(f"the machine is busy (load {os.getloadavg()[0]:.1f} on {cores()} cores), so times will scatter")
    with render.progress(quiet=json) as report:
        timings = time_kernels(name, seconds=60 * minutes, threads=counts, precision=precision.value, progress=report)
    noisy = timings.noise > TOO_NOISY
    table = derive(about(timings, name, precision.value))
    if not noisy:
        save_cost(table, out)
    if json:
        render.emit_json(as_data(table, timings, None if noisy else out))
    else:
        show(timings)
        if noisy:
            render.say(
                f"failed: half of the ratios are uncertain by more than {100 * timings.noise:.1f} %, and "
                f"{100 * TOO_NOISY:.0f} % is the most that says something. Nothing was written: run it again while nothing else "
                "runs, or with more --minutes"
            )
        else:
            render.say("")
            show_limits(table)
            render.say(f"wrote {out}; use it with inarch compile --cost {out}")
    if noisy:
        raise typer.Exit(FAILED)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy() -> bool:
    """Whether other programs want more than half of the cores."""
    return os.getloadavg()[0] > 0.5 * cores()


def thread_counts(text: str | None, *, cpu: bool) -> tuple[int, ...]:
    """Read ``1,2``; by default 1 and all cores on a CPU, and ORT's own choice elsewhere.

    Raises:
        InarchError: as :func:`inarch.tools.bench.thread_counts`.
    """
    if text is None:
        return tuple(sorted({1, cores()})) if cpu else (0,)
    return tuple(sorted(set(bench.thread_counts(text))))


def about(timings: Timings, provider: str, precision: str) -> Measured:
    """The timings with what they were taken on; no names of machines or people."""
    from inarch import __version__
    from inarch.runtime.providers import onnxruntime
    from inarch.structure.cost_figures import Measured
    from inarch.tools.benchmarks import machine

    described = machine.describe()
    return Measured.model_validate(
        {
            "provider": provider,
            "device": graphics_card() if provider.startswith(("CUDA", "Tensorrt")) else str(described["cpu"]),
            "cores": cores(),
            "system": str(described["system"]),
            "onnxruntime": str(onnxruntime().__version__),
            "inarch": __version__,
            "precision": precision,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "seconds": round(timings.seconds, 1),
            "tight": timings.tight,
            "figures": timings.figures,
        }
    )


def graphics_card() -> str:
    """The first NVIDIA card's name, as its driver's own tool gives it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    asked = [tool, "--query-gpu=name", "--format=csv,noheader", "--id=0"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def as_data(table: CostTable, timings: Timings, out: Path | None) -> dict[str, object]:
    """What ``calibrate --json`` prints; ``out`` is None where nothing was written."""
    from inarch.structure.cost import cost_hash

    return {
        "format": "inarch.calibrated/1",
        "out": None if out is None else str(out),
        "hash": cost_hash(table),
        "noise": timings.noise,
        "tight": timings.tight,
        "table": table.model_dump(mode="json", exclude_none=True),
    }


def show(timings: Timings) -> None:
    """Print what blocks and widths cost, site by site, and how well that is known."""
    from inarch.structure.cost_derive import multiple_of, width_losses

    places: defaultdict[Place, list[Figure]] = defaultdict(list)
    for figure in timings.figures:
        places[figure.place].append(figure)
    blocks: list[tuple[str, int, str, dict[int, str]]] = []
    widths: list[tuple[str, int, str, dict[int, str]]] = []
    for place, figures in places.items():
        for form, split in (("split", "by heads" if place.kind == "msa" else ""), ("inside", "inside heads")):
            cells = {figure.blocks: f"{figure.ratio:.3f}" for figure in figures if figure.form == form}
            if cells:
                blocks.append((site_text(place), place.threads, split, cells))
        losses = {multiple_of(f.stored): f"{100 * (f.ratio / ideal - 1):+.1f} %" for f, ideal in width_losses(figures)}
        widths.append((site_text(place), place.threads, "", losses))
    _grid("time over dense, by blocks", blocks)
    _grid("time lost at widths that are multiples of no more than this", widths)
    rounds = sorted({figure.rounds for figure in timings.figures})
    render.say(
        f"{timings.seconds:.0f} s, {rounds[0]} to {rounds[-1]} rounds; half of the ratios are known to "
        f"{100 * timings.noise:.1f} % or better" + ("" if timings.tight else "; more time would make them better")
    )


def _grid(title: str, rows: Sequence[tuple[str, int, str, dict[int, str]]]) -> None:
    """Rows are (site, threads, how it is split, column -> cell)."""
    columns = sorted({column for *_, cells in rows for column in cells})
    shown = render.table("site", ("threads", "right"), "", *((str(column), "right") for column in columns), title=title)
    for site, threads, split, cells in rows:
        render.add_row(shown, site, threads or "", split, *(cells.get(column, "") for column in columns))
    render.show(shown)


def site_text(place: Place) -> str:
    """A dense site in short: ``FFN 768 x 3072``, ``MSA 768, 12 x 64``."""
    if place.kind == "ffn":
        return f"FFN {place.width} x {place.units}"
    return f"MSA {place.width}, {place.heads} x {place.units // place.heads}"


def show_limits(table: CostTable) -> None:
    """Print the limits of a table, with those of the shipped one in brackets."""
    from inarch.structure.cost import SHIPPED

    name = "cpu" if table.measured is None or table.measured.provider.startswith("CPU") else "gpu"
    shipped = SHIPPED[name]
    names = ("multiple", "rounding", "min_segment", "max_segments")
    shown = render.table(f"limits (shipped for {name.upper()}s)", *((name, "right") for name in names))
    for label, mine, other in (
        ("balanced", table.balanced, shipped.balanced),
        ("--prefer size", table.size, shipped.size),
        ("--prefer latency", table.latency, shipped.latency),
    ):
        cells = (f"{getattr(mine, name)} ({getattr(other, name)})" for name in names)
        render.add_row(shown, label, *cells)
    render.show(shown)
