"""A bank: parts of a model over one data file compute what the whole computes, and every weight is in the file once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

from inarch.compiler import metadata
from inarch.compiler.writer import write_model
from inarch.runtime.bank import DATA, PACKED, Bank, CutPoint, cut_points, write_bank
from inarch.runtime.session import Session
from inarch.runtime.sharing import check_sharing
from inarch.structure.errors import RuntimeFailure

from tests.runtime.handmade import Builder

Arrays = dict[str, npt.NDArray[np.float32]]
WIDTH, HIDDEN = 32, 128
SHARED = ("both.up", "both.down")
PARTS = {"text": ["features"], "rest": ["score"]}


def two_towers() -> ir.Model:
    """text -> features, image and features -> score; the first FFN of each tower reads the same weights."""
    make = Builder(np.random.default_rng(0))

    def ffn(x: ir.Value, name: str) -> ir.Value:
        hidden = make.op("Relu", make.op("MatMul", x, make.weight(f"{name}.up", WIDTH, HIDDEN)))
        return make.op("Add", x, make.op("MatMul", hidden, make.weight(f"{name}.down", HIDDEN, WIDTH)))

    inputs = [ir.Value(name=n, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", WIDTH])) for n in ("text", "image")]
    features = ffn(ffn(inputs[0], "both"), "text")
    image = ffn(ffn(inputs[1], "both"), "image")
    score = make.op("Mul", features, image)
    for value, name in ((features, "features"), (score, "score")):
        value.name, value.type, value.shape = name, ir.TensorType(ir.DataType.FLOAT), ir.Shape(["n", WIDTH])
    graph = ir.Graph(
        inputs, [score], nodes=make.nodes, initializers=list(make.params.values()), opset_imports={"": 20}, name="towers"
    )
    model = ir.Model(graph, ir_version=10)
    model.metadata_props[metadata.SHARED] = json.dumps([*SHARED])
    return model


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(two_towers(), tmp_path_factory.mktemp("model") / "towers.onnx").path


@pytest.fixture(scope="module", params=[True, False], ids=["packed", "plain"])
def bank(request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Bank:
    return write_bank(source, PARTS, tmp_path_factory.mktemp("out") / "bank", at=["features"], packed=request.param)


def feeds() -> Arrays:
    rng = np.random.default_rng(1)
    return {name: rng.standard_normal((3, WIDTH), np.float32) for name in ("text", "image")}


def places(part: Path) -> Mapping[str, Mapping[str, str]]:
    """Initializer -> where it lies: every key of its external data."""
    tensors = onnx.load(part, load_external_data=False).graph.initializer
    return {tensor.name: {entry.key: entry.value for entry in tensor.external_data} for tensor in tensors}


def test_two_sessions_compute_what_the_whole_computes(source: Path, bank: Bank) -> None:
    given = feeds()
    with Session(source) as whole, Session(bank.parts["text"]) as text, Session(bank.parts["rest"]) as rest:
        assert text.inputs == ("text",)
        assert set(rest.inputs) == {"image", "features"}
        found = rest.run({"image": given["image"], **text.run({"text": given["text"]})})
        np.testing.assert_allclose(found["score"], whole.run(given)["score"], rtol=1e-6, atol=1e-6)


def test_a_shared_weight_is_in_the_file_once_and_both_parts_point_there(source: Path, bank: Bank) -> None:
    text, rest = (places(bank.parts[name]) for name in ("text", "rest"))
    assert set(bank.shared) == set(SHARED)
    assert bank.shared_bytes == 2 * 4 * WIDTH * HIDDEN
    assert bank.data is not None
    assert {place["location"] for part in (text, rest) for place in part.values() if place} == {DATA}
    for name in SHARED:
        assert text[name] == rest[name]
        assert text[name]["location"] == DATA
    ranges = {(place["offset"], place["length"]) for part in (text, rest) for place in part.values() if place}
    assert sum(int(length) for _, length in ranges) == 6 * 4 * WIDTH * HIDDEN


def test_packed_forms_are_in_the_file_once_as_well(source: Path, tmp_path: Path) -> None:
    bank = write_bank(source, PARTS, tmp_path / "bank", at=["features"])
    packed = {
        name: {place[key] for key in place if key.startswith(PACKED)}
        for part in bank.parts.values()
        for name, place in places(part).items()
    }
    assert all(packed[name] for name in (*SHARED, "text.up", "image.down"))
    text, rest = (places(bank.parts[name]) for name in ("text", "rest"))
    for name in SHARED:
        assert text[name] == rest[name]
    assert bank.data is not None
    plain = write_bank(source, PARTS, tmp_path / "plain", at=["features"], packed=False).data
    assert plain is not None
    assert bank.data.stat().st_size >= 1.5 * plain.stat().st_size


def test_a_plain_bank_reads_like_any_model(source: Path, tmp_path: Path) -> None:
    bank = write_bank(source, PARTS, tmp_path / "bank", at=["features"], packed=False)
    for part in bank.parts.values():
        onnx.checker.check_model(part, full_check=True)
        report = check_sharing(part)
        assert report.ok
        assert {tensor.name for tensor in report.tensors} == set(SHARED)


def test_outputs_that_need_no_cut(tmp_path: Path) -> None:
    model = two_towers()
    features = next(value for node in model.graph for value in node.outputs if value.name == "features")
    model.graph.outputs.append(features)
    path = write_model(model, tmp_path / "towers.onnx").path
    bank = write_bank(path, {"text": ["features"], "all": ["score"]}, tmp_path / "bank", packed=False)
    assert {"both.up", "both.down", "text.up", "text.down"} == set(bank.shared)
    with Session(bank.parts["all"]) as whole:
        assert set(whole.inputs) == {"text", "image"}


def test_a_packed_file_that_was_damaged_is_refused(source: Path, tmp_path: Path) -> None:
    bank = write_bank(source, PARTS, tmp_path / "bank", at=["features"])
    assert bank.data is not None
    content = bytearray(bank.data.read_bytes())
    place = places(bank.parts["text"])["both.up"]
    (entry,) = (place[key] for key in place if key.startswith(PACKED))
    first = int(entry.split("|")[1].split(";")[0])
    content[first : first + 64] = bytes(64)
    bank.data.write_bytes(content)
    with pytest.raises(RuntimeFailure, match="refuses"):
        Session(bank.parts["text"])


def test_a_form_that_another_machine_packed_is_left_alone(source: Path, tmp_path: Path) -> None:
    bank = write_bank(source, PARTS, tmp_path / "bank", at=["features"])
    given = {"text": feeds()["text"]}
    with Session(bank.parts["text"]) as text:
        right = text.run(given)["features"]
    model = onnx.load(bank.parts["text"], load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key.startswith(PACKED):  # "MatMul+<hash of the packed bytes>|offset;length;..."
                kind, rest = entry.value.split("+", 1)
                entry.value = f"{kind}+1{rest}"
    bank.parts["text"].write_bytes(model.SerializeToString())
    with Session(bank.parts["text"]) as text:
        np.testing.assert_array_equal(text.run(given)["features"], right)


@pytest.mark.parametrize(
    ("parts", "at", "message"),
    [
        ({"text": ["nothing"]}, [], "no output 'nothing'"),
        ({"text": []}, [], "computes nothing"),
        ({"text": ["features"]}, [], "no output 'features'"),
        ({"text": ["score"]}, ["text"], "no node of the model computes it"),
        ({"rest": ["score"]}, ["features"], "no part has it among its outputs"),
        ({"text": ["features", "score"]}, ["features"], "would compute 'features' and need it"),
    ],
)
def test_what_cannot_be_cut_is_refused(
    source: Path, tmp_path: Path, parts: dict[str, list[str]], at: list[str], message: str
) -> None:
    with pytest.raises(RuntimeFailure, match=message):
        write_bank(source, parts, tmp_path / "bank", at=at, packed=False)
    assert not list(tmp_path.iterdir())


def test_a_value_of_unknown_type_is_refused(tmp_path: Path) -> None:
    model = two_towers()
    next(value for node in model.graph for value in node.outputs if value.name == "features").type = None
    path = write_model(model, tmp_path / "towers.onnx").path
    with pytest.raises(RuntimeFailure, match="type is not known"):
        write_bank(path, PARTS, tmp_path / "bank", at=["features"])


def test_a_folder_with_something_in_it_is_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(RuntimeFailure, match="something already"):
        write_bank(source, PARTS, tmp_path, at=["features"])
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_empty_folder_is_used_and_nothing_else_is_left(source: Path, tmp_path: Path) -> None:
    (tmp_path / "bank").mkdir()
    write_bank(source, PARTS, tmp_path / "bank", at=["features"])
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["bank", "rest.onnx", "text.onnx", DATA]
    (tmp_path / "usual").mkdir()
    assert (tmp_path / "bank").stat().st_mode == (tmp_path / "usual").stat().st_mode  # not for this user alone


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure, match="no such model file"):
        write_bank(tmp_path / "none.onnx", PARTS, tmp_path / "bank")


def test_what_the_text_alone_decides_can_be_cut_at(source: Path) -> None:
    assert cut_points(source, ["text"]) == (CutPoint("features", "FLOAT", ("n", str(WIDTH)), 8),)
    assert not cut_points(source, ["text", "image"])
    with pytest.raises(RuntimeFailure, match="no input 'nothing'; it has text, image"):
        cut_points(source, ["nothing"])


def test_what_a_subgraph_reads_counts_as_read(tmp_path: Path) -> None:
    path = tmp_path / "if.onnx"
    text = """<ir_version: 10, opset_import: ["": 20]>
    g (float[n] text, bool image) => (float[n] y) {
      deep = Relu(text)
      y = If(image) <then_branch = a () => (float[n] s) { s = Neg(deep) }, else_branch = b () => (float[n] t) { t = Abs(deep) }>
    }"""
    onnx.save(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)), path)
    assert cut_points(path, ["text"]) == (CutPoint("deep", "FLOAT", ("n",), 1),)
    bank = write_bank(path, {"text": ["deep"], "rest": ["y"]}, tmp_path / "bank", at=["deep"], packed=False)
    assert bank.data is None
    with Session(bank.parts["rest"]) as rest:
        given = {"image": np.array(True), "deep": np.array([1.0, 2.0], np.float32)}
        np.testing.assert_array_equal(rest.run(given)["y"], [-1.0, -2.0])
