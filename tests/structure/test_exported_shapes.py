"""Shapes through what exporters compute in the graph: padding, rolled maps, ranges, sizes on their way through other types."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from inarch.structure.shapes import Shapes

from tests.onnx_text import model_of


def shape_of(model: ir.Model, name: str) -> list[str]:
    """The symbolic shape of a value."""
    shapes = Shapes(model.graph)
    value = next(v for node in model.graph for v in node.outputs if v.name == name)
    return [str(size) for size in shapes.need(value)]


def test_padding_by_known_amounts() -> None:
    body = "y = Pad (x, pads)"
    zero = model_of(body, inputs="float[B,7,C] x", outputs="float[B,N,C] y", weights="int64[6] pads = {0, 0, 0, 0, 1, 0}")
    zero.graph.outputs[0].shape = None
    assert shape_of(zero, "y") == ["B", "8", "C"]


def test_padding_as_torchscript_turns_it_round() -> None:
    body = """
        pairs = Reshape (pads, two)
        last = Slice (pairs, minus, open, zero, minus)
        turned = Transpose <perm = [1, 0]> (last)
        flat = Reshape (turned, minus)
        y = Pad (x, flat)"""
    # torch lists the last axis first: (before, after) of C, then of the axis of 7
    weights = (
        "int64[6] pads = {0, 0, 2, 1, 0, 0}, int64[2] two = {-1, 2}, int64[1] minus = {-1}, "
        "int64[1] open = {-9223372036854775807}, int64[1] zero = {0}"
    )
    model = model_of(body, inputs="float[B,7,4] x", outputs="float[B,N,4] y", weights=weights)
    model.graph.outputs[0].shape = None
    assert shape_of(model, "y") == ["B", "10", "4"]


@pytest.mark.parametrize("cut", ["2", "-3"])
def test_a_rolled_map_has_its_size(cut: str) -> None:
    body = """
        a = Slice (x, k, most, one, one)
        b = Slice (x, zero, k, one, one)
        y = Concat <axis = 1> (a, b)"""
    weights = f"int64[1] k = {{{cut}}}, int64[1] most = {{9223372036854775807}}, int64[1] one = {{1}}, int64[1] zero = {{0}}"
    model = model_of(body, inputs="float[B,H,W] x", outputs="float[B,N,W] y", weights=weights)
    model.graph.outputs[0].shape = None
    assert shape_of(model, "y") == ["B", "H", "W"]


def test_pieces_that_overlap_are_no_rolled_map() -> None:
    body = """
        a = Slice (x, zero, most, one, one)
        b = Slice (x, zero, most, one, one)
        y = Concat <axis = 1> (a, b)"""
    weights = "int64[1] most = {9223372036854775807}, int64[1] one = {1}, int64[1] zero = {0}"
    model = model_of(body, inputs="float[B,H,W] x", outputs="float[B,N,W] y", weights=weights)
    model.graph.outputs[0].shape = None
    assert shape_of(model, "y")[1] != "H"


def test_a_range_over_a_size_cast_like_another() -> None:
    body = """
        s = Shape <start = 1, end = 2> (x)
        n = Squeeze (s)
        first = CastLike (zero, n)
        step = CastLike (one, n)
        y = Range (first, n, step)"""
    model = model_of(body, inputs="float[B,S] x", outputs="int64[N] y", weights="float zero = {0.0}, float one = {1.0}")
    model.graph.outputs[0].shape = None
    assert shape_of(model, "y") == ["S"]


def test_a_recorded_size_of_an_input_beats_an_unknown() -> None:
    body = """
        n = Squeeze (m)
        r = Range (zero, n, one)
        y = Unsqueeze (r, axis)"""
    weights = "int64 zero = {0}, int64 one = {1}, int64[1] axis = {0}"
    model = model_of(body, inputs="float[B,S] x, int64[1] m", outputs="int64[1,N] y", weights=weights)
    assert shape_of(model, "y")[1] not in ("S", "N")
    model.graph.outputs[0].shape = ir.Shape([1, "S"])
    assert shape_of(model, "y") == ["1", "S"]


def test_padding_to_whole_windows_keeps_the_other_axes() -> None:
    body = """
        h = Shape <start = 1, end = 2> (x)
        over = Mod (h, four)
        rest = Sub (four, over)
        need = Mod (rest, four)
        pads = Concat <axis = 0> (zeros, need, zero)
        y = Pad (x, pads)"""
    weights = "int64[1] four = {4}, int64[4] zeros = {0, 0, 0, 0}, int64[1] zero = {0}"
    model = model_of(body, inputs="float[B,H,32] x", outputs="float[B,N,32] y", weights=weights)
    model.graph.outputs[0].shape = None
    sizes = shape_of(model, "y")
    assert [sizes[0], sizes[2]] == ["B", "32"]
    assert "H" in sizes[1]
    assert sizes[1] != "H"


@pytest.mark.parametrize(("test", "rank"), [("1", 1), ("0", 2)])
def test_an_if_of_a_known_condition_has_the_shape_of_its_branch(test: str, rank: int) -> None:
    body = """
        t = Cast <to = 9> (test)
        y = If (t) <
            then_branch = a () => (float[N] p) { p = Squeeze (x, axis) },
            else_branch = b () => (float[N,M] q) { q = Identity (x) }
        >"""
    weights = f"int64[1] test = {{{test}}}, int64[1] axis = {{0}}"
    model = model_of(body, inputs="float[1,W] x", outputs="float[K] y", weights=weights)
    model.graph.outputs[0].shape = None
    assert shape_of(model, "y") == ["1", "W"][2 - rank :]


def test_embeddings_of_onnx_runtime() -> None:
    body = "y, lengths, z = com.microsoft.EmbedLayerNormalization (ids, segments, words, places, kinds, gamma, beta, mask)"
    weights = "float[9,6] words, float[8,6] places, float[2,6] kinds, float[6] gamma, float[6] beta"
    inputs = "int32[B,S] ids, int32[B,S] segments, int32[B,S] mask"
    model = model_of(body, inputs=inputs, outputs="float[N] y, int32[M] lengths, float[K] z", weights=weights)
    for value in model.graph.outputs:
        value.shape = None
    assert [shape_of(model, name) for name in ("y", "lengths", "z")] == [["B", "S", "6"], ["B"], ["B", "S", "6"]]
