"""The verifier: valid models pass, and each way to break one is named."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from inarch.compiler.verifier import signature, verify_model
from inarch.structure.errors import PassError

from tests.zoo import FORMS, build

TEXT = """
<ir_version: 9, opset_import: ["" : 17]>
g (float[2,8] x, bool c) => (float[2,6] y)
<float[8,4] W = {ONES_32}, int64[2] s = {2,4}, float[4] b = {1,2,3,4}, float[6,4] V = {ONES_24}, float[6] d = {1,2,3,4,5,6}>
{
    h = MatMul(x, W)
    r = Reshape(h, s)
    a = Add(r, b)
    t = If(c) <then_branch = p () => (float[2,4] u) {k = Relu(a)
      u = Neg(k)}, else_branch = q () => (float[2,4] v) {v = Relu(h)}>
    y = Gemm <transB = 1> (t, V, d)
}
"""


def model() -> ir.Model:
    text = TEXT.replace("ONES_32", "1" + ",1" * 31).replace("ONES_24", "1" + ",1" * 23)
    made = ir.from_onnx_text(text)
    for node in made.graph:
        node.name = node.op_type
        if node.op_type != "Gemm":
            node.outputs[0].shape = ir.Shape([2, 4])
    return made


def node(made: ir.Model, name: str) -> ir.Node:
    return made.graph.node(name)


def branch(made: ir.Model) -> ir.Graph:
    return node(made, "If").attributes["then_branch"].as_graph()


@pytest.mark.parametrize("form", sorted(FORMS))
def test_every_form_of_the_zoo_is_valid(form: str) -> None:
    made = build(form).model
    verify_model(made, expect=signature(made))


def test_the_base_of_the_cases_below_is_valid() -> None:
    verify_model(model(), expect=signature(model()))


def rename(made: ir.Model) -> None:
    node(made, "Add").outputs[0].name = "h"


def shadow(made: ir.Model) -> None:
    """Inside the branch, ``a`` would now mean the branch's own value."""
    branch(made)[0].outputs[0].name = "a"
    branch(made).insert_after(branch(made)[0], ir.node("Relu", [node(made, "Add").outputs[0]], name="captured"))


def disorder(made: ir.Model) -> None:
    made.graph.insert_before(node(made, "MatMul"), moved := node(made, "Add"))
    assert moved.graph is made.graph


def dangle(made: ir.Model) -> None:
    node(made, "Add").replace_input_with(0, ir.Value(name="ghost"))


def use_later(made: ir.Model) -> None:
    branch(made)[0].replace_input_with(0, made.graph.outputs[0])


def outside_user(made: ir.Model) -> None:
    ir.node("Relu", [node(made, "MatMul").outputs[0]], name="lost")


def leave(made: ir.Model) -> None:
    made.graph.remove(node(made, "Add"))


def no_data(made: ir.Model) -> None:
    made.graph.initializers["W"].const_value = None


def other_shape(made: ir.Model) -> None:
    made.graph.initializers["W"].const_value = ir.tensor(np.zeros((8, 3), np.float32), name="W")


def other_type(made: ir.Model) -> None:
    made.graph.initializers["W"].const_value = ir.tensor(np.zeros((8, 4), np.float16), name="W")


def other_domain(made: ir.Model) -> None:
    node(made, "Add").domain = "com.example"


def no_outputs(made: ir.Model) -> None:
    made.graph.outputs.clear()


def orphan_output(made: ir.Model) -> None:
    made.graph.outputs.append(ir.Value(name="nothing"))


def set_weight(made: ir.Model, name: str, shape: tuple[int, ...]) -> None:
    weight = made.graph.initializers[name]
    weight.const_value = ir.tensor(np.ones(shape, np.float32), name=name)
    weight.shape = ir.Shape(shape)


def matmul(made: ir.Model) -> None:
    set_weight(made, "W", (7, 4))


def gemm(made: ir.Model) -> None:
    set_weight(made, "V", (6, 5))


def bias(made: ir.Model) -> None:
    set_weight(made, "b", (3,))


def gemm_bias(made: ir.Model) -> None:
    set_weight(made, "d", (5,))


def reshape(made: ir.Model) -> None:
    made.graph.initializers["s"].const_value = ir.tensor(np.array([2, 5], np.int64), name="s")


def reshape_rest(made: ir.Model) -> None:
    made.graph.initializers["s"].const_value = ir.tensor(np.array([-1, 3], np.int64), name="s")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (rename, ["Add", "'h'", "defined already"]),
        (shadow, ["captured", "'a'", "hidden"]),
        (disorder, ["Add", "nothing before it", "'r'"]),
        (dangle, ["Add", "'ghost'"]),
        (use_later, ["Relu", "'y'"]),
        (outside_user, ["'h'", "'lost'", "no graph"]),
        (leave, ["Relu", "'a'"]),
        (no_data, ["'W'", "no data"]),
        (other_shape, ["'W'", "[8,4]", "[8, 3]"]),
        (other_type, ["'W'", "FLOAT16"]),
        (other_domain, ["Add", "com.example", "not imported"]),
        (no_outputs, ["no outputs"]),
        (orphan_output, ["'nothing'"]),
        (matmul, ["MatMul", "8 is not 7"]),
        (gemm, ["Gemm", "4 is not 5"]),
        (bias, ["Add", "do not broadcast"]),
        (gemm_bias, ["Gemm", "do not broadcast"]),
        (reshape, ["Reshape", "[2, 5]"]),
        (reshape_rest, ["Reshape", "[-1, 3]"]),
    ],
)
def test_each_breach_is_named(spoil: Callable[[ir.Model], None], words: list[str]) -> None:
    made = model()
    spoil(made)
    with pytest.raises(PassError) as caught:
        verify_model(made, "some-pass")
    assert str(caught.value).startswith("after some-pass: ")
    for word in words:
        assert word in str(caught.value)


def test_shapes_can_be_left_out_until_they_are_refreshed() -> None:
    made = model()
    matmul(made)
    verify_model(made, shapes=False)


def test_a_lost_or_changed_boundary_is_named() -> None:
    expect = signature(model())
    made = model()
    made.graph.inputs.pop()
    made.graph.inputs.append(ir.Value(name="c", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([])))
    with pytest.raises(PassError, match="input 'c' is gone or changed"):
        verify_model(made, expect=expect)
    made = model()
    made.graph.outputs.append(node(made, "Add").outputs[0])
    with pytest.raises(PassError, match="outputs that it did not have"):
        verify_model(made, expect=expect)


def test_functions_are_verified_too() -> None:
    made = ir.from_onnx_text("""
<ir_version: 9, opset_import: ["" : 17, "mine" : 1]>
g (float[2,8] x) => (float[2,8] y)
{
    y = mine.twice(x)
}
<domain: "mine", opset_import: ["" : 17]>
twice (p) => (q)
{
    q = Add(p, p)
}
""")
    verify_model(made)
    function = made.functions["mine", "twice", ""]
    function[0].domain = "com.example"
    with pytest.raises(PassError, match=r"com\.example"):
        verify_model(made)
