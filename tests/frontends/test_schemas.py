"""Nodes that ONNX forbids are refused where they are read, in the graph, its branches and its functions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from inarch.frontends.onnx_file import read_proto
from inarch.structure.errors import ModelError


def proto(nodes: Sequence[onnx.NodeProto], functions: Sequence[onnx.FunctionProto] = ()) -> onnx.ModelProto:
    """A model of x, ``W`` and y; ``yes`` is true."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4]) for name in "xy")
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "W")
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_model(helper.make_graph(nodes, "g", [x], [y], [weight, yes]), opset_imports=opsets, functions=functions)


def function(inputs: Sequence[str], node: onnx.NodeProto, attributes: Sequence[str] = ()) -> onnx.FunctionProto:
    """``own.F``, which gives y."""
    return helper.make_function("own", "F", inputs, ["y"], [node], [helper.make_opsetid("", 17)], attributes)


FORBIDDEN = {
    "too few inputs": (helper.make_node("MatMul", ["x"], ["y"], name="n"), "has 1 inputs; MatMul has at least 2"),
    "too many inputs": (helper.make_node("Relu", ["x", "W"], ["y"], name="n"), "has 2 inputs; Relu has at most 1"),
    "too many outputs": (helper.make_node("Relu", ["x"], ["y", "z"], name="n"), "has 2 outputs; Relu has at most 1"),
    "an attribute that is missing": (helper.make_node("Cast", ["x"], ["y"], name="n"), "has no attribute 'to'"),
    "another type": (helper.make_node("Flatten", ["x"], ["y"], name="n", axis=1.0), "has 'axis' as FLOAT; Flatten takes INT"),
    "an operator of a later opset": (helper.make_node("Gelu", [], ["y"], name="n"), "has 0 inputs; Gelu has at least 1"),
    "no tensor": (helper.make_node("Constant", [], ["y"], name="n", value=3), "has 'value' as INT; Constant takes TENSOR"),
}


@pytest.mark.parametrize("place", ["graph", "branch", "function"])
@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_node_that_its_operator_forbids(name: str, place: str) -> None:
    node, words = FORBIDDEN[name]
    if place == "graph":
        model = proto([node])
    elif place == "branch":
        body = helper.make_graph([node], "b", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 4])])
        choice = helper.make_node("If", ["yes"], ["z"], then_branch=body, else_branch=body)
        model = proto([choice, helper.make_node("Abs", ["z"], ["y"])])
    else:
        model = proto([helper.make_node("F", ["x", "W"], ["y"], domain="own")], [function(["x", "W"], node)])
    with pytest.raises(ModelError) as caught:
        read_proto(model)
    assert f"{node.op_type} node 'n' {words}" in str(caught.value)


def test_what_no_definition_forbids_is_read() -> None:
    """An operator that only ONNX Runtime has, an attribute that ONNX has not, and one that a function's caller gives."""
    passed = helper.make_node("Flatten", ["x"], ["y"])
    passed.attribute.add(name="axis", ref_attr_name="at")  # without a type
    nodes = [
        helper.make_node("F", ["x"], ["f"], domain="own", at=1),
        helper.make_node("SimplifiedLayerNormalization", ["f", "W"], ["s"]),
        helper.make_node("Relu", ["s"], ["y"], note="mine"),
    ]
    model = read_proto(proto(nodes, [function(["x"], passed, ["at"])]))
    assert [node.op_type for node in model.graph] == ["F", "SimplifiedLayerNormalization", "Relu"]
