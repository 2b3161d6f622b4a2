"""``inarch plan make | lint | diff | schema``: plans without training, checked, compared."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from inarch.tools import render
from inarch.tools.compile import PreferOption
from inarch.tools.options import Cost, Debug, Json, Model, PlanFile

if TYPE_CHECKING:
    from inarch.structure.errors import PlanError
    from inarch.structure.plan import Plan
    from inarch.structure.plan_diff import PlanDiff
    from inarch.structure.planners import PlanResult

FAILED, BAD_INPUT = 1, 2

app = typer.Typer(help="Make, check and compare plans.", no_args_is_help=True)


class Method(StrEnum):
    """How a plan is made without training."""

    magnitude = "magnitude"
    similarity = "similarity"
    uniform = "uniform"


@dataclass(frozen=True)
class AxisCount:
    """What plans say about all axes of one name: units on planned axes, those kept, those of them that are shared."""

    units: int = 0
    kept: int = 0
    shared: int = 0


def counts(plan: Plan) -> dict[str, AxisCount]:
    """Axis name -> units, kept and shared over all planned sites."""
    totals: dict[str, AxisCount] = {}
    for site in plan.sites.values():
        for name, axis in site.axes.items():
            before = totals.get(name, AxisCount())
            shared = sum(len(share.reader_indices) for share in axis.share)
            totals[name] = AxisCount(before.units + axis.size, before.kept + len(axis.kept), before.shared + shared)
    return totals


@app.command("make")
def make(
    model: Model,
    keep: Annotated[float, typer.Option("--keep", help="Fraction of the whole model's parameters to keep.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="PLAN", help="Where the plan is written.", show_default=False)],
    method: Annotated[Method, typer.Option("--method", help="How units are chosen.")] = Method.similarity,
    share: Annotated[float, typer.Option("--share", help="similarity: how much of the saving is sharing, 0 to 1.")] = 0.5,
    block: Annotated[
        int | None,
        typer.Option(
            "--block",
            help="similarity: most sites that share one base; 4, or as many as the cost table has segments.",
            show_default=False,
        ),
    ] = None,
    minimum: Annotated[float, typer.Option("--minimum", help="Fraction of each axis that always stays.")] = 0.125,
    cost: Cost = None,
    prefer: PreferOption = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a plan from the weights alone.

    These are baselines: without training, high rates ruin a model. inarch verify shows by how much. Give --cost and --prefer as
    they will be given to inarch compile: the plan then asks for nothing that the lowering would have to store larger.
    """
    from inarch.api import draft_plan

    with render.progress(quiet=json) as report:
        result = draft_plan(
            model,
            keep=keep,
            method=method.value,
            cost=cost,
            prefer=prefer.value if prefer else None,
            minimum=minimum,
            share_fraction=share,
            block=block,
            out=out,
            progress=report,
        )
    if json:
        render.emit_json(made_data(result, out))
    else:
        show_made(result, out)


def made_data(result: PlanResult, out: Path) -> dict[str, object]:
    """What ``plan make --json`` prints."""
    return {
        "format": "inarch.made/1",
        "plan": str(out),
        "kept_model": result.kept_model,
        "kept_sites": result.kept_sites,
        "planned_parameters": result.planned,
        "stored_parameters": result.stored,
        "sites": len(result.plan.sites),
        "axes": {name: asdict(total) for name, total in counts(result.plan).items()},
        "notes": list(result.notes),
    }


def show_made(result: PlanResult, out: Path) -> None:
    """Print what a new plan keeps."""
    show_counts(result.plan)
    model, sites = (f"{100 * kept:.2f} %" for kept in (result.kept_model, result.kept_sites))
    planned, stored = render.count(result.planned), render.count(result.stored)
    render.say(f"keeps {model} of the model's parameters, {sites} of the sites' alone")
    sites_of = result.plan.sites.values()
    changed = sum(any(axis.share or len(axis.kept) < axis.size for axis in site.axes.values()) for site in sites_of)
    render.say(f"planned {planned}, stored {stored} parameters; {changed} of {len(sites_of)} sites change")
    for note in result.notes:
        render.say(f"note: {note}")
    render.say(f"wrote {out} ({render.size(out.stat().st_size)})")


def show_counts(plan: Plan) -> None:
    """Print what a plan does, axis by axis."""
    shown = render.table("axis", ("units", "right"), ("kept", "right"), ("of these shared", "right"))
    for name, total in counts(plan).items():
        kept = f"{total.kept:,} ({render.percent(total.kept, total.units)})"
        render.add_row(shown, name, f"{total.units:,}", kept, f"{total.shared:,} ({render.percent(total.shared, total.kept)})")
    render.show(shown)


