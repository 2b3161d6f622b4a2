"""Multiplications: each operator's by hand, sizes that the graph computes, and what a compiled model saves."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from inarch.compiler.compile import compile_model
from inarch.runtime.multiplications import count_multiplications, of_node

from tests.onnx_text import model_of
from tests.passes.case import COST, case_of, ffns, keep, share


@pytest.mark.parametrize(
    ("operator", "inputs", "outputs", "count"),
    [
        ("MatMul", [[2, 3, 4], [4, 5]], [[2, 3, 5]], 2 * 3 * 4 * 5),
        ("MatMul", [[2, 6, 3, 4], [2, 6, 4, 3]], [[2, 6, 3, 3]], 2 * 6 * 3 * 4 * 3),
        ("FusedMatMul", [[2, 4, 3], [2, 4, 5]], [[2, 3, 5]], 2 * 3 * 4 * 5),
        ("MatMulNBits", [[2, 3, 32], [5, 1, 16], [5]], [[2, 3, 5]], 2 * 3 * 32 * 5),
        ("Gemm", [[3, 4], [5, 4], [5]], [[3, 5]], 3 * 4 * 5),
        ("Gemm", [[4, 3], [4, 5]], [[3, 5]], 3 * 4 * 5),
        ("Conv", [[2, 6, 9, 9], [8, 3, 3, 3]], [[2, 8, 7, 7]], 2 * 8 * 7 * 7 * 3 * 9),
        ("DeformConv", [[1, 6, 9, 9], [8, 6, 3, 3], [1, 18, 7, 7]], [[1, 8, 7, 7]], 8 * 7 * 7 * 6 * 9),
        ("ConvTranspose", [[2, 6, 5, 5], [6, 4, 2, 2]], [[2, 4, 10, 10]], 2 * 6 * 25 * 4 * 4),
        ("MultiHeadAttention", [[2, 3, 8], [2, 5, 8], [2, 5, 8]], [[2, 3, 8]], 2 * 2 * 3 * 5 * 8),
        ("Attention", [[2, 4, 3, 8], [2, 4, 5, 8], [2, 4, 5, 8]], [[2, 4, 3, 8]], 2 * 2 * 4 * 3 * 5 * 8),
        ("Attention", [[2, 3, 8], [8, 24], [24]], [[2, 3, 8]], 2 * 3 * 8 * 24 + 2 * 2 * 3 * 3 * 8),
        ("Add", [[2, 3], [3]], [[2, 3]], 0),
        ("Einsum", [[2, 3], [3, 4]], [[2, 4]], None),
        ("OpenVINO_subgraph_1", [[2, 3]], [[2, 4]], None),
        ("MatMul", [[2, 3]], [[2, 4]], None),
    ],
)
def test_each_operator(operator: str, inputs: list[list[int]], outputs: list[list[int]], count: int | None) -> None:
    assert of_node(operator, inputs, outputs) == count


def test_sizes_that_the_graph_computes_are_the_real_ones() -> None:
    model = model_of(
        """s = NonZero (x)
        t = Transpose <perm = [1, 0]> (s)
        f = Cast <to = 1> (t)
        y = MatMul (f, w)""",
        inputs="float[N] x",
        outputs="float[K,6] y",
        weights="float[1,6] w",
    )
    assert count_multiplications(model, {"x": np.asarray([0, 1, 2, 0, 3], np.float32)}) == 3 * 6


def test_an_operator_that_is_not_counted() -> None:
    model = model_of(
        """y = Einsum <equation = "ij,jk->ik"> (x, w)""", inputs="float[2,3] x", outputs="float[2,4] y", weights="float[3,4] w"
    )
    assert count_multiplications(model, {"x": np.zeros((2, 3), np.float32)}) is None


def test_pruning_saves_multiplications_and_sharing_none() -> None:
    """Two FFNs of 4 x 8: 2 * 4 * 8 multiplications a token each."""
    feeds = {"x": np.zeros((2, 3, 4), np.float32)}
    dense = ffns("a", "b")
    # (The weights are constants that ORT would pack, and then leave out of its profile.)
    assert count_multiplications(dense, feeds) == 6 * 2 * (2 * 4 * 8)
    pruned = case_of(dense, {"a.ffn": {"hidden": keep("0-2")}})
    assert count_multiplications(compile_model(dense, pruned.plan, None, cost=COST).model, feeds) == 6 * 2 * 4 * (8 + 3)
    shared = case_of(dense, {"b.ffn": {"hidden": share("a.ffn", "0-3")}})
    assert count_multiplications(compile_model(dense, shared.plan, None, cost=COST).model, feeds) == 6 * 2 * (2 * 4 * 8)
