"""``inarch compile MODEL PLAN -o OUT``: carry out a plan."""

from __future__ import annotations

from collections import defaultdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inarch.tools import render
from inarch.tools.options import Cost, Debug, Json, Model, PlanFile

if TYPE_CHECKING:
    from inarch.compiler.compile import CompileResult
    from inarch.structure.lowered import LoweredPlan

REASONS = {
    "head-counts": "every head of a site keeps the same number of units",
    "multiple": "widths are multiples that the hardware likes",
    "segment-size": "a shared block too small to pay for its kernels",
    "segment-limit": "more shared blocks than a projection may have",
    "pairing": "units of one head that are shared with several",
    "heads-differ": "heads of two sites that cannot be matched",
    "zero-unit": "one zero unit where an axis would be empty",
    "rotary": "rotary pairs that stay together",
    "frozen": "axes that the graph does not allow to change",
    "form": "an operator that needs equal widths",
}


class Prefer(StrEnum):
    """What the lowering weighs more."""

    size = "size"
    latency = "latency"


def run(
    model: Model,
    plan: PlanFile,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="OUT", help="Where the compiled model is written.", show_default=False)
    ] = None,
    cost: Cost = None,
    prefer: Annotated[Prefer | None, typer.Option("--prefer", help="Move the cost table's balance.", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be stored.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Compile a plan onto a model.

    Writes OUT and, beside it, a file with the large weights. The input is never changed, and OUT appears whole or not at all.
    """
    if (out is None) != dry_run:
        raise typer.BadParameter("give either an output file or --dry-run", param_hint="--out")
    from inarch.api import compile

    with render.progress(quiet=json) as report:
        result = compile(model, plan, out, cost=cost, prefer=prefer.value if prefer else None, progress=report)
    if json:
        render.emit_json({"format": "inarch.compiled/1", "out": str(out) if out else None, **as_data(result)})
    else:
        show(result.lowered)
        if out is not None:
            render.say(f"wrote {out} ({render.size(written_bytes(result))})")


def written_bytes(result: CompileResult) -> int:
    """Bytes of the written files, 0 where nothing was written."""
    return result.written.file_bytes + result.written.data_bytes if result.written else 0


def legalised(lowered: LoweredPlan) -> dict[str, tuple[int, int]]:
    """Reason -> units and parameters that are stored beyond the plan."""
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for item in lowered.legalised:
        totals[item.reason][0] += item.units
        totals[item.reason][1] += item.parameters
    return {reason: (units, parameters) for reason, (units, parameters) in totals.items()}


def as_data(result: CompileResult) -> dict[str, object]:
    """What ``compile --json`` prints."""
    lowered = result.lowered
    return {
        "parameters": lowered.parameters,
        "planned_parameters": lowered.planned,
        "stored_parameters": lowered.stored,
        "bytes": written_bytes(result),
        "sites": len(lowered.sites),
        "changed_sites": sum(site.touched for site in lowered.sites),
        "segments": [{"id": s.id, "axis": s.axis, "width": s.width, "readers": list(s.readers)} for s in lowered.segments],
        "legalised": [
            {"site": item.site, "axis": item.axis, "reason": item.reason, "units": item.units, "parameters": item.parameters}
            for item in lowered.legalised
        ],
    }


def show(lowered: LoweredPlan) -> None:
    """Print what is stored, and what legalising cost by reason."""
    costs = legalised(lowered)
    if costs:
        shown = render.table("stored beyond the plan", ("units", "right"), ("parameters", "right"), "because")
        for reason, (units, parameters) in sorted(costs.items(), key=lambda item: -item[1][1]):
            render.add_row(shown, reason, f"{units:,}", render.count(parameters), REASONS.get(reason, ""))
        render.show(shown)
    totals = render.table("parameters", ("count", "right"), ("of dense", "right"))
    for label, number in (("dense", lowered.parameters), ("planned", lowered.planned), ("stored", lowered.stored)):
        render.add_row(totals, label, render.count(number), render.percent(number, lowered.parameters))
    render.show(totals)
    changed = sum(site.touched for site in lowered.sites)
    render.say(f"{changed} of {len(lowered.sites)} sites change; {len(lowered.segments)} shared segments")
