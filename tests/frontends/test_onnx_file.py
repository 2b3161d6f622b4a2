"""Reading ONNX files: what is carried through, what stays in the file, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from inarch.frontends.mapped import SOURCES
from inarch.frontends.onnx_file import load_model
from inarch.frontends.wire import WireError, split
from inarch.structure.errors import ModelError

RNG = np.random.default_rng(0)
SMALL = RNG.normal(size=(4, 4)).astype(np.float32)
LARGE = RNG.normal(size=(4, 2048)).astype(np.float32)  # 32 KB: stays in the file


def info(name: str, shape: Sequence[int | str] | None = ("N", 4), dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def proto(
    nodes: Sequence[onnx.NodeProto] | None = None,
    initializers: Sequence[onnx.TensorProto] | None = None,
    inputs: Sequence[onnx.ValueInfoProto] | None = None,
    outputs: Sequence[onnx.ValueInfoProto] | None = None,
    opset: int = 17,
    **fields: Any,
) -> onnx.ModelProto:
    """A model; by default ``y = x W``."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "W"], ["y"], name="product")] if nodes is None else nodes,
        "g",
        [info("x")] if inputs is None else inputs,
        [info("y", None)] if outputs is None else outputs,
        [numpy_helper.from_array(SMALL, "W")] if initializers is None else initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9, **fields)


