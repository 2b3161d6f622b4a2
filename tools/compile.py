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
    from inarch.structure.cost import CostTable
    from inarch.structure.lowered import LoweredPlan
    from inarch.structure.sites import SiteTable


NOTABLY = 1.02
"""Parameters stored, over those planned, from which it is worth saying what would store fewer."""


class Prefer(StrEnum):
    """What the lowering weighs more."""

    size = "size"
    latency = "latency"


PreferOption = Annotated[
    Prefer | None, typer.Option("--prefer", help="Move the cost table's balance toward one of the two.", show_default=False)
]


def run(
    model: Model,
    plan: PlanFile,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="OUT", help="Where the compiled model is written.", show_default=False)
    ] = None,
    cost: Cost = None,
    prefer: PreferOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be stored.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Say of every site what was decided, and why.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Compile a plan onto a model.

    Writes OUT and, beside it, a file with the large weights. The input is never changed, and OUT appears whole or not at all.
    """
    if (out is None) != dry_run:
        raise typer.BadParameter("give either an output file or --dry-run", param_hint="--out")
    from inarch.api import compile, open_cost

    table = open_cost(cost)
    wish = prefer.value if prefer else None
    with render.progress(quiet=json) as report:
        result = compile(model, plan, out, cost=cost, prefer=wish, progress=report)
    if json:
        data = {"out": str(out) if out else None, **as_data(result), "cost": cost_data(table, wish)}
        render.emit_json({"format": "inarch.compiled/1", **data})
        return
    from inarch.structure.decisions import decisions
    from inarch.tools.explain import limits_text, show_decisions

    decided = decisions(result.table, result.lowered)
    if explain:
        show_decisions(decided, number_bytes(result.table))
    show(result.lowered)
    dense, now = sum(d.dense_products for d in decided), sum(d.products for d in decided)
    if now != dense:
        render.say(f"matrix products of the sites: {dense} -> {now}")
    if cost is not None or prefer is not None or explain:
        render.say(limits_text(table, wish))
        if result.lowered.stored > NOTABLY * result.lowered.planned:
            render.say("a plan that was made with the same table, by inarch plan make --cost, loses less to these limits")
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


def number_bytes(table: SiteTable) -> float:
    """Bytes that a number of the model takes, on average."""
    return table.bytes / table.parameters if table.parameters else 0.0


def cost_data(table: CostTable, prefer: str | None) -> dict[str, object]:
    """Which limits were kept, for ``--json``."""
    from inarch.structure.cost import cost_hash, shipped_name

    digest = cost_hash(table)
    return {"hash": digest, "name": shipped_name(digest), "prefer": prefer, "limits": table.limits(prefer).model_dump()}


def as_data(result: CompileResult) -> dict[str, object]:
    """What ``compile --json`` prints of a compilation; ``decisions`` has an entry a site, in model order."""
    from inarch.structure.decisions import decision_data, decisions

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
            {
                "site": item.site,
                "axis": item.axis,
                "reason": item.reason,
                "units": item.units,
                "parameters": item.parameters,
                "base": item.base,
            }
            for item in lowered.legalised
        ],
        "decisions": [decision_data(decision, number_bytes(result.table)) for decision in decisions(result.table, lowered)],
        "metadata": dict(result.metadata),
    }


def show(lowered: LoweredPlan) -> None:
    """Print what is stored, and what legalising cost by reason."""
    from inarch.tools.explain import REASONS

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
    render.say(f"{changed} of {len(lowered.sites)} sites change; shared segments: {len(lowered.segments)}")
