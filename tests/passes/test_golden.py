"""Golden graphs: what each rewrite leaves behind, as text that is looked at by people when it changes.

``INARCH_UPDATE_GOLDEN=1 pytest tests/passes/test_golden.py`` writes the files anew. The text is compared and so are the numbers:
a graph that looks right has to compute what the plan by values says.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from inarch.compiler.compile import compile_model
from inarch.structure.discover import discover

from tests.onnx_text import attention, attention_weights, model_of, printed
from tests.passes.case import COST, Case, case_of, ffns, keep, share

GOLDEN = Path(__file__).parents[1] / "golden"


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


CASES: dict[str, Callable[[], Case]] = {
    "ffn_pruned": lambda: case_of(ffns("a"), {"a.ffn": {"hidden": keep("1,3-6")}}),
    "ffn_shared_in_part": lambda: case_of(ffns("a", "b"), {"b.ffn": {"hidden": share("a.ffn", "0-4", "3-7")}}),
    "ffn_shared_whole": lambda: case_of(ffns("a", "b"), {"b.ffn": {"hidden": share("a.ffn", "0-7")}}),
    "ffn_three_readers": lambda: case_of(
        ffns("a", "b", "c"), {"b.ffn": {"hidden": share("a.ffn", "0-5")}, "c.ffn": {"hidden": share("b.ffn", "0-2")}}
    ),
    "ffn_empty": lambda: case_of(ffns("a"), {"a.ffn": {"hidden": keep("")}}),
    "heads_removed": lambda: case_of(attentions((4, 2)), {"a.attn": {"head": keep("1,3")}}),
    "heads_empty": lambda: case_of(attentions((2, 4)), {"a.attn": {"head": keep("")}}),
    "heads_shared": lambda: case_of(attentions((4, 2), (4, 2)), {"b.attn": {"head": share("a.attn", "0-1", "2-3")}}),
    "inside_heads_shared": lambda: case_of(
        attentions((2, 4), (2, 4)),
        {"b.attn": {"qk": share("a.attn", "0,1,4,5"), "vo": share("a.attn", "0-2,4-6")}},
    ),
    "other_heads_shared": lambda: case_of(
        attentions((2, 4), (4, 2)), {"b.attn": {"qk": share("a.attn", "0-7"), "vo": share("a.attn", "0-7")}}
    ),
    "scale_pinned": lambda: case_of(attentions((2, 4), scale="shape"), {"a.attn": {"qk": keep("0,1,2,4,5,6")}}),
    "fused_blocks": lambda: case_of(
        fused(), {"b.attn": {"qk": share("a.attn", "0,1,4,5"), "vo": share("a.attn", "0,4")}, "a.attn": {"qk": keep("0-2,4-6")}}
    ),
    "gemm_shared": lambda: case_of(gemms(), {"b.ffn": {"hidden": share("a.ffn", "0-4")}}),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    case = CASES[name]()
    compiled = compile_model(case.model, case.plan, None, cost=COST)
    text, path = printed(compiled.model), GOLDEN / f"{name}.txt"
    if os.environ.get("INARCH_UPDATE_GOLDEN"):
        path.write_text(text)
    assert not case.wrong(compiled.model)
    # The scalar scale of an attention of which nothing is left is counted with what lies outside the sites.
    assert discover(compiled.model).table.parameters == compiled.lowered.stored - (name == "heads_empty")
    assert text == path.read_text(), f"see {path.name}; INARCH_UPDATE_GOLDEN=1 takes it over"


def test_every_golden_file_has_its_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(CASES)