def external(name: str, array: np.ndarray[Any, Any], **entries: str) -> onnx.TensorProto:
    """A float tensor that refers to a data file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=array.shape, data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def constant(model: ir.Model, name: str) -> np.ndarray[Any, Any]:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


# What is read


@pytest.mark.parametrize("opset", [11, 13, 17, 21, 23])
def test_every_opset_is_read_and_nothing_is_lost(tmp_path: Path, opset: int) -> None:
    model = proto(opset=opset, producer_name="me", doc_string="what it is")
    model.metadata_props.add(key="author", value="someone")
    model.graph.node[0].metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'fc']")
    model.graph.node[0].doc_string = "a product"
    read = load_model(saved(model, tmp_path))
    written = ir.serde.serialize_model(read)
    del written.graph.value_info[:]  # onnx_ir states the initializers' shapes
    assert written == model


def test_large_tensors_stay_in_the_file_and_small_ones_are_parsed(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["C"], value=numpy_helper.from_array(LARGE.T.copy())),
        helper.make_node("MatMul", ["x", "W"], ["h"]),
        helper.make_node("MatMul", ["h", "C"], ["t"]),
        helper.make_node("Add", ["t", "b"], ["y"]),
    ]
    initializers = [numpy_helper.from_array(LARGE, "W"), numpy_helper.from_array(SMALL[0], "b")]
    path = saved(proto(nodes, initializers), tmp_path)
    model = load_model(path)
    assert np.array_equal(constant(model, "W"), LARGE)
    assert np.array_equal(constant(model, "b"), SMALL[0])
    attribute = model.graph[0].attributes["value"].as_tensor()
    assert np.array_equal(attribute.numpy(), LARGE.T)
    for array in (constant(model, "W"), attribute.numpy()):
        assert not array.flags.owndata
        assert not array.flags.writeable
    x = RNG.normal(size=(2, 4)).astype(np.float32)
    expected = ort.InferenceSession(path).run(None, {"x": x})[0]
    content = ir.serde.serialize_model(model).SerializeToString()  # a mapped tensor writes itself as its bytes
    assert np.array_equal(ort.InferenceSession(content).run(None, {"x": x})[0], expected)


def test_what_was_read_survives_the_file_being_replaced(tmp_path: Path) -> None:
    path = saved(proto([helper.make_node("MatMul", ["x", "W"], ["y"])], [numpy_helper.from_array(LARGE, "W")]), tmp_path)
    model = load_model(path)
    (tmp_path / "other").write_bytes(b"x")
    os.replace(tmp_path / "other", path)
    assert np.array_equal(constant(model, "W"), LARGE)


def test_large_tensors_inside_subgraphs_and_functions_stay_in_the_file(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["x", "V"], ["a"])], "b", [], [info("a", None)], [numpy_helper.from_array(LARGE, "V")]
    )
    other = helper.make_graph([helper.make_node("MatMul", ["x", "V2"], ["c"])], "b2", [], [info("c", None)])
    other.initializer.append(numpy_helper.from_array(LARGE * 2, "V2"))
    body = [
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(LARGE.T.copy())),
        helper.make_node("MatMul", ["p", "k"], ["q"]),
    ]
    function = helper.make_function("mine", "Project", ["p"], ["q"], body, [helper.make_opsetid("", 17)])
    nodes = [
        helper.make_node("If", ["c0"], ["t"], then_branch=branch, else_branch=other),
        helper.make_node("Project", ["t"], ["y"], domain="mine"),
    ]
    model = proto(nodes, [], [info("x"), info("c0", [], TensorProto.BOOL)])
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("mine", 1))
    path = saved(model, tmp_path)
    assert len(split(memoryview(path.read_bytes()), 4096)) < 2000
    read = load_model(path)
    feeds = {"x": RNG.normal(size=(2, 4)).astype(np.float32), "c0": np.array(True)}
    expected = ort.InferenceSession(path).run(None, feeds)[0]
    again = ort.InferenceSession(ir.serde.serialize_model(read).SerializeToString())
    assert np.array_equal(again.run(None, feeds)[0], expected)
    (inner,) = [graph for graph in read.graph.subgraphs() if graph.name == "b2"]
    tensor = inner.initializers["V2"].const_value
    assert tensor is not None
    assert np.array_equal(tensor.numpy(), LARGE * 2)


@pytest.mark.parametrize(
    "dtype",
    [ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.INT8, ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.BOOL],
)
def test_mapped_tensors_of_every_width_read_as_onnx_reads_them(tmp_path: Path, dtype: ir.DataType) -> None:
    shape = (3, 16383)
    count = -(-3 * 16383 * dtype.bitwidth // 8)
    raw = RNG.integers(0, 2, count, np.uint8) if dtype == ir.DataType.BOOL else RNG.integers(0, 60, count, np.uint8)
    tensor = TensorProto(name="W", data_type=dtype.value, dims=shape, raw_data=raw.tobytes())
    nodes = [helper.make_node("Identity", ["W"], ["y"])]
    model = load_model(saved(proto(nodes, [tensor], [], [info("y", shape, dtype.value)], opset=23), tmp_path))
    read = model.graph.initializers["W"].const_value
    assert read is not None
    assert read.dtype == dtype
    assert read.tobytes() == raw.tobytes()
    assert np.array_equal(read.numpy(), ir.serde.TensorProtoTensor(tensor).numpy())


def test_external_data_is_mapped_with_one_handle_a_file(tmp_path: Path) -> None:
    count = 300
    (tmp_path / "weights.bin").write_bytes(b"".join((SMALL + i).tobytes() for i in range(count)))
    tensors = [external(f"W{i}", SMALL, location="weights.bin", offset=str(64 * i), length="64") for i in range(count)]
    names = ["x", *(f"h{i}" for i in range(count - 1)), "y"]
    nodes = [helper.make_node("MatMul", [names[i], f"W{i}"], [names[i + 1]]) for i in range(count)]
    before = len(os.listdir("/proc/self/fd"))
    model = load_model(saved(proto(nodes, tensors), tmp_path))
    arrays = [constant(model, f"W{i}") for i in range(count)]
    assert len(os.listdir("/proc/self/fd")) <= before + 4
    assert all(np.array_equal(array, SMALL + i) for i, array in enumerate(arrays))
    assert model.graph.meta[SOURCES] == [str(tmp_path / "model.onnx"), str(tmp_path / "weights.bin")]


def test_external_data_without_offset_and_length_is_read(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w").write_bytes(SMALL.tobytes())
    model = load_model(saved(proto(initializers=[external("W", SMALL, location="./sub/../sub/w")]), tmp_path))
    assert np.array_equal(constant(model, "W"), SMALL)


def test_a_model_in_a_download_cache_is_read_through_its_links(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    (blobs / "aa").write_bytes(proto(initializers=[external("W", SMALL, location="model.data")]).SerializeToString())
    (blobs / "bb").write_bytes(SMALL.tobytes())
    (snapshot / "model.onnx").symlink_to(blobs / "aa")
    (snapshot / "model.data").symlink_to(blobs / "bb")
    assert np.array_equal(constant(load_model(snapshot / "model.onnx"), "W"), SMALL)


@pytest.mark.parametrize("linear", [True, False])
def test_sparse_constants_become_dense(tmp_path: Path, linear: bool) -> None:
    dense = np.zeros((4, 4), np.float32)
    dense[0, 1], dense[3, 2] = 5, -7
    place = np.array([1, 14]) if linear else np.array([[0, 1], [3, 2]])
    values = numpy_helper.from_array(np.array([5, -7], np.float32), "W")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(place.astype(np.int64)), [4, 4])
    nodes = [
        helper.make_node("Constant", [], ["V"], sparse_value=sparse),
        helper.make_node("MatMul", ["x", "W"], ["h"]),
        helper.make_node("MatMul", ["h", "V"], ["y"]),
    ]
    model = proto(nodes, [])
    model.graph.sparse_initializer.append(sparse)
    read = load_model(saved(model, tmp_path))
    assert np.array_equal(constant(read, "W"), dense)
    assert np.array_equal(read.graph[0].attributes["value"].as_tensor().numpy(), dense)


def test_an_unsorted_graph_is_sorted_and_stays_the_same_function(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["h"], ["y"], name="last"), helper.make_node("MatMul", ["x", "W"], ["h"], name="first")]
    model = load_model(saved(proto(nodes), tmp_path))
    assert [node.name for node in model.graph] == ["first", "last"]


def test_the_default_domains_long_name_and_missing_imports_are_filled_in(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"], domain="ai.onnx"),
        helper.make_node("FastGelu", ["h"], ["y"], domain="com.microsoft"),
    ]
    model = proto(nodes)
    model.opset_import[0].domain = "ai.onnx"
    assert load_model(saved(model, tmp_path)).opset_imports == {"": 17, "com.microsoft": 1}


def test_duplicate_outputs_and_passed_through_inputs_are_read(tmp_path: Path) -> None:
    model = load_model(saved(proto(outputs=[info("y"), info("y"), info("x")]), tmp_path))
    assert [value.name for value in model.graph.outputs] == ["y", "y", "x"]


def test_a_graph_of_100_000_nodes_is_read(tmp_path: Path) -> None:
    count = 100_000
    nodes = [onnx.NodeProto(op_type="Relu", input=[f"v{i}"], output=[f"v{i + 1}"]) for i in range(count)]
    path = saved(proto(nodes, [], [info("v0")], [info(f"v{count}")]), tmp_path)
    assert len(load_model(path).graph) == count
    nodes[0].input[0] = f"v{count}"  # the longest possible cycle
    with pytest.raises(ModelError, match=f"cycle of {count} nodes"):
        load_model(saved(proto(nodes, [], [info("v0")], [info(f"v{count}")]), tmp_path))


# What is refused


def refused(path: Path, *words: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    for word in words:
        assert word in text


def test_a_missing_file_a_folder_and_an_empty_file(tmp_path: Path) -> None:
    refused(tmp_path / "none.onnx", "no such file")
    refused(tmp_path, "not a file")
    (tmp_path / "empty.onnx").touch()
    refused(tmp_path / "empty.onnx", "empty")


@pytest.mark.parametrize("content", [b"this is plain text, and no model at all", b"\x00" * 64, b"\x08\x09", b"\xff" * 64])
def test_what_is_no_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    refused(path, "not an ONNX model")


def test_a_file_truncated_anywhere(tmp_path: Path) -> None:
    path = saved(proto([helper.make_node("MatMul", ["x", "W"], ["y"])], [numpy_helper.from_array(LARGE, "W")]), tmp_path)
    content = path.read_bytes()
    for length in (*range(1, 200, 7), len(content) // 2, *range(len(content) - 120, len(content), 7)):
        path.write_bytes(content[:length])
        refused(path)


def test_the_walk_over_the_encoding_agrees_with_the_parser() -> None:
    content = proto(initializers=[numpy_helper.from_array(LARGE, "W")]).SerializeToString()
    assert split(memoryview(content), 1 << 20) == content
    parsed = onnx.ModelProto.FromString(split(memoryview(content), 4096))
    entries = {entry.key: entry.value for entry in parsed.graph.initializer[0].external_data}
    start, length = int(entries["offset"]), int(entries["length"])
    assert content[start : start + length] == LARGE.tobytes()
    with pytest.raises(WireError, match="bytes more than there are"):
        split(memoryview(content[:-10]), 4096)


def duplicate(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def redefined(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Relu", ["x"], ["y"]))


def undefined(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "ghost"


def undefined_inside(model: onnx.ModelProto) -> None:
    branch = helper.make_graph([helper.make_node("Relu", ["ghost"], ["a"])], "b", [], [info("a")])
    model.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=branch, else_branch=branch))


def cyclic(model: onnx.ModelProto) -> None:
    del model.graph.node[:]
    nodes = (("Add", ["x", "c"], "a"), ("Relu", ["a"], "b"), ("Relu", ["b"], "c"), ("Relu", ["c"], "y"))
    model.graph.node.extend(helper.make_node(op, inputs, [output], name=output) for op, inputs, output in nodes)


def cyclic_through_a_subgraph(model: onnx.ModelProto) -> None:
    branch = helper.make_graph([helper.make_node("Relu", ["y"], ["a"])], "b", [], [info("a")])
    del model.graph.node[:]
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch, name="loop"))


def short(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].raw_data = b"12345678"


def few(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].ClearField("raw_data")
    model.graph.initializer[0].float_data.extend([1, 2, 3])


def unknown_type(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = 77


def negative(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = -4


def no_nodes(model: onnx.ModelProto) -> None:
    del model.graph.node[:]


def no_outputs(model: onnx.ModelProto) -> None:
    del model.graph.output[:]


def no_imports(model: onnx.ModelProto) -> None:
    del model.opset_import[:]


def old(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 10


def new(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 24


def training(model: onnx.ModelProto) -> None:
    model.training_info.add()


def loose_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(info("nowhere"))


def untyped(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.add(name="axis", i=1)


def mapped_type(model: onnx.ModelProto) -> None:
    kind = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [1]))
    model.graph.output.append(helper.make_value_info("y", kind))


def other_default(model: onnx.ModelProto) -> None:
    model.graph.input.append(info("W", [4, 5]))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (duplicate, ["two initializers", "'W'"]),
        (redefined, ["Relu", "'y'", "defined already"]),
        (undefined, ["'product'", "'ghost'"]),
        (undefined_inside, ["'ghost'"]),
        (cyclic, ["cycle of 3 nodes", "'a'", "'b'", "'c'"]),
        (cyclic_through_a_subgraph, ["cycle of 1 nodes", "'loop'"]),
        (short, ["'W'", "8 bytes", "needs 64"]),
        (few, ["'W'", "3 entries", "needs 16"]),
        (unknown_type, ["'W'", "77"]),
        (negative, ["'W'", "negative"]),
        (no_nodes, ["empty"]),
        (no_outputs, ["no outputs"]),
        (no_imports, ["imports no ai.onnx"]),
        (old, ["opset 10", "11 to 23"]),
        (new, ["opset 24", "lower opset_version"]),
        (training, ["training"]),
        (loose_output, ["'nowhere'"]),
        (untyped, ["'axis'", "no type"]),
        (mapped_type, ["not a valid ONNX model", "Map types"]),
        (other_default, ["'W'", "[4, 4]"]),
    ],
)
def test_what_is_malformed(tmp_path: Path, spoil: Callable[[onnx.ModelProto], None], words: list[str]) -> None:
    model = proto()
    spoil(model)
    refused(saved(model, tmp_path), *words)


@pytest.mark.parametrize("text", ["product", "MatMul", "W"])
def test_text_that_is_not_utf_8(tmp_path: Path, text: str) -> None:
    path = saved(proto(), tmp_path)
    path.write_bytes(path.read_bytes().replace(text.encode(), b"\xff" * len(text)))
    refused(path, "not UTF-8")


def test_flipped_bytes_are_refused_or_read_and_nothing_else(tmp_path: Path) -> None:
    content = proto(producer_name="me", doc_string="words").SerializeToString()
    path = tmp_path / "model.onnx"
    rng, outcomes, messages = np.random.default_rng(1), set(), []
    for _ in range(400):
        spoiled = bytearray(content)
        spoiled[rng.integers(len(content))] = rng.integers(256)
        path.write_bytes(spoiled)
        try:
            ir.serde.serialize_model(load_model(path))
            outcomes.add("read")
        except ModelError as error:
            messages.append(str(error))
            outcomes.add("refused")
    assert not any("\n" in message for message in messages)
    assert outcomes == {"read", "refused"}


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"location": "gone.bin"}, ["'W'", "'gone.bin'", "missing"]),
        ({"location": "../secret.bin"}, ["outside"]),
        ({"location": "a/../../secret.bin"}, ["outside"]),
        ({"location": "link.bin"}, ["outside", "through a link"]),
        ({"location": ""}, ["no valid location"]),
        ({"location": "data.bin", "length": "60"}, ["60 bytes", "needs 64"]),
        ({"location": "data.bin", "offset": "40", "length": "64"}, ["40 to 104", "has 100"]),
        ({"location": "data.bin", "offset": "-4"}, ["'-4'"]),
        ({"location": "data.bin", "offset": "ten"}, ["'ten'"]),
        ({"location": "\0inline", "offset": "999999"}, ["999999"]),
        ({"location": "0"}, ["'0'", "missing"]),
    ],
)
def test_external_data_that_cannot_be_trusted(tmp_path: Path, entries: dict[str, str], words: list[str]) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(1000))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "data.bin").write_bytes(bytes(100))
    refused(saved(proto(initializers=[external("W", SMALL, **entries)]), folder), *words)


def test_an_absolute_location(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(SMALL.tobytes())
    refused(saved(proto(initializers=[external("W", SMALL, location=str(tmp_path / "w"))]), tmp_path), "outside")


def test_sparse_indices_that_do_not_fit(tmp_path: Path) -> None:
    values = numpy_helper.from_array(np.array([5], np.float32), "W")
    model = proto(initializers=[])
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([16], np.int64)), [4, 4])
    )
    refused(saved(model, tmp_path), "'W'", "do not fit")
