"""Prune: the right weights are cut, everything that follows follows, and nothing else is touched."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from inarch.compiler.values import SiteValues
from inarch.passes.prune import Prune
from inarch.passes.rewrite import Workpiece
from inarch.passes.share import Share
from inarch.passes.stored import Stored
from inarch.structure.constants import constant_ints
from inarch.structure.errors import PassError

from tests.onnx_text import attention, attention_weights, model_of
from tests.passes.case import NO_LIMITS, array, case_of, ffns, keep, operators, proto, share


def attended(heads: int = 4, per_head: int = 2, **options: str) -> ir.Model:
    return model_of(
        attention("a", "x", "y", heads, per_head, **options),
        inputs="float[B,S,8] x",
        outputs="float[B,S,8] y",
        weights=attention_weights("a", 8, heads, per_head, **options),
    )


def test_ffn_units_are_cut_out_of_every_member() -> None:
    case = case_of(ffns("a", "b"), {"a.ffn": {"hidden": keep("1,3-6")}})
    model, work = case.copy()
    assert Prune(work)(model).modified
    units = [1, 3, 4, 5, 6]
    assert np.array_equal(array(model, "a.up.weight"), array(case.model, "a.up.weight")[:, units])
    assert np.array_equal(array(model, "a.up.bias"), array(case.model, "a.up.bias")[units])
    assert np.array_equal(array(model, "a.down.weight"), array(case.model, "a.down.weight")[units])
    assert operators(model) == operators(case.model)
    assert model.graph.initializers["b.up.weight"].const_value is case.model.graph.initializers["b.up.weight"].const_value
    assert not case.wrong(model)


def test_heads_are_cut_and_targets_follow() -> None:
    case = case_of(attended(), {"a.attn": {"head": keep("1,3")}})
    model, work = case.copy()
    Prune(work)(model)
    columns = [2, 3, 6, 7]
    assert np.array_equal(array(model, "a.q.weight"), array(case.model, "a.q.weight")[:, columns])
    assert np.array_equal(array(model, "a.o.weight"), array(case.model, "a.o.weight")[columns])
    shapes = [constant_ints(node.inputs[1]) for node in model.graph if node.op_type == "Reshape"]
    assert shapes == [[0, 0, 2, 2]] * 3 + [[0, 0, 4]]
    assert operators(model) == operators(case.model)
    assert not case.wrong(model)


def test_units_inside_heads_are_cut_and_a_scale_from_shape_is_pinned() -> None:
    case = case_of(attended(2, 4, scale="shape"), {"a.attn": {"qk": keep("0,2,5,6"), "vo": keep("1,2,3,4,5,7")}})
    model, work = case.copy()
    Prune(work)(model)
    assert np.array_equal(array(model, "a.k.weight"), array(case.model, "a.k.weight")[:, [0, 2, 5, 6]])
    assert np.array_equal(array(model, "a.v.weight"), array(case.model, "a.v.weight")[:, [1, 2, 3, 4, 5, 7]])
    assert "Shape" not in operators(model)
    assert not case.wrong(model)


def test_what_is_kept_for_equal_counts_is_zero() -> None:
    """Head 0 keeps one unit, head 1 two: both store two, and the second of head 0 is zero, its bias too."""
    case = case_of(attended(2, 4), {"a.attn": {"qk": keep("2,4,6")}}, NO_LIMITS.model_copy(update={"max_segments": 1}))
    model, work = case.copy()
    Prune(work)(model)
    stored, bias = array(model, "a.q.weight"), array(model, "a.q.bias")
    assert stored.shape == (8, 4)
    assert sum(not stored[:, i].any() and not bias[i] for i in range(4)) == 1
    assert not case.wrong(model)


def test_a_gated_transposed_and_packed_ffn() -> None:
    """Gemm-like [N, K] storage through a Transpose, gate and up in one matrix."""
    body = """
        w = Transpose <perm = [1, 0]> (a.both.weight)
        wg, wu = Split <axis = 1, num_outputs = 2> (w)
        g = MatMul (x, wg)
        u = MatMul (x, wu)
        s = Sigmoid (g)
        h = Mul (s, u)
        d = MatMul (h, a.down.weight)
        y = Add (x, d)"""
    weights = "float[16,4] a.both.weight, float[8,4] a.down.weight"
    case = case_of(
        model_of(body, inputs="float[B,S,4] x", outputs="float[B,S,4] y", weights=weights), {"a.ffn": {"hidden": keep("0,7")}}
    )
    model, work = case.copy()
    Prune(work)(model)
    assert "a.both.weight" not in model.graph.initializers
    assert sorted(v.shape.numpy() for v in model.graph.initializers.values() if v.shape is not None) == [(2, 4), (4, 2), (4, 2)]
    assert not case.wrong(model)


def test_modified_is_true_only_where_something_is_pruned() -> None:
    untouched = case_of(ffns("a"), {})
    model, work = untouched.copy()
    before = proto(model)
    assert not Prune(work)(model).modified
    assert proto(model) == before
    sharing = case_of(ffns("a", "b"), {"b.ffn": {"hidden": share("a.ffn", "0-3")}})
    model, work = sharing.copy()
    before = proto(model)
    assert not Prune(work)(model).modified, "sites that share are Share's"
    assert proto(model) == before


def test_passes_run_in_somebodys_sequence() -> None:
    case = case_of(ffns("a", "b", "c"), {"b.ffn": {"hidden": share("a.ffn", "0-3")}, "c.ffn": {"hidden": keep("0-4")}})
    model, work = case.copy()
    result = ir.passes.Sequential(Prune(work), Share(work))(model)
    assert result.modified
    assert result.model is model
    assert not case.wrong(model)


def test_the_order_of_prune_and_share_does_not_matter() -> None:
    case = case_of(ffns("a", "b", "c"), {"b.ffn": {"hidden": share("a.ffn", "0-3")}, "c.ffn": {"hidden": keep("0-4")}})
    model, work = case.copy()
    ir.passes.Sequential(Share(work), Prune(work))(model)
    assert not case.wrong(model)


def test_another_model_is_refused_unchanged() -> None:
    case = case_of(ffns("a"), {"a.ffn": {"hidden": keep("0-3")}})
    other = ffns("z")
    before = proto(other)
    work = Workpiece(case.lowered, Stored(SiteValues(case.model, case.found.table, case.resolved)))
    with pytest.raises((PassError, ir.passes.PassError), match="no such site"):
        Prune(work)(other)
    assert proto(other) == before


def test_a_graph_output_keeps_its_name_type_and_shape() -> None:
    body = "h = Gemm (x, a.up.weight, a.up.bias)  r = Relu (h)  d = Gemm (r, a.down.weight, a.down.bias)  y = Add (x, d)"
    weights = "float[4,8] a.up.weight, float[8] a.up.bias, float[8,4] a.down.weight, float[4] a.down.bias"
    model = model_of(body, inputs="float[N,4] x", outputs="float[N,4] y, float[N,4] d", weights=weights)
    case = case_of(model, {"a.ffn": {"hidden": keep("2,5")}})
    changed, work = case.copy()
    Prune(work)(changed)
    assert [(v.name, v.dtype, v.shape) for v in changed.graph.outputs] == [
        (v.name, v.dtype, v.shape) for v in model.graph.outputs
    ]
    assert not case.wrong(changed)
