"""Discovery: what is a site, what is not and why; the model stays as it is and large tensors stay unread."""

from __future__ import annotations

from typing import NoReturn

import onnx_ir as ir
import pytest

from inarch.structure.constants import constant
from inarch.structure.discover import Discovery, discover
from inarch.structure.shapes import Shapes
from inarch.structure.views import view_of

from tests.onnx_text import attention, attention_weights, ffn, ffn_weights, model_of
from tests.zoo import FORMS, build, differences

LARGE = 64
"""Numbers in a tensor that discovery has no reason to read: no shape is that long."""


def two_ffns() -> ir.Model:
    weights = ", ".join(ffn_weights(site, 4, 8) for site in "ab")
    return model_of(ffn("a", "x", "h") + ffn("b", "h", "y"), inputs="float[B,S,4] x", outputs="float[B,S,4] y", weights=weights)


def of(body: str, weights: str, *, inputs: str = "float[B,S,4] x", outputs: str = "float[B,S,4] y") -> Discovery:
    return discover(model_of(body, inputs=inputs, outputs=outputs, weights=weights))


def unreadable(model: ir.Model) -> int:
    """Let every large tensor of a model raise when its data is asked for; returns how many there are."""

    def refuse() -> NoReturn:
        raise AssertionError("discovery read a large tensor")

    count = 0
    for value in [*model.graph.initializers.values(), *(v for node in model.graph for v in node.outputs)]:
        tensor = constant(value)
        if tensor is None or tensor.size < LARGE:
            continue
        lazy = ir.LazyTensor(refuse, tensor.dtype, ir.Shape(tensor.shape.numpy()), name=value.name)
        node = value.producer()
        if node is None:
            value.const_value = lazy
        else:
            node.attributes["value"] = ir.AttrTensor("value", lazy)
            value.const_value = None
        count += 1
    return count


@pytest.mark.parametrize("form", ["two_tower", "constant_weights", "decoder_in_proj", "swin", "packed_bloom", "attention_gqa"])
def test_no_large_tensor_is_read(form: str) -> None:
    zoo = build(form, 0)
    before = discover(zoo.model).table
    assert unreadable(zoo.model) > 4
    assert discover(zoo.model).table == before


