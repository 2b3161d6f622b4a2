"""What tests of passes have in common: a model with a plan, lowered without limits, and the work that passes share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from inarch.compiler.reference import apply_by_values
from inarch.compiler.values import SiteValues
from inarch.passes.rewrite import Workpiece
from inarch.passes.stored import Stored
from inarch.structure.cost import CostTable, Limits
from inarch.structure.discover import Discovery, discover
from inarch.structure.lowered import LoweredPlan, ResolvedPlan
from inarch.structure.lowering import lower
from inarch.structure.plan import Plan
from inarch.structure.resolve import AxisDecision, build_plan, resolve
from inarch.structure.units import parse_sequence

from tests.onnx_text import ffn, ffn_weights, model_of
from tests.zoo.check import mismatches, run_all

NO_LIMITS = Limits(multiple=1, rounding=0.0, min_segment=1, max_segments=16)
COST = CostTable(format="inarch.cost/1", description="no limits", balanced=NO_LIMITS, size=NO_LIMITS, latency=NO_LIMITS)

Decisions = Mapping[str, Mapping[str, AxisDecision]]


def keep(units: str) -> AxisDecision:
    """Prune all but these."""
    return AxisDecision(parse_sequence(units))


def share(base: str, units: str, base_units: str | None = None) -> AxisDecision:
    """Keep all, and take these from a base."""
    return AxisDecision(None, [(base, parse_sequence(units), parse_sequence(base_units or units))])


@dataclass(frozen=True)
class Case:
    """A model with a plan.

    Attributes:
        model: the original.
        found: its sites.
        plan: the plan.
        resolved: bound to them.
        lowered: what to store.
    """

    model: ir.Model
    found: Discovery
    plan: Plan
    resolved: ResolvedPlan
    lowered: LoweredPlan

    def copy(self) -> tuple[ir.Model, Workpiece]:
        """A copy to run passes on, and their work."""
        return self.model.clone(), Workpiece(self.lowered, Stored(SiteValues(self.model, self.found.table, self.resolved)))

    def wrong(self, compiled: ir.Model, sizes: Mapping[str, int] | None = None) -> list[str]:
        """What the compiled model computes otherwise than the plan by values, on one random input."""
        given = {"B": 2, "S": 3, "N": 5} | dict(sizes or {})
        rng = np.random.default_rng(0)
        case = {}
        for value in self.model.graph.inputs:
            shape = [d if isinstance(d, int) else given[str(d.value)] for d in value.shape or ()]
            case[str(value.name)] = rng.standard_normal(shape).astype(np.float32)
        reference = apply_by_values(self.found.model, self.found.table, self.resolved, self.found.uses)
        return list(mismatches(run_all(reference, [case]), run_all(compiled, [case])))


def case_of(model: ir.Model, decisions: Decisions, limits: Limits = NO_LIMITS) -> Case:
    """Discover, plan, resolve and lower."""
    cost = COST.model_copy(update={"balanced": limits})
    found = discover(model)
    plan = build_plan(found.table, decisions, "case", {})
    resolved = resolve(plan, found.table)
    return Case(model, found, plan, resolved, lower(found.table, resolved, cost))


def ffns(*sites: str, hidden: int = 8, width: int = 4) -> ir.Model:
    """FFNs on one residual stream."""
    body, x = "", "x"
    for i, site in enumerate(sites):
        y = "y" if i == len(sites) - 1 else f"x{i + 1}"
        body, x = body + ffn(site, x, y), y
    weights = ", ".join(ffn_weights(site, width, hidden) for site in sites)
    return model_of(body, inputs=f"float[B,S,{width}] x", outputs=f"float[B,S,{width}] y", weights=weights)


def array(model: ir.Model, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """An initializer's numbers."""
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return np.asarray(tensor.numpy(), np.float32)


def operators(model: ir.Model) -> Sequence[str]:
    """Operator types in graph order."""
    return [node.op_type for node in model.graph]


def proto(model: ir.Model) -> bytes:
    """The model as bytes."""
    return bytes(ir.to_proto(model).SerializeToString(deterministic=True))
