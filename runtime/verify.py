"""Everything that is known about a compiled model's rightness, in one call: equivalence, sharing and damage."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import onnx_ir as ir

from inarch.compiler.reference import Slot, apply_by_values, carry_over
from inarch.compiler.values import SiteValues
from inarch.frontends.canonicalize import discover_canonical
from inarch.frontends.onnx_file import load_model
from inarch.runtime.damage import DamageReport, measure_damage
from inarch.runtime.equivalence import Chains, EquivalenceReport, Progress, compare
from inarch.runtime.given import GivenInputs, as_cases, check_cases, load_npz
from inarch.runtime.inputs import Cases, make_cases
from inarch.runtime.placement import Placement, measure_placement
from inarch.runtime.providers import CPU
from inarch.runtime.session import ModelLike, Session, SessionOptions, load, model_file
from inarch.runtime.sharing import SharingReport, check_sharing
from inarch.runtime.widen import needs_widening, widen
from inarch.structure.resolve import resolve
from inarch.structure.sites import SiteTable

if TYPE_CHECKING:
    from inarch.structure.plan import Plan

_HOPS = 3
"""Additions that may follow a site's last product: an output bias, a LayerScale's sum, the residual."""


class SiteGraph(Protocol):
    """What verifying needs to know about a model's sites; a ``Discovery`` is one."""

    @property
    def table(self) -> SiteTable:
        """The sites."""

    @property
    def model(self) -> ir.Model:
        """The model in which they were found: the original, or its canonical form."""

    def uses(self, site: str) -> Mapping[str, Sequence[Slot]]:
        """Role -> the node inputs through which the site reads that member."""

    def outputs(self, site: str) -> Sequence[str]:
        """Names of the values that the site's last products write."""


@dataclass(frozen=True)
class Verification:
    """What was found about a compiled model.

    Attributes:
        equivalence: compiled against reference.
        sharing: what ORT's optimisation leaves of the sharing.
        damage: original against reference.
        cases: names of the inputs.
        dropped: shapes that the original itself does not run, each with ORT's message.
        widened: whether bf16 was compared as fp32, since the CPU has no bf16 products.
        placement: which provider ran how much of the compiled model; None on the CPU, where there is no question.
    """

    equivalence: EquivalenceReport
    sharing: SharingReport
    damage: DamageReport
    cases: tuple[str, ...]
    dropped: tuple[str, ...]
    widened: bool = False
    placement: Placement | None = None

    @property
    def ok(self) -> bool:
        """Equivalent, and every shared tensor stored once. Damage is no failure: the plan asked for it."""
        return self.equivalence.ok and self.sharing.ok

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        return {
            "ok": self.ok,
            "equivalence": self.equivalence.to_json(),
            "sharing": self.sharing.to_json(),
            "damage": self.damage.to_json(),
            "cases": list(self.cases),
            "dropped": list(self.dropped),
            "widened": self.widened,
            "placement": self.placement.to_json() if self.placement else None,
        }


def verify(
    original: ModelLike,
    plan: Plan,
    compiled: ModelLike,
    *,
    inputs: GivenInputs | None = None,
    providers: Sequence[str] = (CPU,),
    threads: int = 0,
    seed: int = 0,
    sites: SiteGraph | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Apply a plan by values, and hold the compiled model against the result.

    Args:
        original: the model that was compiled.
        plan: what it was compiled with.
        compiled: the result.
        inputs: an ``.npz`` file or cases of the user's own; made from the graph where not given.
        providers: execution providers.
        threads: intra-op threads; 0 leaves it to ORT.
        seed: of the inputs that are made.
        sites: the original's sites, where the caller has discovered them already.
        progress: told about every step.

    Raises:
        ModelError: the original cannot be read, or holds NaN or Inf where the plan changes it.
        PlanError, BindingError: the plan is none for this model.
        LoweringError: the plan contradicts itself on this model.
        RuntimeFailure: ORT is missing, refuses the original or the reference, the compiled file cannot be read, or the provider
            ran nothing of it.
    """
    report = progress or (lambda stage, done, total: None)
    model = original if isinstance(original, ir.Model) else load_model(original)
    found: SiteGraph = sites if sites is not None else discover_canonical(model)
    resolved = resolve(plan, found.table)
    values = SiteValues(found.model, found.table, resolved)
    reference: ModelLike = carry_over(apply_by_values(found.model, found.table, resolved, found.uses), found.model, model)
    widened = needs_widening(model, providers)
    if widened:
        original, reference, compiled = (widen(load(each)) for each in (model, reference, compiled))
    with model_file(original) as source, model_file(reference) as truth, model_file(compiled) as result:
        report("choosing inputs", 0, 1)
        cases = choose_cases(load(original), source, inputs, providers=providers, threads=threads, seed=seed)
        report("choosing inputs", 1, 1)
        names = {site: site_values(found, site) for site in found.table.by_name}
        equivalence = compare(
            truth, result, cases.cases, site_outputs=names, providers=providers, threads=threads, progress=progress
        )
        report("measuring damage and sharing", 0, 2)
        damage = measure_damage(
            source, truth, cases.cases, values=values, sites=list(found.table.by_name), providers=providers, threads=threads
        )
        report("measuring damage and sharing", 1, 2)
        sharing = check_sharing(result, providers=providers) if _ran(equivalence) else SharingReport((), 0, 0, False)
        placement = None
        if providers[0] != CPU and _ran(equivalence):
            placement = measure_placement(result, cases.cases[0].feeds, providers[0])
        report("measuring damage and sharing", 2, 2)
    names_of_cases = tuple(case.name for case in cases.cases)
    return Verification(equivalence, sharing, damage, names_of_cases, cases.dropped, widened, placement)


def choose_cases(
    model: ir.Model,
    path: ModelLike,
    inputs: GivenInputs | None,
    *,
    providers: Sequence[str] = (CPU,),
    threads: int = 0,
    seed: int = 0,
) -> Cases:
    """The user's inputs or made ones, those that the model runs.

    Args:
        model: the original.
        path: the same, to be run.
        inputs: an ``.npz`` file, cases, or None to make them.
        providers: execution providers.
        threads: intra-op threads.
        seed: of the inputs that are made.

    Raises:
        RuntimeFailure: the model runs on none of them.
    """
    # With optimisation off, so that what a model accepts does not depend on what ORT makes of it.
    with Session(path, SessionOptions("off", tuple(providers), threads)) as session:
        if inputs is None:
            return make_cases(model, session, seed=seed)
        cases = load_npz(Path(inputs), session.inputs) if isinstance(inputs, (str, os.PathLike)) else as_cases(inputs)
        return check_cases(cases, session)


def site_values(sites: SiteGraph, site: str) -> Chains:
    """Where a site's result can be looked at: what each last product writes, and the sums that take it up."""
    made = {value.name: value for node in sites.model.graph for value in node.outputs}
    chains: list[list[str]] = []
    for name in sites.outputs(site):
        chain: list[str] = []
        value: ir.Value | None = made.get(name)
        while value is not None and value.name is not None and len(chain) <= _HOPS:
            chain.append(value.name)
            readers = [node for node, _ in value.uses()]
            carried = len(readers) == 1 and readers[0].op_type in ("Add", "Mul", "Reshape", "Identity", "Cast")
            value = readers[0].outputs[0] if carried else None
        chains.append(chain)
    return chains


def _ran(equivalence: EquivalenceReport) -> bool:
    """Whether the compiled model ran at all; one that ORT refuses shares nothing worth looking at."""
    return any(check.compared for check in equivalence.checks)
