"""What ORT's optimisation leaves of sharing: once and one kind of reader, or a failed check that says why."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from inarch.compiler.metadata import SHARED
from inarch.runtime.sharing import SharingReport, array_digest, check_sharing, shared_names

from tests.runtime.handmade import Builder

WIDTH, HIDDEN = 16, 48


def towers(*, copied: bool = False, gemm: bool = False, transposed: bool = False) -> ir.Model:
    """Two FFNs that read one up: as they should, through a copy of it, as Gemm and MatMul, or one through a Transpose."""
    make = Builder(np.random.default_rng(0))
    inputs = [ir.Value(name=n, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", WIDTH])) for n in "ab"]
    up = make.weight("shared.up", WIDTH, WIDTH) if transposed else make.weight("shared.up", WIDTH, HIDDEN)
    size = WIDTH if transposed else HIDDEN
    outputs = []
    for number, x in enumerate(inputs):
        weight = up
        if number and copied:
            tensor = up.const_value
            assert tensor is not None
            weight = make.param("copy.up", tensor.numpy().copy())
        if number and transposed:
            weight = make.op("Transpose", up, perm=[1, 0])
        if number and gemm:
            hidden = make.op("Gemm", x, weight, make.weight(f"{number}.bias", size))
        else:
            hidden = make.op("MatMul", x, weight)
        out = make.op("MatMul", make.op("Relu", hidden), make.weight(f"{number}.down", size, WIDTH), name=f"out.{number}")
        out.type, out.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["n", WIDTH])
        outputs.append(out)
    graph = ir.Graph(inputs, outputs, nodes=make.nodes, initializers=list(make.params.values()), opset_imports={"": 20}, name="g")
    return ir.Model(graph, ir_version=10)


def listed(model: ir.Model, *names: str) -> ir.Model:
    model.metadata_props[SHARED] = json.dumps(names)
    return model


def only(report: SharingReport) -> tuple[bool, int, str]:
    (tensor,) = report.tensors
    return tensor.ok, tensor.copies, tensor.reason


def test_a_tensor_with_two_like_readers_passes() -> None:
    report = check_sharing(listed(towers(), "shared.up"))
    assert report.ok
    assert report.listed
    assert report.tensors[0].readers == {"MatMul[1]": 2}
    assert report.tensors[0].bytes == WIDTH * HIDDEN * 4
    assert report.stored_bytes == report.optimised_bytes == 4 * (WIDTH * HIDDEN + 2 * HIDDEN * WIDTH)
    json.dumps(report.to_json())


def test_a_duplicated_tensor_fails() -> None:
    report = check_sharing(listed(towers(copied=True), "shared.up"))
    assert not report.ok
    ok, copies, reason = only(report)
    assert (ok, copies) == (False, 2)
    assert "2 copies" in reason
    assert "copy.up" in reason


def test_a_transposed_copy_is_a_copy() -> None:
    """ORT folds the Transpose of a constant: a tensor read in two layouts is stored twice."""
    report = check_sharing(listed(towers(transposed=True), "shared.up"))
    assert not report.ok
    assert "2 copies" in only(report)[2]
    assert report.optimised_bytes > report.stored_bytes


def test_readers_of_two_kinds_fail() -> None:
    report = check_sharing(listed(towers(gemm=True), "shared.up"))
    ok, copies, reason = only(report)
    assert (ok, copies) == (False, 1)
    assert reason.startswith("it is packed once for each kind of reader: MatMul[1], ")
    assert "Gemm[1]" in reason


def test_a_listed_tensor_that_is_not_there_fails() -> None:
    assert only(check_sharing(listed(towers(), "nowhere"))) == (False, 0, "the model has no such initializer")


@pytest.mark.parametrize("text", ["", "{", "5", "null"])
def test_metadata_that_inarch_did_not_write_are_none(text: str) -> None:
    model = towers()
    model.metadata_props[SHARED] = text
    report = check_sharing(model)
    assert not report.listed
    assert [tensor.name for tensor in report.tensors] == [*shared_names(towers())]


def test_without_metadata_matrices_with_several_readers_are_taken() -> None:
    model = towers()
    assert shared_names(model) == ("shared.up",)
    report = check_sharing(model)
    assert report.ok
    assert not report.listed
    assert shared_names(towers(copied=True)) == ()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_digests_follow_the_values_not_the_layout_in_memory(dtype: type) -> None:
    array: npt.NDArray[Any] = np.arange(12, dtype=dtype).reshape(3, 4)
    assert array_digest(array.T) == array_digest(np.ascontiguousarray(array.T))
    assert array_digest(array) != array_digest(array.T)
    assert array_digest(array) != array_digest(array.reshape(4, 3))
    assert array_digest(np.array(1, dtype)) != array_digest(np.array(2, dtype))


@pytest.mark.parametrize("copies", [1, 2])
def test_a_weight_and_its_transpose_are_two_tensors(copies: int) -> None:
    make = Builder(np.random.default_rng(0))
    up = make.weight("shared.up", WIDTH, HIDDEN)
    assert up.const_value is not None
    down = make.param("shared.down", up.const_value.numpy().T.copy())
    inputs, outputs = [], []
    for number in range(copies + 1):
        x = ir.Value(name=f"x{number}", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", WIDTH]))
        first = make.param("copy.up", up.const_value.numpy().copy()) if number == 2 else up
        out = make.op("MatMul", make.op("Relu", make.op("MatMul", x, first)), down, name=f"out{number}")
        out.type, out.shape = x.type, x.shape
        inputs.append(x)
        outputs.append(out)
    graph = ir.Graph(inputs, outputs, nodes=make.nodes, initializers=list(make.params.values()), opset_imports={"": 20}, name="g")
    report = check_sharing(listed(ir.Model(graph, ir_version=10), "shared.up", "shared.down"))
    assert [tensor.ok for tensor in report.tensors] == [copies == 1] * 2
    assert {tensor.copies for tensor in report.tensors} == {1 if copies == 1 else 3}
