"""Views: the positions that are found are the numbers that the graph computes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from inarch.structure.shapes import Shapes
from inarch.structure.views import View, view_of

from tests.onnx_text import model_of

VIEWS = {
    "itself": ("", "w"),
    "transposed": ("y = Transpose <perm = [1, 0]> (w)", "y"),
    "a slice": ("y = Slice (w, i4, i8, i0)", "y"),
    "a slice backwards named": ("y = Slice (w, m4, i99, m2)", "y"),
    "strided": ("y = Slice (w, i1, i99, i0, i3)", "y"),
    "split": ("a, y, c = Split <axis = 0, num_outputs = 3> (w)", "y"),
    "split by sizes": ("a, y = Split <axis = 0> (w, sizes)", "y"),
    "split, transposed": ("a, b, c = Split <axis = 0, num_outputs = 3> (w)  y = Transpose <perm = [1, 0]> (c)", "y"),
    "sequence": ("s = SplitToSequence <axis = 0> (w, four)  y = SequenceAt (s, two)", "y"),
    "sequence by sizes": ("s = SplitToSequence <axis = 0> (w, sizes)  y = SequenceAt (s, one)", "y"),
    "interleaved heads": ("a = Reshape (w, wide)  b = Gather <axis = 1> (a, one)  y = Reshape (b, flat)", "y"),
    "unpacked": ("a = Reshape (w, three)  b = Gather <axis = 0> (a, two)  y = Transpose <perm = [1, 0]> (b)", "y"),
    "picked": ("y = Gather <axis = 0> (w, picks)", "y"),
    "there and back": ("a = Unsqueeze (w, i0)  b = Squeeze (a, i0)  y = Identity (b)", "y"),
    "cast": ("y = Cast <to = 10> (w)", "y"),
}

CONSTANTS = """float[12,5] w, int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] i3 = {3}, int64[1] i4 = {4}, int64[1] i8 = {8},
    int64[1] i99 = {99}, int64[1] m2 = {-2}, int64[1] m4 = {-4}, int64[2] sizes = {3, 9}, int64 four = {4}, int64 one = {1},
    int64 two = {2}, int64[4] wide = {2, 3, 2, 5}, int64[2] flat = {4, 5}, int64[3] three = {3, 4, 5},
    int64[3] picks = {7, 0, -1}, float factor = {2.0}, int64[2] other = {5, 12}, int64[2] merged = {60, 1}"""


def viewed(body: str, name: str) -> tuple[ir.Model, View | None]:
    model = model_of(f"{body}\n out = Identity (x)", inputs="float[N] x", outputs="float[N] out", weights=CONSTANTS)
    values = {v.name: v for node in model.graph for v in node.outputs} | dict(model.graph.initializers)
    return model, view_of(values[name], Shapes(model.graph))


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_the_part_that_the_graph_takes(name: str) -> None:
    body, output = VIEWS[name]
    model, view = viewed(body, output)
    assert view is not None
    assert view.param.name == "w"
    proto = ir.to_proto(model)
    tensor = model.graph.initializers["w"].const_value
    assert tensor is not None
    computed = tensor.numpy()
    if output != "w":
        del proto.graph.output[:]
        proto.graph.output.add().name = output
        results = ReferenceEvaluator(proto).run(None, {"x": np.zeros(1, np.float32)})
        assert isinstance(results, list)
        computed = np.asarray(results[0])
    order = [axis for axis, _ in view.axes]
    taken = tensor.numpy()
    for axis, positions in view.axes:
        taken = np.take(taken, positions, axis=axis)
    assert view.shape == computed.shape
    assert np.array_equal(taken.transpose(order).astype(computed.dtype), computed)
    assert (view.cast is not None) == (name == "cast")


@pytest.mark.parametrize(
    "body",
    [
        "y = Mul (w, factor)",
        "y = Reshape (w, other)",
        "y = Reshape (w, merged)",
        "y = Unsqueeze (w, i0)",
        "a = Cast <to = 7> (w)  y = Cast <to = 1> (a)",
        "a = Cast <to = 10> (w)  y = Cast <to = 1> (a)",
        "n = Shape (x)  y = Slice (w, i0, n, i0)",
        "y = Concat <axis = 0> (w, w)",
    ],
)
def test_what_is_no_plain_part_is_no_view(body: str) -> None:
    assert viewed(body, "y")[1] is None


def test_activations_and_integers_are_no_parameters() -> None:
    model, _ = viewed("", "w")
    shapes = Shapes(model.graph)
    assert view_of(model.graph.inputs[0], shapes) is None
    assert view_of(model.graph.initializers["picks"], shapes) is None
    assert view_of(None, shapes) is None
