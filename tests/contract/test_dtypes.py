"""Every element type, opset and place of the weights: compiled and verified like fp32 initializers, or refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import inarch
from inarch.compiler.reference import apply_by_values, carry_over
from inarch.runtime.verify import Verification
from inarch.structure.errors import LoweringError, RejectedSiteError
from inarch.structure.plan import Plan
from inarch.structure.resolve import resolve

from tests.zoo.blocks import Blocks, Style
from tests.zoo.draft import Draft, unit_axes
from tests.zoo.encoders import bert_layer, vit_layer
from tests.zoo.graph import GraphWriter

WIDTH, HEADS, HIDDEN = 64, 4, 128

NUMPY: dict[int, np.dtype[Any]] = {
    TensorProto.FLOAT16: np.dtype(np.float16),
    TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    TensorProto.DOUBLE: np.dtype(np.float64),
}
NAMES: dict[int, str] = {number: TensorProto.DataType.Name(number).lower() for number in NUMPY}


def towers(opset: int = 17, *, act: str = "gelu_erf", weights: str = "initializer", linear: str = "matmul") -> onnx.ModelProto:
    """A post-norm text layer and two pre-norm vision layers, in fp32."""
    g = GraphWriter(np.random.default_rng(0), opset=opset, weights=weights, linear=linear)
    b = Blocks(g, Style())
    norm = "op" if opset >= 17 else "decomposed"
    x = g.input("text", ir.DataType.FLOAT, ["batch", "tokens", WIDTH])
    y = g.input("patches", ir.DataType.FLOAT, ["images", "positions", WIDTH])
    x = bert_layer(b, x, "text.layer.0", WIDTH, HEADS, HIDDEN, act, norm)
    for i in range(2):
        y = vit_layer(b, y, f"vision.layer.{i}", WIDTH, HEADS, HIDDEN, act, norm)
    return ir.to_proto(g.finish({"text_features": x, "image_features": y}))


def cast(tensor: onnx.TensorProto, dtype: int, name: str) -> None:
    """Make a float tensor one of another type."""
    array = numpy_helper.to_array(tensor).astype(NUMPY[dtype])
    tensor.CopyFrom(TensorProto(name=name, data_type=dtype, dims=array.shape, raw_data=array.tobytes()))


def of_type(model: onnx.ModelProto, dtype: int) -> onnx.ModelProto:
    """The model computed in another type: inputs, outputs and every number in it."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            cast(tensor, dtype, tensor.name)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = dtype
    del model.graph.value_info[:]
    return model


def stored_as(model: onnx.ModelProto, dtype: int, prefix: str = "") -> onnx.ModelProto:
    """The model computed in fp32, its matrices stored in another type and cast in the graph."""
    casts = []
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 2 and tensor.name.startswith(prefix):
            casts.append(helper.make_node("Cast", [f"{tensor.name}.stored"], [tensor.name], to=TensorProto.FLOAT))
            cast(tensor, dtype, f"{tensor.name}.stored")
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *rest])
    return model


def make_plan(path: Path) -> Plan:
    """Prune a quarter of every site, and share half of what every site has with the first of its kind."""
    table = inarch.discover(path).table
    assert len(table.sites) == 6, [rejection.reason for rejection in table.rejected]
    draft = Draft(np.random.default_rng(0), table)
    for site in table.sites:
        if site.kind == "ffn":
            draft.keep[site.name, "hidden"][3 * HIDDEN // 4 :] = False
        else:
            draft.heads[site.name][HEADS - 1 :] = False
    for kind in ("ffn", "msa"):
        base, *readers = draft.sites(kind)
        for reader, axis in ((r, a) for r in readers for a in unit_axes(r)):
            units = np.arange(reader.axes[axis].size // 2)
            assert draft.take(reader, base, axis, units, units)
    return draft.plan("towers", "pruned and shared")


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def compiled_and_verified(path: Path) -> tuple[onnx.ModelProto, Verification]:
    out = path.with_name("compiled.onnx")
    plan = make_plan(path)
    before = path.read_bytes()
    result = inarch.compile(path, plan, out)
    assert result.lowered.stored < 0.6 * result.lowered.parameters
    verification = inarch.verify(path, plan, out)
    assert verification.equivalence.ok, [check for check in verification.equivalence.checks if not check.ok]
    assert verification.sharing.ok, [tensor for tensor in verification.sharing.tensors if not tensor.ok]
    assert len(verification.sharing.tensors) == 6
    assert path.read_bytes() == before
    return onnx.load(out), verification


def matrix_types(model: onnx.ModelProto) -> set[int]:
    return {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 2}


@pytest.mark.parametrize("opset", range(11, 24))
def test_every_opset_with_weights_as_initializers_and_as_constant_nodes(tmp_path: Path, opset: int) -> None:
    weights = "constant" if opset % 2 else "initializer"
    compiled, _ = compiled_and_verified(saved(towers(opset, weights=weights), tmp_path))
    assert [entry.version for entry in compiled.opset_import if entry.domain == ""] == [opset]


@pytest.mark.parametrize("opset", [13, 23])
@pytest.mark.parametrize("dtype", NUMPY, ids=NAMES.__getitem__)
def test_models_of_every_type(tmp_path: Path, dtype: int, opset: int) -> None:
    # ONNX Runtime has no Erf in fp64 on CPU.
    model = towers(opset, act="relu" if dtype == TensorProto.DOUBLE else "gelu_erf")
    compiled, verification = compiled_and_verified(saved(of_type(model, dtype), tmp_path))
    assert matrix_types(compiled) == {dtype}
    assert verification.widened == (dtype == TensorProto.BFLOAT16)


@pytest.mark.parametrize("linear", ["matmul", "gemm"])
@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16], ids=NAMES.__getitem__)
def test_weights_that_are_cast_in_the_graph_stay_small(tmp_path: Path, dtype: int, linear: str) -> None:
    compiled, _ = compiled_and_verified(saved(stored_as(towers(linear=linear), dtype), tmp_path))
    assert matrix_types(compiled) == {dtype}


