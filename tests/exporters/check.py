"""Does an exported model hold the sites that it should, and is what a plan makes of it equal to the reference?"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir

from inarch.compiler.compile import CompileResult, compile_model
from inarch.compiler.reference import apply_by_values, carry_over
from inarch.structure.discover import Discovery
from inarch.structure.plan import Plan
from inarch.structure.resolve import resolve
from inarch.structure.sites import SiteTable

from tests.exporters.cases import Case
from tests.exporters.inputs import Inputs
from tests.exporters.plans import COST
from tests.zoo.check import mismatches, ort, run_all


def wrong_sites(case: Case, table: SiteTable, *, ties: bool = True) -> list[str]:
    """What is not as the architecture implies, one sentence each.

    Args:
        case: the model.
        table: what was found in a file of it.
        ties: whether the file keeps ties; dynamo's optimisation folds the transposed weight of each reader for itself, and only
            some of them are merged again.
    """
    wrong = []
    got: Counter[object] = Counter()
    for site in table.sites:
        sizes = dict(site.sizes)
        for factor, reason in site.frozen.items():
            if factor not in case.unsure:
                wrong.append(f"{site.name}: {factor} is frozen: {reason}")
        for factor in case.unsure:
            sizes.pop(factor, None)
        got[site.kind, tuple(sorted(sizes.items())), site.calls if ties else 1] += 1 if ties else site.calls
    want: Counter[object] = Counter()
    for sites in case.sites:
        sizes = {factor: size for factor, size in sites.sizes.items() if factor not in case.unsure}
        want[sites.kind, tuple(sorted(sizes.items())), sites.calls if ties else 1] += sites.count * (1 if ties else sites.calls)
    if got != want:
        wrong.append(f"found {dict(got)}, expected {dict(want)}; rejected: {[(r.name, r.reason) for r in table.rejected]}")
    return wrong


def feeds_of(case: Case, model: ir.Model, seed: int = 0) -> list[Inputs]:
    """Inputs of every shape that the file runs on; exporters bake sizes in that the module does not have."""
    rng = np.random.default_rng(seed)
    names = [str(value.name) for value in model.graph.inputs]
    feeds = []
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    for shape in case.shapes:
        made = dict(zip(names, case.inputs(rng, *shape).values(), strict=True))
        try:
            session.run(None, made)
        except Exception:  # of the runtime's own kinds
            continue
        feeds.append(made)
    return feeds


def compiled_and_wrong(model: ir.Model, found: Discovery, plan: Plan, feeds: list[Inputs]) -> tuple[CompileResult, list[str]]:
    """Compile a plan, and say what the result computes otherwise than the reference."""
    result = compile_model(model, plan, None, cost=COST)
    applied = apply_by_values(found.model, found.table, resolve(plan, found.table), found.uses)
    reference = carry_over(applied, found.model, model)
    return result, list(mismatches(run_all(reference, feeds), run_all(result.model, feeds)))
