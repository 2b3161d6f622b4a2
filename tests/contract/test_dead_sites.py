"""Sites that nothing reads any more once another is empty: a tower behind a pooling attention of which nothing is left."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from inarch.compiler.compile import compile_model
from inarch.compiler.reference import apply_by_values, carry_over
from inarch.frontends.canonicalize import canonicalize
from inarch.structure.discover import discover
from inarch.structure.resolve import AxisDecision, build_plan, resolve

from tests.contract.test_equivalence import SMALL_COST
from tests.onnx_text import attention, attention_weights, ffn, ffn_weights, model_of
from tests.zoo.check import mismatches, run_all

NONE = np.empty(0, np.int64)


def pooled() -> ir.Model:
    """Two towers of FFNs; the first is read by a pooling attention alone, whose queries are a parameter."""
    pool = attention("pool", "probe", "pooled", 2, 4)
    for role in "kv":
        pool = pool.replace(f"MatMul (probe, pool.{role}.weight)", f"MatMul (h2, pool.{role}.weight)")
    body = ffn("a", "x", "h1") + ffn("b", "h1", "h2") + pool + ffn("c", "z", "y")
    weights = [ffn_weights(site, 8, 16) for site in "abc"]
    return model_of(
        body,
        # Sizes are fixed: else the tower stays, since the size of its batch is that of what is pooled.
        inputs="float[2,3,8] x, float[2,5,8] z",
        outputs="float[2,1,8] pooled, float[2,5,8] y",
        weights=", ".join([*weights, attention_weights("pool", 8, 2, 4), "float[1,1,8] probe"]),
    )


@pytest.mark.parametrize("pruned", [None, "b"], ids=["shared", "pruned and shared"])
def test_what_is_behind_an_empty_site_goes(pruned: str | None) -> None:
    model = pooled()
    discovery = discover(canonicalize(model))
    named = {next(iter(site.members.values())).param.split(".")[0]: site.name for site in discovery.table.sites}
    a, b, c, pool = (named[prefix] for prefix in ("a", "b", "c", "pool"))
    some = np.arange(8)
    decisions = {
        pool: {"qk": AxisDecision(NONE), "vo": AxisDecision(NONE)},
        b: {"hidden": AxisDecision(some if pruned else None, [(a, some, some)])},
        c: {"hidden": AxisDecision(None, [(a, some, some)])},
    }
    plan = build_plan(discovery.table, decisions, "m", {})
    compiled = compile_model(model, plan, cost=SMALL_COST, prefer="size").model
    assert not any("b." in str(name) for name in compiled.graph.initializers)
    rng = np.random.default_rng(0)
    cases = [{name: rng.standard_normal((2, rows, 8)).astype(np.float32) for name, rows in (("x", 3), ("z", 5))}]
    applied = apply_by_values(discovery.model, discovery.table, resolve(plan, discovery.table), discovery.uses)
    reference = carry_over(applied, discovery.model, model)
    assert not list(mismatches(run_all(reference, cases), run_all(compiled, cases)))
