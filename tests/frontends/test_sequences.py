"""Sequences read at constant places become Slices, and packed Attention is taken apart only where its mask means the same."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from inarch.frontends.canonicalize import canonicalize

from tests.onnx_text import model_of
from tests.zoo.check import run_all


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def sequence_model(split: str, *, first: str = "0", second: str = "-1", reads: str = "h") -> ir.Model:
    """Two pieces of a projection's result, added where they are of one size."""
    body = f"""
        h = MatMul (x, w)
        s = SplitToSequence <axis = -1> ({reads}, split)
        a = SequenceAt (s, first)
        b = SequenceAt (s, second)
        y = Add (a, b)"""
    weights = f"float[4,12] w, {split}, int64 first = {{{first}}}, int64 second = {{{second}}}"
    return model_of(body, inputs="float[B,S,4] x", outputs="float[B,S,N] y", weights=weights)


@pytest.mark.parametrize(
    ("split", "second"),
    [
        ("int64[2] split = {6, 6}", "1"),
        ("int64[3] split = {4, 4, 4}", "-1"),
        ("int64 split = {4}", "2"),
        ("int64[3] split = {5, 2, 5}", "2"),
    ],
)
def test_pieces_at_constant_places_become_slices(split: str, second: str) -> None:
    model = sequence_model(split, second=second)
    result = canonicalize(model)
    assert not operators(result) & Counter(["SplitToSequence", "SequenceAt"])
    assert operators(model)["SplitToSequence"] == 1, "the original is not changed"
    feeds = [{"x": np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)}]
    wanted, got = run_all(model, feeds)["on"][0]["y"], run_all(result, feeds)["on"][0]["y"]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)


def test_a_place_that_is_computed_stays() -> None:
    body = """
        h = MatMul (x, w)
        s = SplitToSequence <axis = -1> (h, split)
        y = SequenceAt (s, place)"""
    inputs = "float[B,S,4] x, int64 place"
    model = model_of(body, inputs=inputs, outputs="float[B,S,N] y", weights="float[4,12] w, int64[2] split = {6, 6}")
    assert operators(canonicalize(model)) == operators(model)


def test_parts_of_a_parameter_stay_views() -> None:
    body = """
        s = SplitToSequence <axis = -1> (w, split)
        a = SequenceAt (s, place)
        y = MatMul (x, a)"""
    weights = "float[4,12] w, int64[2] split = {6, 6}, int64 place = {1}"
    model = model_of(body, inputs="float[B,S,4] x", outputs="float[B,S,6] y", weights=weights)
    assert operators(canonicalize(model))["SplitToSequence"] == 1


@pytest.mark.parametrize(
    ("mask", "separate"),
    [("int32[B,S] m", True), ("int32[B] m", True), ("int32[M] m", False), ("int32[B,S,S] m", False)],
    ids=["every key", "lengths", "perhaps start and end", "every query"],
)
def test_packed_attention_is_taken_apart_where_its_mask_means_the_same(mask: str, separate: bool) -> None:
    body = "y0 = com.microsoft.Attention <num_heads = 2> (x, w, b, m)\ny = Add (x, y0)"
    model = model_of(body, inputs=f"float[B,S,8] x, {mask}", outputs="float[B,S,8] y", weights="float[8,24] w, float[24] b")
    result = canonicalize(model)
    assert operators(result)["MultiHeadAttention"] == separate
    assert operators(result)["Attention"] == (not separate)
    if separate:
        rng = np.random.default_rng(0)
        lengths = np.array([3, 5], np.int32)
        given = lengths if "[B]" in mask else (np.arange(5) < lengths[:, None]).astype(np.int32)
        feeds = [{"x": rng.normal(size=(2, 5, 8)).astype(np.float32), "m": given}]
        wanted, got = run_all(model, feeds)["off"][0]["y"], run_all(result, feeds)["off"][0]["y"]
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)
