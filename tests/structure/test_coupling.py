"""Coupling: each operator's rule unites, splits or freezes the right axes, and an operator without a rule freezes them.

The models are FFNs and attentions with one thing between their projections; what is free or frozen, and why, is read off the
sites that come out.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from inarch.structure.axis_rules import RULES, SOURCES
from inarch.structure.coupling import Coupling
from inarch.structure.discover import Discovery, discover
from inarch.structure.errors import ModelError

from tests.onnx_text import attention, attention_weights, ffn_weights, model_of
from tests.zoo import build


def middle(between: str, weights: str = "", *, opset: int = 18, out: str = "h", outputs: str = "float[B,S,4] y") -> ir.Model:
    """An FFN of 4 x 8 with something between its activation ``a.2`` and its second projection, which reads ``out``."""
    body = f"""
        a.0 = MatMul (x, a.up.weight)
        a.1 = Add (a.0, a.up.bias)
        a.2 = Relu (a.1)
        {between}
        a.3 = MatMul ({out}, a.down.weight)
        a.4 = Add (a.3, a.down.bias)
        y = Add (x, a.4)"""
    declared = ", ".join(filter(None, (ffn_weights("a", 4, 8), weights)))
    return model_of(body, inputs="float[B,S,4] x, float[B,S,8] side", outputs=outputs, weights=declared, opset=opset)


def free(model: ir.Model) -> bool:
    """Whether the hidden axis of the FFN may change; where not, it is rejected or frozen, and a reason is given."""
    found = discover(model)
    named = [site for site in found.table.sites if "a.up.weight" in {m.param for m in site.members.values()}]
    assert bool(named) != bool(found.table.rejected)
    return bool(named) and named[0].axes["hidden"].frozen is None


def reason(model: ir.Model) -> str:
    return discover(model).table.rejected[0].reason


PASSES = {
    "unary": "h = Tanh (a.2)",
    "dropout": "h = Dropout (a.2)",
    "dropout with a mask that nobody reads": "h, mask = Dropout (a.2)",
    "cast there and back": "b = Cast <to = 10> (a.2)  h = Cast <to = 1> (b)",
    "scale": ("h = Mul (a.2, scale)", "float[8] scale"),
    "scalar": ("h = Div (a.2, scale)", "float scale = {2.0}"),
    "with itself": "b = Sigmoid (a.2)  h = Mul (a.2, b)",
    "a graph value of its width": "h = Mul (a.2, side)",
    "where": ("b = Greater (a.2, zero)  h = Where (b, a.2, zero)", "float zero = {0.0}"),
    "clip": ("h = Clip (a.2, low, high)", "float low = {0.0}, float high = {6.0}"),
    "transposed": "b = Transpose <perm = [0, 2, 1]> (a.2)  h = Transpose <perm = [0, 2, 1]> (b)",
    "squeezed": ("b = Unsqueeze (a.2, i1)  h = Squeeze (b, i1)", "int64[1] i1 = {1}"),
    "flattened": ("b = Reshape (a.2, t)  n = Shape (a.2)  h = Reshape (b, n)", "int64[2] t = {-1, 8}"),
    "slice of the sequence": (
        "h = Slice (a.2, i0, i9, i1)",
        "int64[1] i0 = {0}, int64[1] i9 = {9223372036854775807}, int64[1] i1 = {1}",
    ),
    "reduced over the sequence": ("b = ReduceMean <keepdims = 1> (a.2, i1)  h = Add (a.2, b)", "int64[1] i1 = {1}"),
    "identity": "h = Identity (a.2)",
}

FREEZES = {
    "unknown operator": ("h = own.Mystery (a.2)", "float[B,S,8] h", "own.Mystery has no coupling rule"),
    "known name of another domain": ("h = own.Relu (a.2)", "float[B,S,8] h", "own.Relu has no coupling rule"),
    "operator without a rule": ("h = CumSum (a.2, axis)", "int64 axis = {2}", "CumSum has no coupling rule"),
    "norm": ("h = LayerNormalization (a.2, g)", "float[8] g", "LayerNormalization runs over it"),
    "softmax": ("h = Softmax <axis = -1> (a.2)", "", "Softmax runs over it"),
    "mean": ("b = ReduceMean <keepdims = 1> (a.2, i2)  h = Sub (a.2, b)", "int64[1] i2 = {2}", "ReduceMean runs over it"),
    "mean of all": ("b = ReduceMean <keepdims = 1> (a.2)  h = Sub (a.2, b)", "", "ReduceMean runs over it"),
    "gathered": ("h = Gather <axis = 2> (a.2, i)", "int64[8] i = {1, 0, 2, 3, 4, 5, 6, 7}", "Gather"),
    "unequal parts": ("b, c = Split <axis = 2> (a.2, n)  h = Concat <axis = 2> (c, b)", "int64[2] n = {3, 5}", "unequal parts"),
    "tiled": (
        "b = Tile (a.2, n)  h = Slice (b, i0, i8, i2)",
        "int64[3] n = {1, 1, 2}, int64[1] i0 = {0}, int64[1] i8 = {8}, int64[1] i2 = {2}",
        "Tile repeats it",
    ),
    "counted": ("n = Size (a.2)  c = Cast <to = 1> (n)  h = Div (a.2, c)", "", "Size counts it"),
    "an unknown side": ("b = own.Mystery (side)  h = Add (a.2, b)", "float[B,S,8] h", "the shape of b is unknown"),
}


@pytest.mark.parametrize("name", PASSES)
def test_the_hidden_axis_passes(name: str) -> None:
    entry = PASSES[name]
    body, weights = entry if isinstance(entry, tuple) else (entry, "")
    assert free(middle(body, weights))


@pytest.mark.parametrize("name", FREEZES)
def test_the_hidden_axis_freezes_with_the_reason(name: str) -> None:
    body, weights, why = FREEZES[name]
    model = middle(body, weights)
    assert not free(model)
    assert why in reason(model)


def test_a_mean_over_the_hidden_axis_that_is_read_elsewhere_freezes_it() -> None:
    model = middle(
        "m = ReduceMax <keepdims = 0> (a.2, i2)", "int64[1] i2 = {2}", out="a.2", outputs="float[B,S,4] y, float[B,S] m"
    )
    assert not free(model)
    assert reason(model) == "ReduceMax runs over it"


@pytest.mark.parametrize(("name", "place"), [("joined", "joined"), (None, "h")])
def test_shapes_that_contradict_each_other_are_refused(name: str | None, place: str) -> None:
    model = middle("h = Concat <axis = 2> (a.2, flat)", "float[4] flat")
    node = next(node for node in model.graph if node.op_type == "Concat")
    node.name, node.outputs[0].shape = name, ir.Shape(["B", "S", 12])
    with pytest.raises(ModelError, match=rf"^{place}: the shapes around this Concat contradict each other \(clear the shapes"):
        discover(model)


@pytest.mark.parametrize("rows", [7, 9])
def test_a_weight_with_another_count_of_rows_is_refused(rows: int) -> None:
    model = middle("h = Identity (a.2)")
    weight = next(node.inputs[1] for node in reversed(model.graph) if node.op_type == "MatMul")
    assert weight is not None
    assert weight.const_value is not None
    weight.const_value = ir.tensor(np.ones((rows, 4), np.float32), name=weight.name)
    weight.shape = ir.Shape([rows, 4])
    with pytest.raises(ModelError, match="the shapes around this MatMul contradict each other"):
        discover(model)


def test_a_graph_output_freezes() -> None:
    model = middle("h = Identity (a.2)", outputs="float[B,S,4] y, float[B,S,8] h")
    assert not free(model)
    assert reason(model) == "it is the graph output h"


def choose(result: str, kind: str, captured: str) -> str:
    """An If both of whose branches read a value from outside."""
    then = f"then_branch = g1 () => ({kind} t) {{ t = Identity ({captured}) }}"
    otherwise = f"else_branch = g2 () => ({kind} e) {{ e = Neg ({captured}) }}"
    return f"flag = Greater (one, zero)  {result} = If (flag) <{then}, {otherwise}>"


def test_a_table_that_a_subgraph_chooses_is_a_side_input() -> None:
    constants = "float one = {1.0}, float zero = {0.0}, float[8] table"
    assert free(middle(f"{choose('scale', 'float[8]', 'table')}  h = Mul (a.2, scale)", constants))


def test_what_a_subgraph_captures_freezes() -> None:
    model = middle(choose("h", "float[B,S,8]", "a.2"), "float one = {1.0}, float zero = {0.0}")
    assert not free(model)


def test_a_parameter_that_a_subgraph_captures_freezes_its_site() -> None:
    constants, outputs = "float one = {1.0}, float zero = {0.0}", "float[B,S,4] y, float[4,8] z"
    model = middle(choose("z", "float[4,8]", "a.up.weight"), constants, out="a.2", outputs=outputs)
    assert not free(model)
    assert "a.up.weight" in reason(model)


def test_a_parameter_that_is_a_graph_input_freezes_its_site() -> None:
    model = middle("h = Identity (a.2)")
    model.graph.inputs.append(model.graph.initializers["a.down.weight"])
    assert not [site for site in discover(model).table.sites if "a.down.weight" in {m.param for m in site.members.values()}]


def test_equal_slices_split_the_axis_and_unequal_ones_freeze_it() -> None:
    """A gate and an up in one projection, as SwiGLU packs them, and two parts that are not halves."""
    body = """
        p = MatMul (x, a.both.weight)
        g = Slice (p, i0, {cut}, i2)
        u = Slice (p, {cut}, i16, i2)
        s = Sigmoid (g)
        h = Mul (s, u)
        d = MatMul (h, a.down.weight)
        y = Add (x, d)"""
    constants = ", ".join(f"int64[1] i{n} = {{{n}}}" for n in (0, 2, 8, 16))
    weights = f"float[4,16] a.both.weight, float[8,4] a.down.weight, {constants}"
    model = model_of(body.format(cut="i8"), inputs="float[B,S,4] x", outputs="float[B,S,4] y", weights=weights)
    coupling = Coupling(model.graph, RULES, SOURCES)
    both, down = coupling.projections
    parts = coupling.leaves(both.n)
    assert [coupling.size(leaf).value for leaf in parts] == [2, 8]
    assert coupling.leaves(down.k or ()) == parts[1:]
    assert coupling.frozen(parts[0]) is not None
    assert coupling.frozen(parts[1]) is None


def heads(between: str = "", weights: str = "", *, count: int = 2, scores: str = "a.s1") -> Discovery:
    """An attention of ``count`` heads of 4 with something between its scores and the softmax, which reads ``scores``."""
    body = attention("a", "x", "y", count, 4)
    before, rest = body.split("a.p = Softmax <axis = -1> (a.s1)")
    text = f"{before} {between}\n a.p = Softmax <axis = -1> ({scores}) {rest}"
    declared = ", ".join(filter(None, (attention_weights("a", 8, count, 4), weights)))
    inputs = "float[B,S,8] x, float[B,1,S,S] mask, float[B,2,S,S] own"
    return discover(model_of(text, inputs=inputs, outputs="float[B,S,8] y", weights=declared))


def test_attention_has_heads_and_two_inner_axes() -> None:
    (site,) = heads().table.sites
    assert {name: (axis.heads, axis.per_head) for name, axis in site.axes.items()} == {"head": (2, 1), "qk": (2, 4), "vo": (2, 4)}
    assert not site.frozen
    assert {role: m.factors for role, m in site.members.items()} == {
        **dict.fromkeys(("q", "q_bias", "k", "k_bias"), (("head", 2), ("qk", 4))),
        **dict.fromkeys(("v", "v_bias", "o"), (("head", 2), ("vo", 4))),
    }
    assert {role: (m.axis, m.transposed) for role, m in site.members.items() if m.is_matrix} == {
        "q": (1, False), "k": (1, False), "v": (1, False), "o": (0, False),
    }  # fmt: skip


def test_side_inputs_along_the_heads_are_riders() -> None:
    found = heads("b = Add (a.s1, table)  c = Add (b, own)  d = Add (c, mask)", "float[1,2,1,1] table", scores="d")
    (site,) = found.table.sites
    assert not site.frozen
    (region,) = found.regions[site.name]
    values = [(r.role, r.node.inputs[r.position]) for r in region.riders]
    riders = {v.name for role, v in values if v is not None and (role is None or role.startswith("rider"))}
    assert riders == {"table", "own"}, "the mask has no heads"
    (table,) = [m for role, m in site.members.items() if role.startswith("rider")]
    assert (table.param, table.axis, table.factors) == ("table", 1, (("head", 2),))


def test_a_norm_over_the_scores_heads_freezes_heads_alone() -> None:
    found = heads("b = Softmax <axis = 1> (a.s1)", scores="b")
    (site,) = found.table.sites
    assert set(site.frozen) == {"head"}


def test_a_constant_added_to_queries_freezes_what_it_makes_count() -> None:
    """A pruned query unit is zero; cos(0) is not."""
    body = attention("a", "x", "y", 2, 4).replace("a.s0 = MatMul (a.q3, a.k3)", "t = Cos (a.q3)  a.s0 = MatMul (t, a.k3)")
    found = discover(model_of(body, inputs="float[B,S,8] x", outputs="float[B,S,8] y", weights=attention_weights("a", 8, 2, 4)))
    (site,) = found.table.sites
    assert set(site.frozen) == {"qk"}
    assert "Cos" in site.frozen["qk"]


@pytest.mark.parametrize("form", ["rotary_half", "rotary_interleaved"])
def test_rotary_pairs_are_one_unit_and_common_to_all_heads(form: str) -> None:
    for seed in range(3):
        zoo = build(form, seed)
        for site in (s for s in discover(zoo.model).table.sites if s.kind == "msa"):
            factors = dict(site.members["q"].factors)
            assert factors["pair"] == 2
            key = site.members["k"]
            assert site.heads * site.sizes["qk"] * 2 == key.shape[key.axis]
            assert "qk" in site.uniform
            index = site.members["q"].index("qk")
            assert np.array_equal(np.sort(index.reshape(-1)), np.arange(site.members["q"].size))


def test_grouped_query_heads_are_one_unit_of_their_key_head() -> None:
    zoo = build("gqa", 0)
    for site in (s for s in discover(zoo.model).table.sites if s.kind == "msa"):
        q, k = dict(site.members["q"].factors), dict(site.members["k"].factors)
        assert site.heads == zoo.notes["kv_heads"] == k["head"] == q["head"]
        assert q["group"] == zoo.notes["heads"] // zoo.notes["kv_heads"]
        assert "group" not in k


def test_the_residual_stream_is_no_hidden_axis() -> None:
    """Of two FFNs on one stream neither hidden axis reaches the other, and the stream is nobody's."""
    found = discover(build("encoder_pre_norm", 0).model)
    coupling = found.coupling
    stream = {leaf for p in coupling.projections for leaf in coupling.leaves(p.k or ()) if p.x.name and "norm" in str(p.x.name)}
    hidden = [set(region.names) for regions in found.regions.values() for region in regions]
    assert all(not (a & b) for i, a in enumerate(hidden) for b in hidden[:i])
    assert all(not (stream & own) for own in hidden)
    assert stream


def test_packed_attention_is_seen_as_one_projection_until_it_is_taken_apart() -> None:
    found = discover(build("packed_timm", 0).model)
    assert not [site for site in found.table.sites if site.kind == "msa"]
    reasons = [r.reason for r in found.table.rejected]
    assert any("one projection" in r or "could not be taken apart" in r for r in reasons), reasons
