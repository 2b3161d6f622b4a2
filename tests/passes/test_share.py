"""Share: one initializer for what several sites share, private rest beside it, biases each site's own."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from inarch.passes.share import Share

from tests.onnx_text import attention, attention_weights, model_of
from tests.passes.case import Case, array, case_of, ffns, keep, operators, proto, share


def shared(model: ir.Model) -> dict[str, tuple[tuple[int, ...], int]]:
    """Segments: name -> (shape, readers)."""
    return {
        name: (tuple(v.shape.numpy()), len(v.uses()))
        for name, v in model.graph.initializers.items()
        if name.startswith("segment") and v.shape is not None
    }


def run(case: Case) -> ir.Model:
    model, work = case.copy()
    assert Share(work)(model).modified
    assert not case.wrong(model)
    return model


def attended(*heads: tuple[int, int]) -> ir.Model:
    body, x, weights = "", "x", []
    for i, ((count, per_head), site) in enumerate(zip(heads, "abc", strict=False)):
        y = "y" if i == len(heads) - 1 else f"x{i + 1}"
        body, x = body + attention(site, x, y, count, per_head), y
        weights.append(attention_weights(site, 8, count, per_head))
    return model_of(body, inputs="float[B,S,8] x", outputs="float[B,S,8] y", weights=", ".join(weights))


def test_whole_sharing_is_one_initializer_with_two_readers() -> None:
    case = case_of(ffns("a", "b"), {"b.ffn": {"hidden": share("a.ffn", "0-7")}})
    model = run(case)
    assert shared(model) == {"segment0.hidden.up": ((4, 8), 2), "segment0.hidden.down": ((8, 4), 2)}
    assert not {"a.up.weight", "b.up.weight", "a.down.weight", "b.down.weight"} & set(model.graph.initializers)
    assert not np.array_equal(array(model, "a.up.bias"), array(model, "b.up.bias")), "biases are each site's own"


def test_partial_sharing_splits_compute_and_concatenates_nothing() -> None:
    case = case_of(ffns("a", "b"), {"b.ffn": {"hidden": share("a.ffn", "0-4", "3-7")}})
    model = run(case)
    assert "Concat" not in operators(model)
    assert shared(model) == {"segment0.hidden.up": ((4, 5), 2), "segment0.hidden.down": ((5, 4), 2)}
    up = array(case.model, "a.up.weight")
    assert np.array_equal(array(model, "segment0.hidden.up"), up[:, 3:])
    assert np.array_equal(array(model, "a.up.weight"), up[:, :3]), "what is private at the base"
    assert np.array_equal(array(model, "b.up.weight"), array(case.model, "b.up.weight")[:, 5:])
    down = array(case.model, "a.down.weight")
    assert np.array_equal(array(model, "segment0.hidden.down"), down[3:])


def test_segments_are_the_roots_weights_in_every_pairing() -> None:
    """b's units 7, 0 and 2 are a's 1, 4 and 6: the segment is in one order for both, and that of a's weights."""
    case = case_of(ffns("a", "b"), {"b.ffn": {"hidden": share("a.ffn", "7,0,2", "1,4,6")}})
    model = run(case)
    segment = array(model, "segment0.hidden.up")
    columns = [tuple(c) for c in array(case.model, "a.up.weight")[:, [1, 4, 6]].T]
    assert sorted(tuple(c) for c in segment.T) == sorted(columns)


def test_several_readers_and_chains_read_the_roots_segments() -> None:
    decisions = {"b.ffn": {"hidden": share("a.ffn", "0-5")}, "c.ffn": {"hidden": share("b.ffn", "0-2")}}
    case = case_of(ffns("a", "b", "c"), decisions)
    model = run(case)
    assert sorted(shared(model).values()) == [((3, 4), 2), ((3, 4), 3), ((4, 3), 2), ((4, 3), 3)]
    assert np.array_equal(array(model, "c.up.weight"), array(case.model, "c.up.weight")[:, 3:])


def test_a_pruned_base_unit_of_nobody_goes_and_shared_ones_stay() -> None:
    case = case_of(ffns("a", "b"), {"a.ffn": {"hidden": keep("0-3")}, "b.ffn": {"hidden": share("a.ffn", "0-3")}})
    model = run(case)
    assert shared(model)["segment0.hidden.up"] == ((4, 4), 2)
    assert "a.up.weight" not in model.graph.initializers, "nothing of a is private"


def test_heads_split_into_groups() -> None:
    case = case_of(attended((4, 2), (4, 2)), {"b.attn": {"head": share("a.attn", "0-1", "2-3")}})
    model = run(case)
    assert operators(model).count("Softmax") == 4
    assert {shape for shape, _ in shared(model).values()} == {(8, 4), (4, 8)}
    assert np.array_equal(array(model, "segment0.qk.q"), array(case.model, "a.q.weight")[:, 4:])


