"""The passes that clean up: remove-dead, refresh-shapes, strip-traces."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest

from inarch.compiler.verifier import verify_model
from inarch.passes.refresh_shapes import RefreshShapes
from inarch.passes.remove_dead import RemoveDead
from inarch.passes.strip_traces import StripTraces


def parse(text: str) -> ir.Model:
    """A model from ONNX text, in which ``ZEROS(n)`` stands for n zeros."""
    return ir.from_onnx_text(re.sub(r"ZEROS\((\d+)\)", lambda match: "0" + ",0" * (int(match[1]) - 1), text))


def value(model: ir.Model, name: str) -> ir.Value:
    return ir.convenience.create_value_mapping(model.graph)[name]


DEAD = """
<ir_version: 9, opset_import: ["" : 17]>
g (float[N,4] x, float[N,4] unused, bool c) => (float[N,4] y)
<float[4] W = {1,2,3,4}, float[4] V = {1,2,3,4}, float[4] U = {1,2,3,4}>
{
    y = Mul(x, W)
    t = Relu(x)
    u = Add(t, V)
    z = If(c) <then_branch = a () => (float[N,4] p) {p = Add(u, U)}, else_branch = b () => (float[N,4] q) {q = Relu(t)}>
    w = Neg(z)
}
"""


def test_dead_nodes_go_with_what_their_subgraphs_take_from_outside() -> None:
    model = parse(DEAD)
    assert RemoveDead()(model).modified
    assert [node.op_type for node in model.graph] == ["Mul"]
    assert list(model.graph.initializers) == ["W"]
    assert [v.name for v in model.graph.inputs] == ["x", "unused", "c"]
    verify_model(model)
    assert not RemoveDead()(model).modified


def test_dead_nodes_inside_living_subgraphs_and_functions_go() -> None:
    model = parse("""
<ir_version: 9, opset_import: ["" : 17, "mine" : 1]>
g (float[N,4] x, bool c) => (float[N,4] y)
<float[4] W = {1,2,3,4}>
{
    h = Relu(x)
    t = If(c) <then_branch = a () => (float[N,4] p) {e = Add(h, W)
      p = Neg(x)}, else_branch = b () => (float[N,4] q) {q = Relu(x)}>
    y = mine.twice(t)
}
<domain: "mine", opset_import: ["" : 17]>
twice (p) => (q)
{
    dead = Neg(p)
    q = Add(p, p)
}
""")
    assert RemoveDead()(model).modified
    assert [node.op_type for node in model.graph.all_nodes()] == ["If", "Neg", "Relu", "twice"]
    assert not model.graph.initializers
    assert [node.op_type for node in model.functions["mine", "twice", ""]] == ["Add"]
    verify_model(model)


def test_outputs_unused_outputs_and_needed_constants_stay() -> None:
    model = parse("""
<ir_version: 9, opset_import: ["" : 17]>
g (float[N,4] x) => (float[N,4] y, float[4] W)
<float[4] W = {1,2,3,4}, int64[2] S = {2,2}>
{
    y, rest = Split <axis = 1> (x, S)
}
""")
    assert not RemoveDead()(model).modified
    assert list(model.graph.initializers) == ["W", "S"]


@pytest.mark.parametrize(("version", "inputs"), [(3, ["x", "W"]), (9, ["x", "W", "V"])])
def test_an_initializer_that_is_an_input_goes_only_where_it_was_never_one(version: int, inputs: list[str]) -> None:
    model = parse(f"""
<ir_version: {version}, opset_import: ["" : 11]>
g (float[N,4] x, float[4] W, float[4] V) => (float[N,4] y)
<float[4] W = {{1,2,3,4}}, float[4] V = {{1,2,3,4}}>
{{
    y = Mul(x, W)
}}
""")
    assert RemoveDead()(model).modified == (version == 3)
    assert [v.name for v in model.graph.inputs] == inputs
    assert set(model.graph.initializers) == set(inputs) - {"x"}


def test_what_a_quantisation_annotation_names_stays() -> None:
    model = parse("""
<ir_version: 9, opset_import: ["" : 17]>
g (float[N,4] x) => (float[N,4] y)
<float[4] scale = {1,2,3,4}, float[4] other = {1,2,3,4}>
{
    y = Relu(x)
}
""")
    model.graph.inputs[0].meta["quant_parameter_tensor_names"] = {"SCALE_TENSOR": "scale"}
    assert RemoveDead()(model).modified
    assert list(model.graph.initializers) == ["scale"]


FFN = """
<ir_version: 9, opset_import: ["" : 17]>
g (float[N,8] x) => (float[N,8] y)
<float[8,32] W = {ZEROS(256)}, float[32] b = {ZEROS(32)}, float[32,8] V = {ZEROS(256)}, int64[3] shape = {-1,2,16}>
{
    h = MatMul(x, W)
    a = Add(h, b)
    r = Reshape(a, shape)
    f = Flatten <axis = 1> (r)
    y = MatMul(f, V)
}
"""


def sliced(width: int) -> ir.Model:
    """An FFN of 32 units whose weights are for ``width``, while every inner shape says 32."""
    model = parse(FFN)
    RefreshShapes()(model)
    assert value(model, "a").shape == ir.Shape(["N", 32])
    new = {"W": (8, width), "b": (width,), "V": (width, 8)}
    for name, shape in new.items():
        weight = model.graph.initializers[name]
        weight.const_value = ir.tensor(np.ones(shape, np.float32), name=name)
        weight.shape = ir.Shape(shape)
    target = model.graph.initializers["shape"]
    target.const_value = ir.tensor(np.array([-1, 2, width // 2], np.int64), name="shape")
    return model


def test_stale_shapes_are_inferred_anew() -> None:
    model = sliced(20)
    tensors = {name: v.const_value for name, v in model.graph.initializers.items()}
    assert RefreshShapes()(model).modified
    shapes = {name: value(model, name).shape for name in "harf"}
    assert shapes["h"] == shapes["a"] == ir.Shape(["N", 20])
    assert shapes["r"] is not None
    assert shapes["r"][1:] == (2, 10)
    assert shapes["f"] is not None
    assert shapes["f"][1] == 20
    assert {name: v.const_value for name, v in model.graph.initializers.items()} == tensors
    verify_model(model)
    assert not RefreshShapes()(model).modified


def test_weights_are_not_read() -> None:
    model = sliced(64)

    def explode() -> ir.TensorProtocol:
        raise AssertionError("a weight was read")

    weight = model.graph.initializers["V"]
    weight.const_value = ir.LazyTensor(explode, ir.DataType.FLOAT, ir.Shape([64, 8]), name="V")
    RefreshShapes()(model)
    assert value(model, "h").shape == ir.Shape(["N", 64])
    assert isinstance(weight.const_value, ir.LazyTensor)


def test_what_cannot_be_inferred_stays_as_far_as_it_is_a_number() -> None:
    model = parse("""
