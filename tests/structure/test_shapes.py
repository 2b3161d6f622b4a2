"""Symbolic shapes: what exporters compute in the graph, and what ONNX Runtime really makes of it."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest

from inarch.structure.dims import Dim, dim
from inarch.structure.shapes import Shapes

from tests.onnx_text import model_of
from tests.zoo import build
from tests.zoo.check import inputs_of, ort

B, S = Dim(1, ("B",)), Dim(1, ("S",))


def shape_of(body: str, name: str = "y", weights: str = "", opset: int = 18) -> tuple[Dim, ...] | None:
    model = model_of(body, inputs="float[B,S,24] x", outputs="float[?] y", weights=weights, opset=opset)
    value = next(v for node in model.graph for v in node.outputs if v.name == name)
    value.shape = None
    return Shapes(model.graph).shape(value)


TARGETS = {
    "zero copies": ("y = Reshape (x, t)", "int64[4] t = {0, 0, 4, 6}", (B, S, dim(4), dim(6))),
    "one is inferred": ("y = Reshape (x, t)", "int64[4] t = {0, -1, 4, 6}", (B, S, dim(4), dim(6))),
    "heads are inferred": ("y = Reshape (x, t)", "int64[4] t = {0, 0, -1, 6}", (B, S, dim(4), dim(6))),
    "flattened": ("y = Reshape (x, t)", "int64[2] t = {-1, 24}", (B * S, dim(24))),
    "flattened whole": ("y = Flatten <axis = 2> (x)", "", (B * S, dim(24))),
    "computed": (
        """n = Shape (x)
        b = Gather (n, zero)
        s = Gather (n, one)
        b1 = Unsqueeze (b, axes)
        s1 = Unsqueeze (s, axes)
        t = Concat <axis = 0> (b1, s1, heads, six)
        y = Reshape (x, t)""",
        "int64 zero = {0}, int64 one = {1}, int64[1] axes = {0}, int64[1] heads = {4}, int64[1] six = {6}",
        (B, S, dim(4), dim(6)),
    ),
    "multiplied": (
        """n = Shape (x)
        lead = Slice (n, start, end)
        last = Mul (heads, six)
        t = Concat <axis = 0> (lead, last)
        y = Reshape (x, t)""",
        "int64[1] start = {0}, int64[1] end = {2}, int64[1] heads = {4}, int64[1] six = {6}",
        (B, S, dim(24)),
    ),
    "divided": (
        """n = Shape <start = 2> (x)
        d = Div (n, heads)
        zeros = Identity (zz)
        t = Concat <axis = 0> (zeros, heads, d)
        y = Reshape (x, t)""",
        "int64[1] heads = {4}, int64[2] zz = {0, 0}",
        (B, S, dim(4), dim(6)),
    ),
    "torch's expand": (
        """n = Shape (x)
        minus = ConstantOfShape <value = int64[1] {-1}> (three)
        same = Equal (t, minus)
        ones = ConstantOfShape <value = int64[1] {1}> (three)
        full = Where (same, ones, t)
        y = Expand (x, full)""",
        "int64[3] t = {-1, -1, 24}, int64[1] three = {3}",
        (B, S, dim(24)),
    ),
    "transposed": ("y = Transpose <perm = [2, 0, 1]> (x)", "", (dim(24), B, S)),
    "a product": ("y = MatMul (x, w)", "float[24,7] w", (B, S, dim(7))),
    "half a slice": ("y = Slice (x, a, b, c)", "int64[1] a = {0}, int64[1] b = {12}, int64[1] c = {-1}", (B, S, dim(12))),
    "a slice to the end": ("y = Slice (x, a, b, c)", "int64[1] a = {5}, int64[1] b = {9999}, int64[1] c = {2}", (B, S, dim(19))),
    "the last beside all": (
        """last = Slice (x, minus, end, one)
        part = Div (x, last)
        n = Shape (x)
        lead = Slice (n, zero, two)
        t = Concat <axis = 0> (lead, minus, six)
        y = Reshape (part, t)""",
        """int64[1] minus = {-1}, int64[1] end = {9223372036854775807}, int64[1] one = {1}, int64[1] zero = {0},
        int64[1] two = {2}, int64[1] six = {6}""",
        (B, S, dim(4), dim(6)),
    ),
    "every other": (
        "y = Slice (x, a, b, c, d)",
        "int64[1] a = {1}, int64[1] b = {9999}, int64[1] c = {2}, int64[1] d = {2}",
        (B, S, dim(12)),
    ),
}


@pytest.mark.parametrize("name", TARGETS)
def test_targets(name: str) -> None:
    body, weights, wanted = TARGETS[name]
    assert shape_of(body, weights=weights) == wanted


PADS = ("[0, 0]", "[0, 1]", "[1, 1]", "[2, 2]")
CONVOLUTIONS = [
    *(f"strides = [{s}], dilations = [{d}], pads = {pads}" for s in (1, 2) for d in (1, 2) for pads in PADS),
    *(f'strides = [{s}], dilations = [{d}], auto_pad = "VALID"' for s in (1, 2) for d in (1, 2)),
    *(f'strides = [{s}], auto_pad = "SAME_UPPER"' for s in (1, 2, 3)),
]


def convolution(attributes: str, kernel: int, size: int | str) -> ir.Model:
    inputs, weights = f"float[1,2,{size}] x", f"float[3,2,{kernel}] w"
    return model_of(f"y = Conv <{attributes}> (x, w)", inputs=inputs, outputs="float[1,3,M] y", weights=weights)


def length_of(model: ir.Model) -> Dim:
    (value,) = model.graph.outputs
    value.shape = None
    shape = Shapes(model.graph).shape(value)
    assert shape is not None
    return shape[2]


@pytest.mark.parametrize("kernel", [1, 2, 3])
def test_convolutions(kernel: int) -> None:
    """Their sizes are ONNX Runtime's, and equal symbols are equal sizes, whatever the input's size."""
    sizes: dict[Dim, set[tuple[int, ...]]] = {}
    for attributes in CONVOLUTIONS:
        found = []
        for size in (7, 8, 13):
            model = convolution(attributes, kernel, size)
            session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
            (result,) = session.run(None, {"x": np.zeros((1, 2, size), np.float32)})
            found.append(result.shape[2])
            assert length_of(model) == dim(found[-1]), attributes
        sizes.setdefault(length_of(convolution(attributes, kernel, "L")), set()).add(tuple(found))
    assert all(len(each) == 1 for each in sizes.values()), sizes
    assert sizes[Dim(1, ("L",))] == {(7, 8, 13)}
    assert len(sizes) > 3


QUOTIENT = "a = Cast <to = 1> (five) b = Cast <to = 1> (two) q = Div (a, b)"
AND_BACK = "p = Mul (q, b) n = Cast <to = 7> (p) y = ConstantOfShape (n)"
SIZES = """int64[1] five = {5}, int64[1] two = {2}, int64[1] none = {0}, int64[1] less = {-7}, int64 many = {4},
    float half = {0.5}, float step = {1}"""

COMPUTED = {
    "a quotient that is whole": (f"{QUOTIENT.replace('five', 'two')} {AND_BACK}", (dim(2),)),
    "a quotient that is not": (f"{QUOTIENT} {AND_BACK}", None),
    "a quotient that is cut": (f"{QUOTIENT} n = Cast <to = 7> (q) y = ConstantOfShape (n)", (dim(2),)),
    "a quotient that is rounded down": (f"{QUOTIENT} f = Floor (q) n = Cast <to = 7> (f) y = ConstantOfShape (n)", (dim(2),)),
    "a quotient that is rounded up": (f"{QUOTIENT} f = Ceil (q) n = Cast <to = 7> (f) y = ConstantOfShape (n)", None),
    "a quotient of integers": ("n = Div (five, two) y = ConstantOfShape (n)", (dim(2),)),
    "a magnitude": ("n = Abs (less) y = ConstantOfShape (n)", (dim(7),)),
    "a truth": ("t = Cast <to = 9> (five) n = Cast <to = 7> (t) y = ConstantOfShape (n)", (dim(1),)),
    "greater": ("t = Greater (five, two) n = Where (t, five, two) y = ConstantOfShape (n)", (dim(5),)),
    "at most": ("t = LessOrEqual (five, two) n = Where (t, five, two) y = ConstantOfShape (n)", (dim(2),)),
    "repeated": ("n = Expand (five, two) y = ConstantOfShape (n)", (dim(5), dim(5))),
    "a range in floating point": ("limit = Cast <to = 1> (many) y = Range (half, limit, step)", (dim(4),)),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_computed(name: str) -> None:
    body, wanted = COMPUTED[name]
    assert shape_of(body, weights=SIZES) == wanted


@pytest.mark.parametrize(("first", "size"), [("five", 5), ("less", 2)])
def test_the_content_of_a_branch_that_is_known_to_be_taken(first: str, size: int) -> None:
    branches = "then_branch = g () => (int64[1] m) {m = Identity (five)}, else_branch = h () => (int64[1] m) {m = Identity (two)}"
    assert shape_of(f"t = Greater ({first}, none) n = If <{branches}> (t) y = ConstantOfShape (n)", weights=SIZES) == (dim(size),)


def test_branches_in_floating_point_are_divided_as_such() -> None:
    then = "then_branch = g{0} () => (float[1] m{0}) {{m{0} = Identity (a)}}"
    branches = f"{then}, else_branch = h{{0}} () => (float[1] e{{0}}) {{{{e{{0}} = Identity (b)}}}}"
    body = f"""
        a = Cast <to = 1> (five)
        b = Cast <to = 1> (two)
        yes = Greater (five, none)
        no = Greater (less, none)
        f = If <{branches.format(1)}> (yes)
        g = If <{branches.format(2)}> (no)
        q = Div (f, g)
        {AND_BACK}"""
    assert shape_of(body, weights=SIZES) is None


def test_split_equal_and_by_sizes() -> None:
    assert shape_of("y, z = Split <axis = 2, num_outputs = 2> (x)", "z") == (B, S, dim(12))
    assert shape_of("y, z = Split <axis = 2> (x, n)", "z", "int64[2] n = {4, 20}") == (B, S, dim(20))
    assert shape_of("y, z = Split <axis = 2, split = [4, 20]> (x)", "z", opset=11) == (B, S, dim(20))


def test_an_unknown_operator_has_the_recorded_shape_or_none() -> None:
    model = model_of("y = Celu (x)", inputs="float[B,4] x", outputs="float[B,4] y")
    node = next(iter(model.graph))
    node.op_type, node.domain = "Mystery", "own"
    assert Shapes(model.graph).shape(node.outputs[0]) == (B, dim(4))
    node.outputs[0].shape = None
    assert Shapes(model.graph).shape(node.outputs[0]) is None


def test_what_breaks_an_operators_rules_has_no_shape() -> None:
    model = model_of("y = Transpose <perm = [0, 1, 2]> (x)", inputs="float[B,4,2] x", outputs="float[?] y")
    node = next(iter(model.graph))
    node.outputs[0].shape = None
    node.attributes["perm"] = ir.AttrInt64s("perm", [0, 7, 1])
    assert Shapes(model.graph).shape(node.outputs[0]) is None


def test_a_graph_input_with_a_default_is_no_constant() -> None:
    model = model_of("y = Reshape (x, t)", inputs="float[B,S,24] x, int64[4] t", outputs="float[?] y")
    model.graph.register_initializer(model.graph.inputs[1]) if model.graph.inputs[1].const_value is not None else None
    node = next(iter(model.graph))
    node.outputs[0].shape = None
    shape = Shapes(model.graph).shape(node.outputs[0])
    assert shape is None or all(size.value is None for size in shape)


@pytest.mark.parametrize(
    "form",
    ["encoder_torchscript", "scale_from_shape", "packed_timm", "rotary_interleaved", "gqa", "swin", "decoder_in_proj", "alibi"],
)
def test_shapes_are_those_of_onnx_runtime(form: str) -> None:
    """Every value whose symbols are the inputs' has, in two runs of other sizes, the size that the symbols say."""
    zoo = build(form, 1)
    model = zoo.model.clone()
    shapes = Shapes(model.graph)
    known = {v: s for node in model.graph for v in node.outputs if (s := shapes.shape(v)) is not None and v.name}
    cases = inputs_of(zoo, 0)[:2]
    present = {v.name for v in model.graph.outputs}
    model.graph.outputs.extend(v for v in known if v.name not in present and v.dtype is not None)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    symbols = {size.syms[0] for v in model.graph.inputs for size in shapes.need(v) if size.syms}
    compared = 0
    for case in cases:
        worth = {}
        for value in model.graph.inputs:
            for size, number in zip(shapes.need(value), np.shape(case[str(value.name)]), strict=True):
                worth.update(dict.fromkeys(size.syms, number))
        for name, array in zip(names, session.run(None, case), strict=True):
            wanted = next((s for v, s in known.items() if v.name == name), None)
            if wanted is None:
                continue
            assert len(wanted) == array.ndim, name
            for size, number in zip(wanted, array.shape, strict=True):
                if set(size.syms) <= symbols:
                    assert size.coef * math.prod(worth[s] for s in size.syms) == number, f"{name}: {size}"
                    compared += 1
    assert compared > 100
