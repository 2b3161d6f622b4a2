"""Canonical form: packed projections apart, the same parameters, the same results."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from inarch.frontends.canonicalize import PACKED, canonicalize, packed_sources
from inarch.structure.discover import discover

from tests.onnx_text import model_of
from tests.zoo import FORMS, build
from tests.zoo.check import inputs_of, mismatches, run_all

PACKED_FORMS = (
    "packed_split", "packed_slice", "packed_timm", "packed_timm_split", "packed_bloom", "packed_in_proj", "packed_gqa",
    "swiglu_split", "swiglu_slice", "swin", "contrib_attention", "decoder_in_proj",
)  # fmt: skip


def proto(model: ir.Model) -> bytes:
    return bytes(ir.to_proto(model).SerializeToString(deterministic=True))


def parameters(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """Name -> tensor of the initializers that are not small integers."""
    tensors = {name: v.const_value for name, v in model.graph.initializers.items() if v.const_value is not None}
    return {name: t for name, t in tensors.items() if t.dtype not in (ir.DataType.INT64, ir.DataType.INT32)}


@pytest.mark.parametrize("form", PACKED_FORMS)
@pytest.mark.parametrize("seed", [0, 1])
def test_parameters_and_results_are_the_same(form: str, seed: int) -> None:
    zoo = build(form, seed)
    before = proto(zoo.model)
    canonical = canonicalize(zoo.model)
    assert proto(zoo.model) == before
    mine, theirs = parameters(canonical), parameters(zoo.model)
    assert set(mine) == set(theirs)
    assert all(mine[name] is theirs[name] for name in mine), "parameters are the same tensors, not copies"
    cases = inputs_of(zoo, seed)[:2]
    assert not list(mismatches(run_all(zoo.model, cases), run_all(canonical, cases)))
    assert [(v.name, v.dtype, v.shape) for v in canonical.graph.inputs] == [
        (v.name, v.dtype, v.shape) for v in zoo.model.graph.inputs
    ]
    assert [v.name for v in canonical.graph.outputs] == [v.name for v in zoo.model.graph.outputs]


@pytest.mark.parametrize("form", sorted(FORMS)[::3])
def test_it_is_idempotent(form: str) -> None:
    once = canonicalize(build(form, 0).model)
    assert proto(canonicalize(once)) == proto(once)


@pytest.mark.parametrize("form", ["encoder_pre_norm", "gemm_weights", "rotary_half", "attention_4d"])
def test_what_is_not_packed_stays_as_it_is(form: str) -> None:
    model = build(form, 0).model
    assert proto(canonicalize(model)) == proto(model)


def test_packed_attention_becomes_sites() -> None:
    zoo = build("packed_timm", 0)
    expected = sum(site.kind == "msa" for site in zoo.expected)
    assert not [site for site in discover(zoo.model).table.sites if site.kind == "msa"]
    canonical = canonicalize(zoo.model)
    sites = [site for site in discover(canonical).table.sites if site.kind == "msa"]
    assert len(sites) == expected
    for site in sites:
        assert len({site.members[role].param for role in "qkv"}) == 1
        starts = [site.members[role].start for role in "qkv"]
        size = site.members["q"].size
        assert sorted(starts) == [0, size, 2 * size]


def test_interleaved_heads_are_runs_of_the_packed_axis() -> None:
    zoo = build("packed_bloom", 0)
    sites = [site for site in discover(canonicalize(zoo.model)).table.sites if site.kind == "msa"]
    for site in sites:
        runs = [site.members[role].runs for role in "qkv"]
        assert all(len(r) == site.heads for r in runs)
        taken = sorted(p for role in "qkv" for p in site.members[role].positions.tolist())
        assert taken == list(range(3 * site.members["q"].size))


def test_only_takes_apart_what_is_named() -> None:
    zoo = build("packed_timm", 0)
    whole = canonicalize(zoo.model)
    everything = packed_sources(list(whole.graph))
    assert len(everything) > 1
    assert packed_sources(list(canonicalize(zoo.model, set()).graph)) == set()
    assert proto(canonicalize(zoo.model, set())) == proto(zoo.model)
    one = sorted(everything)[:1]
    half = canonicalize(zoo.model, one)
    assert packed_sources(list(half.graph)) == set(one)
    made = [node for node in half.graph if node.metadata_props.get(PACKED) == one[0]]
    assert [node.op_type for node in made if node.op_type in ("MatMul", "Gemm")] == [made[0].op_type] * 3
    cases = inputs_of(zoo, 0)[:1]
    assert not list(mismatches(run_all(zoo.model, cases), run_all(half, cases)))
    assert proto(canonicalize(zoo.model, everything)) == proto(whole)


def packed_ffn(reader: str, outputs: str = "float[B,S,4] y") -> ir.Model:
    body = f"""
        p = MatMul (x, w)
        g, u = Split <axis = 2, num_outputs = 2> (p)
        s = Sigmoid (g)
        h = Mul (s, u)
        d = MatMul (h, down)
        {reader}"""
    weights = "float[4,16] w, float[8,4] down, int64[1] last = {-1}, float[16] bias"
    return model_of(body, inputs="float[B,S,4] x", outputs=outputs, weights=weights)


def test_a_packed_value_that_somebody_else_reads_stays_whole() -> None:
    assert packed_sources(list(canonicalize(packed_ffn("y = Add (x, d)")).graph)) == {"p"}
    for reader in ("q = Add (p, bias)  r = ReduceSum (q)  e = Add (d, r)  y = Add (x, e)",):
        assert not packed_sources(list(canonicalize(packed_ffn(reader)).graph))
    model = packed_ffn("y = Add (x, d)", "float[B,S,4] y, float[B,S,16] p")
    assert not packed_sources(list(canonicalize(model).graph))


def test_a_shape_of_the_packed_value_still_tells_the_packed_size() -> None:
    """n = Shape(p)[-1] is 16 before and after, whatever p has become."""
    model = packed_ffn("n = Shape <start = 2> (p)  f = Cast <to = 1> (n)  e = Div (d, f)  y = Add (x, e)")
    canonical = canonicalize(model)
    assert packed_sources(list(canonical.graph)) == {"p"}
    cases = [{"x": np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)}]
    assert not list(mismatches(run_all(model, cases), run_all(canonical, cases)))


@pytest.mark.parametrize("form", ["rotary_half", "rotary_interleaved"])
def test_rotary_halves_are_not_taken_for_packing(form: str) -> None:
    for seed in range(4):
        assert not packed_sources(list(canonicalize(build(form, seed).model).graph))


@pytest.mark.parametrize("form", ["packed_bloom", "packed_slice", "swin"])
def test_a_second_bias_of_a_packed_projection_is_not_cut_as_the_first(form: str) -> None:
    """Two sums read one packed product: one is read on, the other by nobody, and neither is the bias that parts share."""
    zoo = build(form, 0)
    graph = zoo.model.graph
    sums = [node for node in graph if node.op_type == "Add" and any(v is not None and v.is_initializer() for v in node.inputs)]
    for node in sums:
        twin = ir.Node("", "Add", node.inputs, num_outputs=1, name=f"{node.name}_twin")
        twin.outputs[0].name = f"{node.outputs[0].name}_twin"
        graph.insert_after(node, twin)
        twin.outputs[0].type = node.outputs[0].type
        ir.convenience.replace_all_uses_with(node.outputs[0], twin.outputs[0], replace_graph_outputs=True)
    cases = inputs_of(zoo, 0)[:1]
    assert not list(mismatches(run_all(zoo.model, cases), run_all(canonicalize(zoo.model), cases)))
