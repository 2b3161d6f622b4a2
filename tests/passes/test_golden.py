"""Golden graphs: what each rewrite leaves behind, as text that is looked at by people when it changes.

``INARCH_UPDATE_GOLDEN=1 pytest tests/passes/test_golden.py`` writes the files anew. The text is compared and so are the numbers:
a graph that looks right has to compute what the plan by values says.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from inarch.compiler.compile import compile_model
from inarch.compiler.reference import apply_by_values
from inarch.frontends.canonicalize import canonicalize
from inarch.structure.cost import CostTable, Limits
from inarch.structure.discover import discover
from inarch.structure.resolve import AxisDecision, build_plan, resolve
from inarch.structure.units import parse_sequence

from tests.onnx_text import attention, attention_weights, ffn, ffn_weights, model_of, printed
from tests.zoo.check import mismatches, run_all

GOLDEN = Path(__file__).parents[1] / "golden"
LIMITS = Limits(multiple=1, rounding=0.0, min_segment=1, max_segments=16)
COST = CostTable(format="inarch.cost/1", description="no limits", balanced=LIMITS, size=LIMITS, latency=LIMITS)

Decisions = Mapping[str, Mapping[str, AxisDecision]]


def keep(units: str) -> AxisDecision:
    return AxisDecision(parse_sequence(units))


def share(base: str, units: str, base_units: str | None = None) -> AxisDecision:
    return AxisDecision(None, [(base, parse_sequence(units), parse_sequence(base_units or units))])


def ffns(*sites: str, hidden: int = 8) -> ir.Model:
    """FFNs of width 4 on one residual stream."""
    body, x = "", "x"
    for i, site in enumerate(sites):
        y = "y" if i == len(sites) - 1 else f"x{i + 1}"
        body, x = body + ffn(site, x, y), y
    weights = ", ".join(ffn_weights(site, 4, hidden) for site in sites)
    return model_of(body, inputs="float[B,S,4] x", outputs="float[B,S,4] y", weights=weights)


def attentions(*heads: tuple[int, int], scale: str = "constant") -> ir.Model:
    """Attentions a, b ... of width 8, each with its heads and units a head, on one residual stream."""
    body, x, weights = "", "x", []
    for i, ((count, per_head), site) in enumerate(zip(heads, "abc", strict=False)):
        y = "y" if i == len(heads) - 1 else f"x{i + 1}"
        body, x = body + attention(site, x, y, count, per_head, scale=scale), y
        weights.append(attention_weights(site, 8, count, per_head, scale=scale))
    return model_of(body, inputs="float[B,S,8] x", outputs="float[B,S,8] y", weights=", ".join(weights))


def fused() -> ir.Model:
    """Opset-23 Attention on [B, S, H*d], twice; its scale is the operator's own."""
    body, weights = "", []
    for site, x, y in (("a", "x", "h"), ("b", "h", "y")):
        for role in "qkv":
            body += f"{site}.{role}0 = MatMul ({x}, {site}.{role}.weight)\n"
            weights.append(f"float[8,8] {site}.{role}.weight")
        body += f"""{site}.c = Attention <q_num_heads = 2, kv_num_heads = 2> ({site}.q0, {site}.k0, {site}.v0)
        {site}.o0 = MatMul ({site}.c, {site}.o.weight)
        {y} = Add ({x}, {site}.o0)
        """
        weights.append(f"float[8,8] {site}.o.weight")
    return model_of(body, inputs="float[B,S,8] x", outputs="float[B,S,8] y", weights=", ".join(weights), opset=23)