@app.command("lint")
def lint(
    plan: PlanFile,
    model: Annotated[Path | None, typer.Argument(metavar="[MODEL]", help="Check the plan against this model too.")] = None,
    cost: Cost = None,
    prefer: PreferOption = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Check a plan, alone or against a model.

    Every mistake is shown with its JSON path, and the exit code is 2. With a model, the plan is also lowered, and the exit
    code is 1 where it expects another number of parameters than it plans.
    """
    from inarch.structure.errors import PlanError, PlanFileError
    from inarch.structure.plan import lint_text, load_plan

    try:
        loaded = load_plan(plan)
    except PlanFileError:
        raise
    except PlanError:
        refuse(lint_text(plan.read_bytes(), str(plan)), as_json=json)
    data: dict[str, object] = {"format": "inarch.lint/1", "ok": True, "errors": [], "sites": len(loaded.sites)}
    lines: list[str] = []
    failed = False
    if model is not None:
        from inarch.api import discover, open_cost
        from inarch.structure.lowering import lower
        from inarch.structure.resolve import lint_against, resolve

        with render.progress(quiet=json) as report:
            report("reading the graph", 0, 0)
            table = discover(model).table
        errors = lint_against(loaded, table)
        if errors:
            refuse(errors, as_json=json, source=str(plan))
        lowered = lower(table, resolve(loaded, table), open_cost(cost), prefer.value if prefer else None)
        expected = loaded.expect.parameters if loaded.expect else None
        failed = expected is not None and expected != lowered.planned
        data |= {
            "ok": not failed,
            "parameters": lowered.parameters,
            "planned_parameters": lowered.planned,
            "stored_parameters": lowered.stored,
            "expected_parameters": expected,
        }
        lines.append(
            f"on {model.name}: planned {render.count(lowered.planned)}, stored {render.count(lowered.stored)} "
            f"of {render.count(lowered.parameters)} parameters"
        )
        if failed:
            lines.append(f"failed: the plan expects {expected:,} parameters and plans {lowered.planned:,}")
    if json:
        render.emit_json(data | {"axes": {name: asdict(total) for name, total in counts(loaded).items()}})
    else:
        show_counts(loaded)
        for line in lines:
            render.say(line)
        if not failed:
            render.say(f"{plan}: ok, {len(loaded.sites)} sites")
    if failed:
        raise typer.Exit(FAILED)


def refuse(errors: list[PlanError], *, as_json: bool, source: str | None = None) -> NoReturn:
    """Show every mistake of a plan and stop.

    Raises:
        typer.Exit: always, with the code for bad input.
    """
    if as_json:
        rows = [{"kind": e.code, "where": e.where, "message": e.message, "hint": e.hint} for e in errors]
        render.emit_json({"format": "inarch.lint/1", "ok": False, "errors": rows})
    else:
        for error in errors:
            error.source = error.source or source
            render.show_error(error, as_json=False)
    raise typer.Exit(BAD_INPUT)


@app.command("diff")
def diff(
    before: Annotated[Path, typer.Argument(metavar="BEFORE", help="A plan.", show_default=False)],
    after: Annotated[Path, typer.Argument(metavar="AFTER", help="Another plan.", show_default=False)],
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show where two plans differ; exit code 1 where they decide differently.

    How a decision is written does not count, and names, provenance and expectations alone do not fail.
    """
    from inarch.structure.plan import load_plan
    from inarch.structure.plan_diff import diff_plans

    old, new = load_plan(before), load_plan(after)
    found = diff_plans(old, new)
    same = found.same_decisions and old.model.fingerprint == new.model.fingerprint
    if json:
        render.emit_json({"format": "inarch.diff/1", "same": same, **found.as_json()})
    else:
        show_diff(found)
        render.say("the plans decide the same" if same else "the plans decide differently")
    if not same:
        raise typer.Exit(FAILED)


def show_diff(found: PlanDiff) -> None:
    """Print what differs: the units axis by axis, then other values."""
    from inarch.structure.units import parse_sequence

    if found.axes:
        headers = ("pruned", "restored", "shared", "unshared")
        shown = render.table("site", "axis", *((header, "right") for header in headers))
        totals: dict[str, list[int]] = {}
        for axis in found.axes:
            ranges = ([axis.pruned], [axis.restored], [p.units for p in axis.shared], [p.units for p in axis.unshared])
            numbers = [sum(len(parse_sequence(text)) for text in texts) for texts in ranges]
            render.add_row(shown, axis.site, axis.axis, *(f"{number:,}" if number else "" for number in numbers))
            for i, number in enumerate(numbers):
                totals.setdefault(axis.axis, [0] * len(headers))[i] += number
        if len(found.axes) > len(totals):
            shown.add_section()
            for name, numbers in totals.items():
                render.add_row(shown, "all sites", name, *(f"{number:,}" if number else "" for number in numbers))
        render.show(shown)
    if found.values:
        shown = render.table("value", "before", "after")
        for change in found.values:
            render.add_row(shown, change.where, *("-" if v is None else v for v in (change.old, change.new)))
        render.show(shown)


@app.command("schema")
def schema(
    json: Annotated[bool, typer.Option("--json", help="The schema is JSON either way.")] = False,
    debug: Debug = False,
) -> None:
    """Print the JSON schema of plans."""
    from inarch.structure.plan import schema_text

    sys.stdout.write(schema_text())