def test_inside_heads_two_score_products_are_summed() -> None:
    case = case_of(attended((2, 4), (2, 4)), {"b.attn": {"qk": share("a.attn", "0,1,4,5"), "vo": share("a.attn", "0-2,4-6")}})
    model = run(case)
    assert operators(model).count("Softmax") == 2, "one softmax a site"
    scores = [node for node in model.graph if node.op_type == "Softmax"]
    for softmax in scores:
        scaled = softmax.inputs[0]
        assert scaled is not None
        scale = scaled.producer()
        assert scale is not None
        assert scale.inputs[0] is not None
        total = scale.inputs[0].producer()
        assert total is not None
        assert total.op_type == "Add"
        assert [p.op_type for v in total.inputs if v is not None and (p := v.producer())] == ["MatMul", "MatMul"]


def test_other_head_splits_share_what_lines_up() -> None:
    case = case_of(attended((2, 4), (4, 2)), {"b.attn": {"qk": share("a.attn", "0-7"), "vo": share("a.attn", "0-7")}})
    model = run(case)
    assert {(shape, readers) for shape, readers in shared(model).values()} == {((8, 8), 2)}


def test_every_reader_of_a_segment_is_the_same_operator_on_the_same_side() -> None:
    """Packed once only if all readers are MatMuls that read it second, in 2-D and 3-D alike."""
    for case in (
        case_of(ffns("a", "b"), {"b.ffn": {"hidden": share("a.ffn", "0-4")}}),
        case_of(attended((4, 2), (4, 2)), {"b.attn": {"head": share("a.attn", "0-1")}}),
        case_of(gemms(), {"b.ffn": {"hidden": share("a.ffn", "0-4")}}),
    ):
        model = run(case)
        for name in shared(model):
            uses = model.graph.initializers[name].uses()
            assert {(use.node.op_type, use.idx) for use in uses} == {("MatMul", 1)}


def gemms() -> ir.Model:
    body, weights = "", []
    for site, x, y in (("a", "x", "h"), ("b", "h", "y")):
        body += f"""{site}.0 = Gemm <transB = 1> ({x}, {site}.up.weight, {site}.up.bias)
        {site}.1 = Relu ({site}.0)
        {site}.2 = Gemm ({site}.1, {site}.down.weight, {site}.down.bias)
        {y} = Add ({x}, {site}.2)
        """
        weights.append(f"float[8,4] {site}.up.weight, float[8] {site}.up.bias")
        weights.append(f"float[8,4] {site}.down.weight, float[4] {site}.down.bias")
    return model_of(body, inputs="float[N,4] x", outputs="float[N,4] y", weights=", ".join(weights))


def test_gemm_sites_share_in_input_major_layout() -> None:
    case = case_of(gemms(), {"b.ffn": {"hidden": share("a.ffn", "0-4")}})
    model = run(case)
    assert np.array_equal(array(model, "segment0.hidden.up"), array(case.model, "a.up.weight")[:5].T)
    assert "Gemm" not in {use.node.op_type for name in shared(model) for use in model.graph.initializers[name].uses()}


def test_sharing_with_oneself_is_possible_across_call_sites_only() -> None:
    """A tie stays a tie: the same parameters at two sites, and only one of them pruned."""
    body = """
        n = LayerNormalization (x, g)
        a.0 = MatMul (n, w.up)
        a.1 = Relu (a.0)
        a.2 = MatMul (a.1, w.down)
        h = Add (x, a.2)
        m = LayerNormalization (h, g)
        b.0 = MatMul (m, w.up)
        b.1 = Relu (b.0)
        b.2 = MatMul (b.1, v.down)
        y = Add (h, b.2)"""
    weights = "float[4] g, float[4,8] w.up, float[8,4] w.down, float[8,4] v.down"
    model = model_of(body, inputs="float[B,S,4] x", outputs="float[B,S,4] y", weights=weights)
    names = [site.name for site in case_of(model, {}).found.table.sites]
    assert len(names) == 2
    case = case_of(model, {names[1]: {"hidden": share(names[0], "0-3")}})
    changed = run(case)
    numbers = sum(int(np.prod(v.shape.numpy())) for v in changed.graph.initializers.values() if v.shape and v.name != "g")
    assert numbers == 4 * 8 + 4 * (4 + 4 + 4), "up was tied, and all of it is stored once; of down what is shared"


def test_modified_is_true_only_where_something_is_shared() -> None:
    case = case_of(ffns("a"), {"a.ffn": {"hidden": keep("0-3")}})
    model, work = case.copy()
    before = proto(model)
    assert not Share(work)(model).modified
    assert proto(model) == before


@pytest.mark.parametrize("sizes", [{"B": 1, "S": 1}, {"B": 4, "S": 9}])
def test_dynamic_axes_stay_dynamic(sizes: dict[str, int]) -> None:
    case = case_of(attended((2, 4), (2, 4)), {"b.attn": {"qk": share("a.attn", "0,1,4,5"), "vo": share("a.attn", "0-2,4-6")}})
    model, work = case.copy()
    Share(work)(model)
    assert not case.wrong(model, sizes)