def gemms() -> ir.Model:
    """Two FFNs of Gemms with transB on [N, E], as torch exports a 2-D model."""
    body, weights = "", []
    for site, x, y in (("a", "x", "h"), ("b", "h", "y")):
        body += f"""{site}.0 = Gemm <transB = 1> ({x}, {site}.up.weight, {site}.up.bias)
        {site}.1 = Relu ({site}.0)
        {site}.2 = Gemm <transB = 1> ({site}.1, {site}.down.weight, {site}.down.bias)
        {y} = Add ({x}, {site}.2)
        """
        weights.append(
            f"float[8,4] {site}.up.weight, float[8] {site}.up.bias, float[4,8] {site}.down.weight, float[4] {site}.down.bias"
        )
    return model_of(body, inputs="float[N,4] x", outputs="float[N,4] y", weights=", ".join(weights))


@dataclass(frozen=True)
class Case:
    """A model and what is decided about it."""

    model: ir.Model
    decisions: Decisions


CASES = {
    "ffn_pruned": lambda: Case(ffns("a"), {"a.ffn": {"hidden": keep("1,3-6")}}),
    "ffn_shared_in_part": lambda: Case(ffns("a", "b"), {"b.ffn": {"hidden": share("a.ffn", "0-4", "3-7")}}),
    "ffn_shared_whole": lambda: Case(ffns("a", "b"), {"b.ffn": {"hidden": share("a.ffn", "0-7")}}),
    "ffn_three_readers": lambda: Case(
        ffns("a", "b", "c"), {"b.ffn": {"hidden": share("a.ffn", "0-5")}, "c.ffn": {"hidden": share("b.ffn", "0-2")}}
    ),
    "ffn_empty": lambda: Case(ffns("a"), {"a.ffn": {"hidden": keep("")}}),
    "heads_removed": lambda: Case(attentions((4, 2)), {"a.attn": {"head": keep("1,3")}}),
    "heads_empty": lambda: Case(attentions((2, 4)), {"a.attn": {"head": keep("")}}),
    "heads_shared": lambda: Case(attentions((4, 2), (4, 2)), {"b.attn": {"head": share("a.attn", "0-1", "2-3")}}),
    "inside_heads_shared": lambda: Case(
        attentions((2, 4), (2, 4)),
        {"b.attn": {"qk": share("a.attn", "0,1,4,5"), "vo": share("a.attn", "0-2,4-6")}},
    ),
    "other_heads_shared": lambda: Case(
        attentions((2, 4), (4, 2)), {"b.attn": {"qk": share("a.attn", "0-7"), "vo": share("a.attn", "0-7")}}
    ),
    "scale_pinned": lambda: Case(attentions((2, 4), scale="shape"), {"a.attn": {"qk": keep("0,1,2,4,5,6")}}),
    "fused_blocks": lambda: Case(
        fused(), {"b.attn": {"qk": share("a.attn", "0,1,4,5"), "vo": share("a.attn", "0,4")}, "a.attn": {"qk": keep("0-2,4-6")}}
    ),
    "gemm_shared": lambda: Case(gemms(), {"b.ffn": {"hidden": share("a.ffn", "0-4")}}),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    case = CASES[name]()
    found = discover(canonicalize(case.model))
    plan = build_plan(found.table, case.decisions, name, {})
    compiled = compile_model(case.model, plan, None, cost=COST)
    text = printed(compiled.model)
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("INARCH_UPDATE_GOLDEN"):
        path.write_text(text)
    reference = apply_by_values(found.model, found.table, resolve(plan, found.table), found.uses)
    rng = np.random.default_rng(0)
    shape = [{"B": 2, "S": 3, "N": 5}.get(str(getattr(d, "value", d)), d) for d in case.model.graph.inputs[0].shape or ()]
    inputs = [{"x": rng.standard_normal([int(str(n)) for n in shape]).astype(np.float32)}]
    assert not list(mismatches(run_all(reference, inputs), run_all(compiled.model, inputs)))
    stored = sum(
        v.const_value.size
        for v in compiled.model.graph.initializers.values()
        if v.const_value is not None and v.dtype == ir.DataType.FLOAT
    )
    assert stored <= compiled.lowered.stored
    assert text == path.read_text(), f"see {path.name}; INARCH_UPDATE_GOLDEN=1 takes it over"


def test_every_golden_file_has_its_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(CASES)