@pytest.mark.parametrize("form", sorted(FORMS)[::6])
def test_the_model_is_not_changed(form: str) -> None:
    model = build(form, 0).model
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    metas = [dict(value.meta) for node in model.graph for value in node.outputs]
    discover(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert [dict(value.meta) for node in model.graph for value in node.outputs] == metas


def test_sites_are_in_the_order_of_the_graph_with_their_uses_and_outputs() -> None:
    found = discover(two_ffns())
    assert [site.name for site in found.table.sites] == ["a.ffn", "b.ffn"]
    assert [found.outputs(site.name) for site in found.table.sites] == [["a.3"], ["b.3"]]
    uses = found.uses("b.ffn")
    assert {role: [str(node.outputs[0].name) for node, _ in slots] for role, slots in uses.items()} == {
        "up": ["b.0"], "up_bias": ["b.1"], "down": ["b.3"],
    }  # fmt: skip
    for role, slots in uses.items():
        for node, position in slots:
            view = view_of(node.inputs[position], Shapes(found.model.graph))
            assert view is not None
            assert view.param.name == found.table["b.ffn"].members[role].param


def test_numbers_and_bytes_are_counted_once() -> None:
    table = discover(two_ffns()).table
    assert table.parameters == 2 * (4 * 8 + 8 + 8 * 4 + 4)
    assert table.bytes == 4 * table.parameters


HEAD = """
    h = MatMul (x, a.up.weight)
    r = Relu (h)
    y = MatMul (r, a.down.weight)"""


def test_a_head_whose_result_leaves_the_stream_is_no_ffn() -> None:
    found = of(HEAD, "float[4,8] a.up.weight, float[8,3] a.down.weight", outputs="float[B,S,3] y")
    assert not found.table.sites
    (rejection,) = found.table.rejected
    assert "residual" in rejection.reason
    assert set(rejection.params) == {"a.up.weight", "a.down.weight"}


def test_two_projections_without_an_activation_are_no_ffn() -> None:
    body = "h = MatMul (x, a.up.weight)  d = MatMul (h, a.down.weight)  y = Add (x, d)"
    found = of(body, "float[4,8] a.up.weight, float[8,4] a.down.weight")
    assert not found.table.sites
    assert "no activation" in found.table.rejected[0].reason


def test_the_residual_is_found_through_norms_scales_and_parallel_blocks() -> None:
    """x + gamma * ffn(norm(x)) + attention(norm(x))."""
    body = f"""
        n = LayerNormalization (x, norm.weight)
        f.0 = MatMul (n, f.up.weight)
        f.1 = Relu (f.0)
        f.2 = MatMul (f.1, f.down.weight)
        f.3 = Mul (f.2, gamma)
        z = Add (x, f.3)
        {attention("a", "n", "w", 2, 2)}
        y = Add (z, a.o1)"""
    weights = f"""float[4] norm.weight, float[4] gamma, float[4,8] f.up.weight, float[8,4] f.down.weight,
        {attention_weights("a", 4, 2, 2)}"""
    assert [(site.name, site.kind) for site in of(body, weights).table.sites] == [("f.ffn", "ffn"), ("a.attn", "msa")]


def test_call_sites_of_the_same_weights_are_one_site() -> None:
    model = model_of(
        ffn("a", "x", "h") + ffn("a", "h", "y").replace("a.0", "c.0").replace("a.1", "c.1").replace("a.2", "c.2")
        .replace("a.3", "c.3").replace("a.4", "c.4"),
        inputs="float[B,S,4] x", outputs="float[B,S,4] y", weights=ffn_weights("a", 4, 8),
    )  # fmt: skip
    found = discover(model)
    (site,) = found.table.sites
    assert site.calls == len(found.regions[site.name]) == 2
    assert found.outputs(site.name) == ["a.3", "c.3"]
    assert len(found.uses(site.name)["up"]) == 2


def test_quantised_and_computed_weights_are_reported_with_the_reason() -> None:
    body = "q = DequantizeLinear (codes, scale)  h = MatMul (x, q)  r = Relu (h)  d = MatMul (r, a.down.weight)  y = Add (x, d)"
    weights = "int8[4,2] codes = {1, 2, 3, 4, 5, 6, 7, 8}, float scale = {0.1}, float[2,4] a.down.weight"
    found = of(body, weights)
    assert not found.table.sites
    assert any(r.reason == "quantised weight (DequantizeLinear)" for r in found.table.rejected)
    body = "w = Mul (a.up.weight, two)  h = MatMul (x, w)  r = Relu (h)  d = MatMul (r, a.down.weight)  y = Add (x, d)"
    found = of(body, "float[4,8] a.up.weight, float two = {2.0}, float[8,4] a.down.weight")
    assert any(r.reason == "its weight is computed by Mul" for r in found.table.rejected)


@pytest.mark.parametrize(
    ("inside", "reasons"),
    [
        ("Neg (one)", []),
        ("ReduceSum <keepdims = 0> (x)", []),
        ("ReduceSum <keepdims = 0> (stream)", ["control flow (If) is carried through untouched"]),
        ("MatMul (three, three)", ["control flow (If) is carried through untouched"]),
    ],
)
def test_control_flow_is_reported_unless_it_only_computes_numbers_beside_the_stream(inside: str, reasons: list[str]) -> None:
    branches = f"then_branch = g () => (float t) {{ t = {inside} }}, else_branch = h () => (float e) {{ e = Abs (one) }}"
    choice = f"flag = Greater (one, zero)  c = If (flag) <{branches}>  z = Mul (stream, c)"
    body = ffn("b", "x", "stream") + choice + ffn("a", "z", "y")
    constants = "float one = {1.0}, float zero = {0.0}, float[3] three = {1.0, 2.0, 3.0}"
    found = of(body, f"{constants}, {ffn_weights('a', 4, 8)}, {ffn_weights('b', 4, 8)}")
    assert [site.name for site in found.table.sites] == ["b.ffn", "a.ffn"]
    assert [r.reason for r in found.table.rejected] == reasons


def test_a_gemm_with_factors_is_reported() -> None:
    body = "h = Gemm <alpha = 0.5> (f, a.up.weight)  r = Relu (h)  d = MatMul (r, a.down.weight)  y = Reshape (d, s)"
    weights = "float[4,8] a.up.weight, float[8,4] a.down.weight, int64[3] s = {1, -1, 4}, int64[2] t = {-1, 4}"
    found = of(f"f = Reshape (x, t)  {body}", weights)
    assert not found.table.sites
    assert [r.reason for r in found.table.rejected if "alpha" in r.reason]


def test_calls_of_functions_are_reported_once_for_each_function() -> None:
    text = """
        <ir_version: 9, opset_import: ["" : 18, "own" : 1]>
        g (float[B,4] x) => (float[B,4] y) { a = own.Twice (x)  b = own.Twice (a)  y = own.Half (b) }
        <domain: "own", opset_import: ["" : 18]>
        Twice (x) => (y) { y = Add (x, x) }
        <domain: "own", opset_import: ["" : 18]>
        Half (x) => (y) { y = Abs (x) }
    """
    rejected = discover(ir.from_onnx_text(text)).table.rejected
    assert [r.nodes for r in rejected] == [("a", "b"), ("y",)]
    assert ["Twice" in r.reason for r in rejected] == [True, False]


@pytest.mark.parametrize("form", ["two_tower", "gqa", "swin", "bi_attention", "tied_layers"])
def test_the_table_does_not_depend_on_names(form: str) -> None:
    """Names of values and nodes are for people: with others the same sites are found, in the same order."""
    zoo = build(form, 2)
    assert not differences(zoo, discover(zoo.model).table) or form == "bi_attention"
    before = discover(zoo.model).table
    copy = zoo.model.clone()
    for i, node in enumerate(copy.graph):
        node.name = f"n{i}"
        for j, value in enumerate(node.outputs):
            if not value.is_graph_output() and node.op_type != "Constant" and value.name:
                value.name = f"v{i}.{j}"
    assert discover(copy).table.fingerprint == before.fingerprint
    assert [site.members for site in discover(copy).table.sites] == [site.members for site in before.sites]


def test_a_short_stream_that_another_tower_is_compared_with_is_nothing_that_was_refused() -> None:
    body = f"""
        image = MatMul (x, image.weight)
        {ffn("a", "image", "embedded")}
        text = MatMul (x, text.weight)
        turned = Transpose <perm = [0, 2, 1]> (text)
        y = MatMul (embedded, turned)"""
    weights = f"float[4,4] image.weight, float[4,4] text.weight, {ffn_weights('a', 4, 8)}"
    found = discover(model_of(body, inputs="float[B,S,4] x", outputs="float[B,S,S] y", weights=weights))
    assert [site.name for site in found.table.sites] == ["a.ffn"]
    assert not found.table.rejected
