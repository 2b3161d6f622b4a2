"""Sites of which nothing is left: zeros of the result's shape, the output bias as before, no projection left."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from inarch.passes import rewrite
from inarch.passes.prune import Prune

from tests.onnx_text import attention, attention_weights, model_of
from tests.passes.case import Case, array, case_of, ffns, keep, operators


def emptied(case: Case) -> ir.Model:
    model, work = case.copy()
    assert Prune(work)(model).modified
    assert not {"MatMul", "Gemm", "Relu", "Softmax"} & set(operators(model)), "nothing is computed any more"
    for sizes in ({"B": 2, "S": 3}, {"B": 1, "S": 7}):
        assert not case.wrong(model, sizes)
    return model


def test_an_ffn_becomes_its_output_bias() -> None:
    model = emptied(case_of(ffns("a"), {"a.ffn": {"hidden": keep("")}}))
    assert sorted(name for name in model.graph.initializers if name.startswith("a.")) == ["a.down.bias"]
    assert operators(model)[-3:] == ["ConstantOfShape", "Add", "Add"]


def test_known_sizes_need_no_shape() -> None:
    body = "h = MatMul (x, a.up.weight)  r = Relu (h)  d = MatMul (r, a.down.weight)  y = Add (x, d)"
    weights = "float[4,8] a.up.weight, float[8,4] a.down.weight"
    model = model_of(body, inputs="float[2,3,4] x", outputs="float[2,3,4] y", weights=weights)
    assert operators(emptied(case_of(model, {"a.ffn": {"hidden": keep("")}}))) == ["ConstantOfShape", "Add"]


@pytest.mark.parametrize("axis", ["head", "vo"])
def test_an_attention_without_heads_or_values(axis: str) -> None:
    model = model_of(
        attention("a", "x", "y", 2, 4), inputs="float[B,S,8] x", outputs="float[B,S,8] y", weights=attention_weights("a", 8, 2, 4)
    )
    changed = emptied(case_of(model, {"a.attn": {axis: keep("")}}))
    assert [name for name in changed.graph.initializers if name.startswith("a.")] == ["a.o.bias"]


def test_without_scores_attention_is_a_mean() -> None:
    """All qk gone but vo kept: one zero unit a head is stored, and the softmax stays."""
    model = model_of(
        attention("a", "x", "y", 2, 4), inputs="float[B,S,8] x", outputs="float[B,S,8] y", weights=attention_weights("a", 8, 2, 4)
    )
    case = case_of(model, {"a.attn": {"qk": keep("")}})
    changed, work = case.copy()
    Prune(work)(changed)
    assert not case.wrong(changed)
    shape = changed.graph.initializers["a.q.weight"].shape
    assert shape is not None
    assert shape.numpy() == (8, 2)


def test_a_gemm_keeps_its_own_bias_and_a_flattened_size_is_read_off_the_input() -> None:
    """x [B, S, 4] is flattened to [B*S, 4], and the Gemms' result is given x's shape again."""
    body = """
        f = Reshape (x, flat)
        a.0 = Gemm (f, a.up.weight, a.up.bias)
        a.1 = Relu (a.0)
        a.2 = Gemm (a.1, a.down.weight, a.down.bias)
        n = Shape (x)
        d = Reshape (a.2, n)
        y = Add (x, d)"""
    weights = """float[4,8] a.up.weight, float[8] a.up.bias, float[8,4] a.down.weight, float[4] a.down.bias,
        int64[2] flat = {-1, 4}"""
    model = model_of(body, inputs="float[B,S,4] x", outputs="float[B,S,4] y", weights=weights)
    changed = emptied(case_of(model, {"a.ffn": {"hidden": keep("")}}))
    assert [name for name in changed.graph.initializers if name.startswith("a.")] == ["a.down.bias"]


def test_a_shape_of_the_inside_still_tells_what_it_did() -> None:
    """The Reshape behind the site takes its sizes from a Shape of the hidden value."""
    body = """
        f = Reshape (x, flat)
        a.0 = MatMul (x, a.up.weight)
        a.1 = Relu (a.0)
        n = Shape <start = 0, end = 2> (a.1)
        a.2 = MatMul (a.1, a.down.weight)
        t = Concat <axis = 0> (n, four)
        d = Reshape (a.2, t)
        y = Add (x, d)"""
    weights = "float[4,8] a.up.weight, float[8,4] a.down.weight, int64[2] flat = {-1, 4}, int64[1] four = {4}"
    model = model_of(body, inputs="float[B,S,4] x", outputs="float[B,S,4] y", weights=weights)
    emptied(case_of(model, {"a.ffn": {"hidden": keep("")}}))


def test_where_a_size_cannot_be_had_one_zero_unit_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewrite, "write_empty", lambda editor, region: False)
    case = case_of(ffns("a"), {"a.ffn": {"hidden": keep("")}})
    model, work = case.copy()
    Prune(work)(model)
    assert array(model, "a.up.weight").shape == (4, 1)
    assert not array(model, "a.up.weight").any()
    assert not case.wrong(model)