def test_weights_of_two_types_are_not_shared_with_each_other(tmp_path: Path) -> None:
    path = saved(stored_as(towers(), TensorProto.FLOAT16, "text."), tmp_path)
    with pytest.raises(LoweringError, match=r"is float32, and .* is float16"):
        inarch.compile(path, make_plan(path), tmp_path / "compiled.onnx")
    assert not (tmp_path / "compiled.onnx").exists()
    plan = inarch.make_plan(path, keep=0.6, method="similarity")  # the planner knows
    inarch.compile(path, plan, tmp_path / "compiled.onnx")
    assert inarch.verify(path, plan, tmp_path / "compiled.onnx").ok
    types = {
        tensor.name.startswith("text."): tensor.data_type for tensor in onnx.load(path).graph.initializer if len(tensor.dims) == 2
    }
    assert set(types.values()) == matrix_types(onnx.load(tmp_path / "compiled.onnx"))


def test_external_data_make_no_difference(tmp_path: Path) -> None:
    inline, external = tmp_path / "inline", tmp_path / "external"
    inline.mkdir()
    (external / "weights").mkdir(parents=True)
    saved(towers(), inline)
    data = external / "weights" / "data.bin"
    onnx.save(towers(), external / "model.onnx", save_as_external_data=True, location="weights/data.bin", size_threshold=1024)
    before = data.read_bytes()
    assert compiled_and_verified(inline / "model.onnx")[0] == compiled_and_verified(external / "model.onnx")[0]
    assert data.read_bytes() == before


def as_defaults(model: onnx.ModelProto, names: set[str], ir_version: int | None = None) -> onnx.ModelProto:
    """List initializers as graph inputs, as old exporters do with all of them: then they are only the inputs' defaults."""
    for tensor in model.graph.initializer:
        if tensor.name in names:
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    model.ir_version = ir_version or model.ir_version
    return model


@pytest.mark.parametrize("role", ["attention.self.key", "attention.output.dense", "intermediate.dense", "output.dense"])
def test_a_site_whose_weight_is_an_inputs_default_is_refused_and_the_others_are_compiled(tmp_path: Path, role: str) -> None:
    weight = f"text.layer.0.{role}.weight"
    plain = saved(towers(), tmp_path)
    plan = make_plan(plain)
    path = saved(as_defaults(towers(), {weight}), tmp_path)
    found = inarch.discover(path).table
    assert len(found.sites) == 5
    reason = f"its weight {weight} is the default of a graph input, which a caller may replace"
    assert (weight,) in [rejection.params for rejection in found.rejected if rejection.reason == reason]
    with pytest.raises(RejectedSiteError, match=r"sites\[.text\.layer\.0.*default of a graph input"):
        inarch.compile(path, plan, tmp_path / "compiled.onnx")
    others = inarch.make_plan(path, keep=0.8, method="uniform")
    inarch.compile(path, others, tmp_path / "compiled.onnx")
    assert inarch.verify(path, others, tmp_path / "compiled.onnx").ok
    session = ort.InferenceSession(str(tmp_path / "compiled.onnx"))
    assert [item.name for item in session.get_overridable_initializers()] == [weight]


def test_before_ir_version_4_every_weight_is_an_inputs_default(tmp_path: Path) -> None:
    model = towers(11)
    path = saved(as_defaults(model, {tensor.name for tensor in model.graph.initializer}, ir_version=3), tmp_path)
    found = inarch.discover(path).table
    assert not found.sites
    weights = {tensor.name for tensor in model.graph.initializer if tensor.name.endswith("weight") and len(tensor.dims) == 2}
    assert {param for rejection in found.rejected for param in rejection.params} == weights
    assert all("default of a graph input" in rejection.reason for rejection in found.rejected)


def test_a_default_beside_a_site_still_can_be_replaced(tmp_path: Path) -> None:
    """A bias that a caller may give: the compiled model reads of it what it kept."""
    bias = "text.layer.0.intermediate.dense.bias"
    path = saved(as_defaults(towers(), {bias}), tmp_path)
    compiled_and_verified(path)
    found = inarch.discover(path)
    applied = apply_by_values(found.model, found.table, resolve(make_plan(path), found.table), found.uses)
    ir.save(carry_over(applied, found.model, ir.load(path)), tmp_path / "reference.onnx")
    rng = np.random.default_rng(1)
    feeds = {"text": rng.standard_normal((2, 5, WIDTH), np.float32), "patches": rng.standard_normal((1, 4, WIDTH), np.float32)}
    given = feeds | {bias: rng.standard_normal(HIDDEN, np.float32)}
    reference, compiled = (ort.InferenceSession(str(tmp_path / f"{name}.onnx")) for name in ("reference", "compiled"))
    usual, (want, _), (got, _) = reference.run(None, feeds)[0], reference.run(None, given), compiled.run(None, given)
    assert np.abs(want - usual).max() > 0.1
    np.testing.assert_allclose(got, want, atol=1e-5 * float(np.abs(want).max()))
