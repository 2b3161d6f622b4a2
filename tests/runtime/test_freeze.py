"""Fixing sizes: the same outputs, the same sharing, sizes known all through the graph; refusals name what there is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from inarch.compiler.writer import write_model
from inarch.runtime.freeze import freeze_shapes
from inarch.runtime.session import Session
from inarch.runtime.sharing import check_sharing
from inarch.structure.errors import ModelError

from tests.runtime.handmade import Builder

WIDTH, HIDDEN = 16, 48


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two FFNs on the same weights, on inputs [rows, length, WIDTH] and [rows, other, WIDTH]."""
    make = Builder(np.random.default_rng(0))
    inputs, outputs = [], []
    for name, length in (("a", "length"), ("b", "other")):
        x = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["rows", length, WIDTH]))
        hidden = make.op("Relu", make.op("MatMul", x, make.weight("up", WIDTH, HIDDEN)))
        y = make.op("Add", x, make.op("MatMul", hidden, make.weight("down", HIDDEN, WIDTH)), name=f"y.{name}")
        y.type, y.shape = x.type, ir.Shape(["rows", length, WIDTH])
        inputs.append(x)
        outputs.append(y)
    graph = ir.Graph(inputs, outputs, nodes=make.nodes, initializers=list(make.params.values()), opset_imports={"": 20}, name="g")
    return write_model(ir.Model(graph, ir_version=10), tmp_path_factory.mktemp("model") / "model.onnx").path


def shapes(path: Path) -> dict[str, list[int | str]]:
    graph = onnx.load(path, load_external_data=False).graph
    return {
        value.name: [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output, *graph.value_info)
    }


def test_sizes_are_fixed_all_through_and_nothing_else_changes(source: Path, tmp_path: Path) -> None:
    out = freeze_shapes(source, {"rows": 2, "length": 3, "other": 5}, tmp_path / "frozen.onnx").path
    found = shapes(out)
    assert found["a"] == found["y.a"] == [2, 3, WIDTH]
    assert found["b"] == found["y.b"] == [2, 5, WIDTH]
    assert all(isinstance(size, int) for sizes in found.values() for size in sizes)
    graph = onnx.load(out, load_external_data=False).graph
    assert len(found) == len(graph.node) + len(graph.input) + len(graph.initializer)
    rng = np.random.default_rng(1)
    feeds = {"a": rng.standard_normal((2, 3, WIDTH), np.float32), "b": rng.standard_normal((2, 5, WIDTH), np.float32)}
    with Session(source) as before, Session(out) as after:
        right = before.run(feeds)
        for name, array in after.run(feeds).items():
            np.testing.assert_allclose(array, right[name], rtol=1e-6, atol=1e-6)
    report = check_sharing(out)
    assert report.ok
    assert {tensor.name for tensor in report.tensors} == {"up", "down"}


def test_what_is_left_out_stays_open(source: Path, tmp_path: Path) -> None:
    found = shapes(freeze_shapes(source, {"rows": 1}, tmp_path / "frozen.onnx").path)
    assert found["a"] == [1, "length", WIDTH]
    assert found["y.b"] == [1, "other", WIDTH]


@pytest.mark.parametrize(
    ("sizes", "message"), [({"row": 1}, "has 'row'; they have rows, length, other"), ({"rows": 0}, "'rows' cannot be 0")]
)
def test_refusals(source: Path, tmp_path: Path, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        freeze_shapes(source, sizes, tmp_path / "frozen.onnx")
    assert not list(tmp_path.iterdir())