<ir_version: 9, opset_import: ["" : 17, "com.example" : 1]>
g (float[N,8] x) => (float[N,8] y)
{
    h = com.example.Odd(x)
    s = SplitToSequence <axis = 1, keepdims = 0> (x)
    i = Constant <value_int = 0> ()
    e = SequenceAt(s, i)
    t = Neg(h)
    y = Add(t, x)
}
""")
    value(model, "h").shape = ir.Shape(["N", "M", 8])
    value(model, "h").type = ir.TensorType(ir.DataType.FLOAT)
    value(model, "s").type = ir.SequenceType(ir.TensorType(ir.DataType.FLOAT))
    assert RefreshShapes()(model).modified
    # M may be a name that an exporter made up for sizes that differ; N is declared.
    assert value(model, "h").shape == ir.Shape(["N", None, 8])
    assert value(model, "t").shape is None
    assert value(model, "h").dtype == ir.DataType.FLOAT
    assert isinstance(value(model, "s").type, ir.SequenceType)
    assert value(model, "y").shape == ir.Shape(["N", 8])
    assert not RefreshShapes()(model).modified


def test_shapes_inside_subgraphs_are_refreshed_and_large_constants_kept() -> None:
    model = parse("""
<ir_version: 9, opset_import: ["" : 17]>
g (float[N,8] x, bool c) => (float[N,8] y)
{
    y = If(c) <then_branch = a () => (float[N,8] p) {h = Neg(x)
      p = Relu(h)}, else_branch = b () => (float[N,8] q) {q = Relu(x)}>
}
""")
    big = ir.tensor(np.zeros((8, 600), np.float32), name="big")
    constant = ir.node("Constant", [], attributes={"value": big})
    constant.outputs[0].name = "K"
    model.graph.insert_before(model.graph[0], constant)
    branch = model.graph.node(1).attributes["then_branch"].as_graph()
    branch[0].outputs[0].shape = ir.Shape([3])
    RefreshShapes()(model)
    assert branch[0].outputs[0].shape == ir.Shape(["N", 8])
    assert constant.outputs[0].shape == ir.Shape([8, 600])
    assert constant.attributes["value"].as_tensor() is big


TRACE = 'File "/home/someone/secret/model.py", line 7, in forward\n    x = self.fc(x)'


def test_traces_go_and_everything_else_stays() -> None:
    model = parse(DEAD)
    node = model.graph[0]
    kept = {"pkg.torch.onnx.name_scopes": "['', 'fc']", "namespace": ": model.Net/fc: torch.nn.Linear"}
    node.metadata_props.update(kept)
    node.metadata_props["pkg.torch.onnx.stack_trace"] = TRACE
    node.metadata_props["custom"] = TRACE
    node.doc_string = "/home/someone/model.py(12): forward\n/usr/lib/module.py(99): _call_impl\n"
    inner = model.graph.node(3).attributes["then_branch"].as_graph()[0]
    inner.metadata_props["pkg.torch.onnx.stack_trace"] = "anything"
    node.outputs[0].metadata_props["pkg.torch.onnx.stack_trace"] = TRACE
    model.graph.initializers["W"].doc_string = TRACE
    model.graph.metadata_props["trace"] = TRACE
    model.graph.doc_string = "Exported from model.py on a Monday."
    model.metadata_props["author"] = "someone"
    assert StripTraces()(model).modified
    assert node.metadata_props == kept
    assert model.metadata_props == {"author": "someone"}
    assert model.graph.doc_string == "Exported from model.py on a Monday."
    content = ir.serde.serialize_model(model).SerializeToString()
    assert b"/home/someone" not in content
    assert b"anything" not in content
    assert not StripTraces()(model).modified


def test_what_has_no_type_keeps_no_shape() -> None:
    model = parse("""
<ir_version: 9, opset_import: ["" : 17, "com.example" : 1]>
g (float[N,8] x) => (float[N,8] y)
{
    h = com.example.Odd(x)
    y = com.example.Even(h)
}
""")
    value(model, "h").shape = ir.Shape([None, 8])
    assert RefreshShapes()(model).modified
    assert value(model, "h").shape is None
    assert not RefreshShapes()(model).modified
