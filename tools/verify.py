"""``inarch verify MODEL PLAN OUT``: is the compiled model what the plan asks for, and what does the plan cost?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from inarch.tools import render
from inarch.tools.options import Compiled, Debug, Inputs, Json, Model, PlanFile, Provider, Seed

if TYPE_CHECKING:
    from inarch.runtime.damage import DamageReport
    from inarch.runtime.equivalence import EquivalenceReport
    from inarch.runtime.placement import Placement
    from inarch.runtime.sharing import SharingReport
    from inarch.runtime.verify import Verification

FAILED = 1
WORST_SITES = 5


def run(
    model: Model,
    plan: PlanFile,
    compiled: Compiled,
    inputs: Inputs = None,
    seed: Seed = 0,
    provider: Provider = "cpu",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Prove that a compiled model is the plan applied to the original.

    Runs the reference (the plan applied by values only, no shape changed) and the compiled model in ONNX Runtime, with its
    optimisation off and on, on several shapes, and compares every output within a measured noise floor. Exit code 1
    where they differ, with the first site that does. Damage, original against reference, is shown beside it and fails nothing.
    """
    from inarch.api import verify

    with render.progress(quiet=json) as report:
        result = verify(model, plan, compiled, inputs=inputs, seed=seed, provider=provider, progress=report)
    if json:
        from inarch.runtime.providers import resolve_provider

        render.emit_json({"format": "inarch.verified/1", "provider": resolve_provider(provider), **result.to_json()})
    else:
        show(result)
        if not result.ok:
            show_quantised(compiled)
    if not result.ok:
        raise typer.Exit(FAILED)


def show(result: Verification) -> None:
    """Print equivalence, sharing and damage, and the verdict last."""
    show_equivalence(result.equivalence)
    render.say(f"inputs: {'; '.join(result.cases)}")
    for dropped in result.dropped:
        render.say(f"left out, since the original does not run it: {dropped}")
    if result.placement is not None:
        show_placement(result.placement)
    show_sharing(result.sharing)
    render.say("")
    show_damage(result.damage)
    verdict(result)


def show_quantised(compiled: Path) -> None:
    """Say what a quantised model can be held to instead."""
    from inarch.api import open_model
    from inarch.compiler.metadata import quantised_to

    kind = quantised_to(open_model(compiled).metadata_props)
    if kind is not None:
        render.say(f"it was quantised to {kind}: verify it as it was before that; inarch evaluate says what quantising costs")


def show_equivalence(report: EquivalenceReport) -> None:
    """Print the largest difference of each output beside what rounding alone costs."""
    columns = ("largest", "relative", "noise", "allowed")
    shown = render.table("output", *((column, "right") for column in columns), "", title="compiled against reference")
    for output in report.outputs:
        numbers = (render.number(v) for v in (output.max_abs, output.relative, output.noise, output.tolerance))
        state = "ok" if output.ok else f"DIFFERS on {output.case}"
        render.add_row(shown, output.output, *numbers, f"{state}: {output.reason}" if output.reason else state)
    render.show(shown)


def show_placement(placement: Placement, name: str = "compiled model") -> None:
    """Print how much of a model each provider ran, and what of its work the wanted one did not."""
    render.say(f"{name}: {placement.summary}")
    if placement.warning:
        render.say(f"WARNING: {placement.warning}", style="bold yellow")


def show_sharing(report: SharingReport) -> None:
    """Print whether every shared tensor survives ONNX Runtime's own optimisation as one."""
    bad = [tensor for tensor in report.tensors if not tensor.ok]
    shared = sum(tensor.bytes for tensor in report.tensors)
    if not report.tensors:
        render.say("sharing: nothing is shared")
    elif not bad:
        total = f"{len(report.tensors)} shared tensors ({render.size(shared)})"
        render.say(f"sharing: {total}, each stored once and read by one kind of operator")
    else:
        render.say(f"sharing: {len(bad)} of {len(report.tensors)} shared tensors do not stay shared", style="bold red")
        for tensor in bad:
            render.say(f"  {tensor.name}: {tensor.reason}")


def show_damage(report: DamageReport) -> None:
    """Print what the plan does to the model: outputs, and the sites that change most."""
    shown = render.table("output", ("relative", "right"), ("cosine", "right"), title="damage: original against reference")
    for output in report.outputs:
        render.add_row(shown, output.output, render.number(output.relative), f"{output.cosine:.4f}")
    render.show(shown)
    worst = sorted(report.sites.items(), key=lambda item: -item[1])[:WORST_SITES]
    if worst and worst[0][1] > 0:
        sites = render.table("site", ("weights change by", "right"), title="most changed sites")
        for name, change in worst:
            render.add_row(sites, name, f"{100 * change:.1f} %")
        render.show(sites)
    if report.warning:
        render.say(f"WARNING: {report.warning}", style="bold yellow")


def verdict(result: Verification) -> None:
    """Print the last line: equivalent, or where it is not."""
    if result.ok:
        render.say("equivalent", style="bold green")
        return
    report = result.equivalence
    if report.ok:
        render.say("equivalent, but shared weights do not stay shared in ONNX Runtime", style="bold red")
    elif report.first_site:
        first = report.first_site
        where = f"first at site {first.site} (value {first.value}, by {render.number(first.max_abs)})"
        render.say(f"NOT equivalent: {where}", style="bold red")
    else:
        render.say(f"NOT equivalent; none of {report.searched} sites shows it alone", style="bold red")
