"""Model + plan -> compiled model."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from inarch.compiler.metadata import SHARED, shared_in
from inarch.compiler.pipeline import Progress, passes_for, run_pipeline
from inarch.compiler.values import SiteValues
from inarch.compiler.writer import WrittenModel, write_model
from inarch.frontends.canonicalize import discover_canonical, packed_sources
from inarch.frontends.onnx_file import load_model
from inarch.passes.rewrite import Workpiece
from inarch.passes.stored import Stored
from inarch.structure.cost import DEFAULT_COST, CostTable, cost_hash
from inarch.structure.discover import Discovery
from inarch.structure.errors import BindingError
from inarch.structure.lowered import LoweredPlan
from inarch.structure.lowering import lower
from inarch.structure.plan import Plan, plan_hash
from inarch.structure.resolve import resolve
from inarch.structure.sites import Site, SiteTable

"""Metadata: a JSON list of the initializers that several sites read."""

MINIMUM_ORT = "1.21"
"""From this version on ONNX Runtime packs a shared weight once a session; older ones compute the same and need more memory."""


@dataclass(frozen=True, eq=False)
class CompileResult:
    """A compiled model and how it came about.

    Attributes:
        model: the compiled model; weights that changed are lazy.
        lowered: what is stored, and why.
        table: the sites of the original.
        metadata: what the file records: hashes of plan and cost table, the least ONNX Runtime, the shared tensors, the counts.
        written: the files, or None where none were asked for.
    """

    model: ir.Model
    lowered: LoweredPlan
    table: SiteTable
    metadata: Mapping[str, str]
    written: WrittenModel | None


def compile_model(
    model: ir.Model | str | os.PathLike[str],
    plan: Plan,
    out: Path | None = None,
    *,
    cost: CostTable | None = None,
    prefer: str | None = None,
    progress: Progress | None = None,
) -> CompileResult:
    """Carry out a plan.

    Args:
        model: a model or its file; neither is changed.
        plan: what is shared and what goes.
        out: the .onnx file to write, with a data file beside it; None writes nothing.
        cost: limits of the lowering; the shipped table by default.
        prefer: ``size`` or ``latency`` moves them.
        progress: told the step, what is done and what there is.

    Returns:
        The compiled model, equal to the original with the plan applied by values.

    Raises:
        ModelError: the file is no valid model, a changed weight is not finite, or the result cannot be written.
        PlanError, BindingError: the plan is malformed or for another model.
        LoweringError, PassError: the plan cannot be carried out on this model.
    """
    report = progress or (lambda stage, done, total: None)
    report("reading the model", 0, 1)
    original = model if isinstance(model, ir.Model) else load_model(model)
    found = discover_canonical(original)
    report("lowering the plan", 0, 1)
    table = found.table
    resolved = resolve(plan, table)
    chosen = cost or DEFAULT_COST
    lowered = lower(table, resolved, chosen, prefer)
    values = SiteValues(found.model, table, resolved)
    if out is None:
        # Written weights are checked as they are written.
        for site in table.sites:
            for role in site.members:
                values.check(site.name, role)
    working, bound = _working_copy(original, found, lowered)
    stored = Stored(values)
    run_pipeline(working, passes_for(Workpiece(lowered, stored, bound)), progress)
    metadata = _metadata(plan, chosen, prefer, lowered, _shared(working, stored))
    working.metadata_props.update(metadata)
    written: WrittenModel | None = None
    if out is not None:
        written = write_model(working, out, progress=lambda done, total: report("writing", done, total))
    return CompileResult(working, lowered, table, metadata, written)


def _shared(model: ir.Model, stored: Stored) -> list[str]:
    """Names of the shared initializers: those made now, and those that an earlier compilation made and that are still there."""
    now = {str(value.name) for value in stored.shared.values()}
    return sorted(name for name in now.union(shared_in(model.metadata_props) or ()) if name in model.graph.initializers)


def _metadata(plan: Plan, cost: CostTable, prefer: str | None, lowered: LoweredPlan, shared: list[str]) -> dict[str, str]:
    return {
        "inarch.plan": plan_hash(plan),
        "inarch.cost": cost_hash(cost) + (f":{prefer}" if prefer else ""),
        "inarch.onnxruntime": f">={MINIMUM_ORT}",
        SHARED: json.dumps(shared),
        "inarch.planned": str(lowered.planned),
        "inarch.stored": str(lowered.stored),
    }


def _working_copy(original: ir.Model, found: Discovery, lowered: LoweredPlan) -> tuple[ir.Model, Discovery]:
    """A copy of the model in which only the packed projections of touched sites are taken apart."""
    touched = {site.name for site in lowered.sites if site.touched}
    nodes = [p.node for name in touched for region in found.regions[name] for p in region.projections.values()]
    packed = packed_sources(nodes)
    if packed_sources(list(found.model.graph)) == packed:
        return found.model, found
    again = discover_canonical(original, packed)
    by_members = {_identity(site): site.name for site in again.table.sites}
    sites: list[Site] = []
    regions = {}
    for site in found.table.sites:
        if site.name not in touched:
            continue
        name = by_members.get(_identity(site))
        if name is None:
            raise BindingError("the site is not found again once only its own projections are taken apart", where=site.name)
        sites.append(replace(again.table[name], name=site.name))
        regions[site.name] = again.regions[name]
    table = replace(again.table, sites=tuple(sites))
    return again.model, Discovery(table, regions, again.model, again.coupling)


def _identity(site: Site) -> object:
    return tuple((m.role, m.param, m.axis, m.start, m.runs) for m in site.members.values())
