"""fp16: everything becomes fp16 once, what cannot stays fp32, masks survive, and the model computes what it did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

from inarch.compiler.compile import compile_model
from inarch.compiler.half import Half, to_half
from inarch.compiler.half_norms import norms
from inarch.compiler.metadata import QUANTISED, SHARED
from inarch.compiler.writer import write_model
from inarch.frontends.onnx_file import load_model
from inarch.structure.errors import ModelError

from tests.onnx_text import attention, attention_weights, ffn, ffn_weights, model_of
from tests.passes.case import COST, case_of, ffns, keep, proto, share
from tests.zoo import build
from tests.zoo.check import inputs_of, run_all

ort = pytest.importorskip("onnxruntime")

Arrays = dict[str, npt.NDArray[Any]]
FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


def tensor(model: ir.Model, name: str) -> npt.NDArray[Any]:
    found = model.graph.initializers[name].const_value
    assert found is not None
    return found.numpy()


def types(model: ir.Model) -> dict[str, ir.DataType | None]:
    return {str(value.name): value.dtype for node in model.graph for value in node.outputs}


def compiled_pair() -> ir.Model:
    """Two FFNs that share five of their eight units, and two attentions of two heads that share one."""
    sites = "".join(
        [ffn("a", "x", "x1"), ffn("b", "x1", "x2"), attention("c", "x2", "x3", 2, 4), attention("d", "x3", "y", 2, 4)]
    )
    declared = [*(ffn_weights(site, 8, 16) for site in "ab"), *(attention_weights(site, 8, 2, 4) for site in "cd")]
    model = model_of(sites, inputs="float[B,S,8] x", outputs="float[B,S,8] y", weights=", ".join(declared))
    decisions = {"b.ffn": {"hidden": share("a.ffn", "0-9")}, "d.attn": {"head": share("c.attn", "0")}}
    found = case_of(model, {}).found.table
    names = {site.kind: [s.name for s in found.sites if s.kind == site.kind] for site in found.sites}
    decisions = {
        names["ffn"][1]: {"hidden": share(names["ffn"][0], "0-9")},
        names["msa"][1]: {"head": share(names["msa"][0], "0")},
        names["ffn"][0]: {"hidden": keep("0-13")},
    }
    case = case_of(model, decisions)
    return compile_model(case.model, case.plan, None, cost=COST).model


def run(model: ir.Model, feeds: Arrays) -> Arrays:
    return run_all(model, [feeds])["on"][0]


def distance(model: ir.Model, half: Half, feeds: Arrays) -> float:
    """Largest difference over the output's scale, of all outputs, with ORT's optimisation off and on."""
    worst = 0.0
    for level, cases in run_all(model, [feeds]).items():
        other = run_all(half.model, [feeds])[level][0]
        for name, want in cases[0].items():
            assert other[name].dtype == want.dtype
            worst = max(worst, float(np.abs(want - other[name]).max() / np.abs(want).max()))
    return worst


def random_input(*shape: int) -> Arrays:
    return {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}


def test_every_tensor_becomes_fp16_once_and_sharing_stays() -> None:
    model = compiled_pair()
    before, shared = proto(model), json.loads(model.metadata_props[SHARED])
    assert len(shared) == 6  # up and down; q, k, v and o of the shared head
    half = to_half(model)
    assert proto(model) == before, "the model is not changed"
    initializers = half.model.graph.initializers
    assert list(initializers) == list(model.graph.initializers)
    floats = [name for name, value in model.graph.initializers.items() if value.dtype == FLOAT]
    assert {initializers[name].dtype for name in floats} == {HALF}
    for name in shared:
        users = [(user.op_type, user.name) for user, _ in model.graph.initializers[name].uses()]
        assert [(user.op_type, user.name) for user, _ in initializers[name].uses()] == users
        assert len(users) == 2
        np.testing.assert_array_equal(tensor(half.model, name), tensor(model, name).astype(np.float16))
    assert (half.tensors, half.clipped, list(half.raised), dict(half.kept)) == (len(floats), {}, [], {})
    assert distance(model, half, random_input(2, 3, 8)) < 4e-3


def test_inputs_and_outputs_are_as_they_were() -> None:
    model = compiled_pair()
    half = to_half(model).model
    for old, new in ((model.graph.inputs, half.graph.inputs), (model.graph.outputs, half.graph.outputs)):
        assert [(v.name, v.dtype, v.shape) for v in old] == [(v.name, v.dtype, v.shape) for v in new]
    inside = types(half)
    assert inside.pop("y") == FLOAT
    assert set(inside.values()) <= {HALF, ir.DataType.INT64}


def test_names_are_not_taken_twice() -> None:
    model = compiled_pair()
    for node in model.graph:  # as exporters call nodes
        node.name = node.outputs[0].name
    half = to_half(model).model
    names = [node.name for node in half.graph]
    assert len(set(names)) == len(names)
    run(half, random_input(2, 3, 8))


def test_what_is_written_holds_each_shared_tensor_once(tmp_path: Path) -> None:
    model = compiled_pair()
    path = tmp_path / "half.onnx"
    written = write_model(to_half(model).model, path)
    again = write_model(to_half(model).model, tmp_path / "again.onnx")
    loaded = onnx.load(path)
    content = path.read_bytes() + (written.data_path.read_bytes() if written.data_path else b"")
    for name in json.loads(model.metadata_props[SHARED]):
        (stored,) = [t for t in loaded.graph.initializer if t.name == name]
        assert stored.data_type == onnx.TensorProto.FLOAT16
        assert content.count(onnx.numpy_helper.to_array(stored).tobytes()) == 1
        assert sum(name in node.input for node in loaded.graph.node) == 2
    assert written.unique_bytes < 0.6 * write_model(model, tmp_path / "model.onnx").unique_bytes
    assert (written.file_bytes, written.data_bytes) == (again.file_bytes, again.data_bytes)
    props = load_model(path).metadata_props
    assert json.loads(props[QUANTISED])["to"] == "fp16"
    assert {key: props[key] for key in model.metadata_props} == dict(model.metadata_props)


# The last case of some forms masks a whole row, where nothing is right.
@pytest.mark.parametrize(
    "form", ["two_tower", "swin_v2", "swiglu", "decoder_cross", "bi_attention", "constant_weights", "gqa", "t5"]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_form_computes_what_it_did(form: str, seed: int) -> None:
    zoo = build(form, seed)
    half = to_half(zoo.model)
    for feeds in inputs_of(zoo, 0)[:2]:
        assert distance(zoo.model, half, feeds) < 5e-3


def masked(value: str) -> ir.Model:
    """Scores of [B,S] with a mask [B,S] that is added."""
    return model_of(
        """
        one = Constant <value = float {1.0}> ()
        m0 = Sub (one, mask)
        m1 = Mul (m0, low)
        s0 = Add (x, m1)
        y = Softmax <axis = -1> (s0)""",
        inputs="float[B,S] x, float[B,S] mask",
        outputs="float[B,S] y",
        weights=f"float low = {{{value}}}, float[2,2] w",
    )


@pytest.mark.parametrize(("value", "clipped"), [("-3.4028234663852886e38", True), ("-1e9", True), ("-50000.0", False)])
def test_masks_survive(value: str, clipped: bool) -> None:
    model = masked(value)
    half = to_half(model)
    assert list(half.clipped) == (["low"] if clipped else [])
    assert tensor(half.model, "low") == np.float16(max(float(value), -65504))
    feeds = random_input(2, 5) | {"mask": np.array([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0]], np.float32)}
    found = run(half.model, feeds)["y"]
    assert (found[feeds["mask"] == 0] == 0).all()
    np.testing.assert_allclose(found, run(model, feeds)["y"], atol=1e-3)


def test_infinities_stay() -> None:
    model = model_of(
        "c = Greater (x, limit) y = Where (c, x, low)",
        inputs="float[B,S] x",
        outputs="float[B,S] y",
        weights="float limit = {0.0}, float low = {0.0}",
    )
    model.graph.initializers["low"].const_value = ir.tensor(np.float32(-np.inf), name="low")
    half = to_half(model)
    assert half.clipped == {}
    np.testing.assert_array_equal(run(half.model, {"x": np.array([[1, -1]], np.float32)})["y"], [[1, -np.inf]])


def test_what_keeps_a_divisor_from_zero_does_so_still() -> None:
    model = model_of("s = Add (x, eps) y = Div (x, s)", inputs="float[B] x", outputs="float[B] y", weights="float eps = {1e-12}")
    half = to_half(model)
    assert list(half.raised) == ["eps"]
    assert run(half.model, {"x": np.zeros(3, np.float32)})["y"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("size", [4, 64])
def test_a_weight_that_fp16_cannot_hold_is_refused(size: int, tmp_path: Path) -> None:
    model = model_of(
        "y = MatMul (x, w)", inputs=f"float[B,{size}] x", outputs=f"float[B,{size}] y", weights=f"float[{size},{size}] w"
    )
    array = tensor(model, "w").copy()
    array[1, 2] = -7e4
    model.graph.initializers["w"].const_value = ir.tensor(array, name="w")
    with pytest.raises(ModelError, match="w: the weight holds 7e\\+04"):
        write_model(to_half(model).model, tmp_path / "half.onnx")
    assert list(tmp_path.iterdir()) == []


NORM = """
    mean = ReduceMean <axes = [-1]> (x)
    centred = Sub (x, mean)
    squares = Pow (centred, two)
    variance = ReduceMean <axes = [-1]> (squares)
    safe = Add (variance, eps)
    deviation = Sqrt (safe)
    quotient = Div (centred, deviation)
    scaled = Mul (quotient, gamma)
    normed = Add (scaled, beta)
    y = MatMul (normed, w)"""


def norm_model(before: str = "") -> ir.Model:
    declared = "float[8] gamma, float[8] beta, float[8,8] w, float[8,8] v, float two = {2.0}, float eps = {1e-5}"
    body = f"{before}{NORM}"
    name = "raw" if before else "x"
    return model_of(body, inputs=f"float[B,8] {name}", outputs="float[B,8] y", weights=declared, opset=13)


@pytest.mark.parametrize("inside", [False, True])
def test_a_norm_that_is_spelled_out_squares_in_fp32(inside: bool) -> None:
    model = norm_model("x = MatMul (raw, v)" if inside else "")
    half = to_half(model)
    kinds = types(half.model)
    assert all(kinds[name] == FLOAT for name in ("centred", "squares", "variance", "deviation", "quotient"))
    # What reads fp32 scales in fp32, too: ONNX Runtime makes one operator of it, whose operands are of one type.
    assert kinds["scaled"] == (HALF if inside else FLOAT)
    assert half.model.graph.initializers["gamma"].dtype == kinds["scaled"]
    assert half.model.graph.initializers["w"].dtype == HALF
    name = "raw" if inside else "x"
    feeds = {name: 600 * random_input(4, 8)["x"]}
    assert distance(model, half, feeds) < 3e-3
    (found,) = norms(list(model.graph))
    assert [node.op_type for node in found.affine] == ["Mul", "Add"]
    assert str(found.source.name) == "x"


def test_sizes_and_indices_stay_fp32() -> None:
    """A third of a size of 3,003: 1,001 in fp32; fp16 has no 3,003."""
    model = model_of(
        """
        shape = Shape (x)
        size = Gather (shape, at)
        number = Cast <to = 1> (size)
        part = Mul (number, third)
        down = Floor (part)
        count = Cast <to = 7> (down)
        y0 = Slice (x, zero, count, zero)
        y = Mul (y0, two)""",
        inputs="float[N] x",
        outputs="float[M] y",
        weights="int64[1] at = {0}, int64[1] zero = {0}, float[1] third = {0.33333334}, float two = {2.0}",
    )
    half = to_half(model)
    kinds = types(half.model)
    assert [kinds[name] for name in ("number", "part", "down", "y0")] == [FLOAT, FLOAT, FLOAT, HALF]
    assert half.model.graph.initializers["third"].dtype == FLOAT
    feeds = {"x": np.ones(3003, np.float32)}
    assert run(half.model, feeds)["y"].shape == run(model, feeds)["y"].shape == (1001,)


def test_operators_that_have_no_fp16_compute_in_fp32() -> None:
    model = model_of(
        """
        big = Resize <mode = "nearest"> (x, , scales)
        same = own.Mystery (big)
        y = Mul (same, two)""",
        inputs="float[1,1,4,4] x",
        outputs="float[1,1,8,8] y",
        weights="float[4] scales = {1.0, 1.0, 2.0, 2.0}, float two = {2.0}",
    )
    half = to_half(model)
    kinds = types(half.model)
    assert half.model.graph.initializers["scales"].dtype == FLOAT
    assert (kinds["big"], kinds["same"], kinds["y.half"]) == (HALF, FLOAT, HALF)
    assert dict(half.kept) == {"Mystery": 1, "Resize": 1}


def test_all_readers_of_a_kept_weight_are_kept() -> None:
    model = compile_model(*_shared_ffns(), None, cost=COST).model
    (up, *_) = json.loads(model.metadata_props[SHARED])
    first, second = [user for user, _ in model.graph.initializers[up].uses()]
    half = to_half(model, lambda node: node.name == second.name)
    assert half.model.graph.initializers[up].dtype == FLOAT
    assert [user.op_type for user, _ in half.model.graph.initializers[up].uses()] == ["MatMul", "MatMul"]
    assert half.kept["MatMul"] >= 2
    assert first.name != second.name
    assert distance(model, half, random_input(2, 3, 4)) < 4e-3


def _shared_ffns() -> tuple[ir.Model, Any]:
    case = case_of(ffns("a", "b"), {"b.ffn": {"hidden": share("a.ffn", "0-7")}})
    return case.model, case.plan


def test_subgraphs_and_functions() -> None:
    model = ir.from_onnx_text(
        """
        <ir_version: 8, opset_import: ["" : 18, "own" : 1]>
        g (float[B,4] x, bool c) => (float[B,4] y) <float[4,4] w, float one = {1.0}> {
            t = own.twice (x)
            z = If (c) <
                then_branch = inner () => (float[B,4] a) { a = MatMul (t, w) },
                else_branch = other () => (float[B,4] b) { b = Add (t, one) }
            >
            y = Sub (z, one)
        }
        <opset_import: ["" : 18], domain: "own"> twice (v) => (r) { r = Add (v, v) }
        """
    )
    rng = np.random.default_rng(0)
    weight = model.graph.inputs  # what the parser declares as a value is made an initializer here
    assert [str(value.name) for value in weight] == ["x", "c"]
    (node,) = [n for n in model.graph if n.op_type == "If"]
    product = next(n for n in node.attributes["then_branch"].as_graph() if n.op_type == "MatMul")
    array = rng.standard_normal((4, 4)).astype(np.float32)
    value = ir.Value(name="w", type=ir.TensorType(FLOAT), shape=ir.Shape((4, 4)), const_value=ir.tensor(array, name="w"))
    model.graph.register_initializer(value)
    product.replace_input_with(1, value)
    half = to_half(model)
    assert half.model.graph.initializers["w"].dtype == HALF
    for flag in (True, False):
        feeds = random_input(3, 4) | {"c": np.array(flag)}
        assert distance(model, half, feeds) < 2e-3


def test_nothing_to_convert_is_refused() -> None:
    half = to_half(compiled_pair()).model
    with pytest.raises(ModelError, match="no weight of the model is fp32"):
        to_half(half)


def test_constants_of_every_spelling() -> None:
    model = model_of(
        """
        shape = Shape (x)
        zeros = ConstantOfShape (shape)
        twos = ConstantOfShape <value = float[1] {2.0}> (shape)
        three = Constant <value_float = 3.0> ()
        row = Constant <value_floats = [1.0, 2.0]> ()
        whole = Constant <value_int = 4> ()
        four = Cast <to = 1> (whole)
        a = Add (x, zeros)
        b = Mul (a, twos)
        c = Add (b, three)
        d = Mul (c, row)
        y = Add (d, four)""",
        inputs="float[B,2] x",
        outputs="float[B,2] y",
    )
    half = to_half(model)
    assert {kind for name, kind in types(half.model).items() if name not in ("shape", "whole", "y")} == {HALF}
    assert half.tensors == 4
    assert distance(model, half, random_input(3, 2)) < 2e-3


def test_sizes_that_onnx_cannot_infer_stay_known() -> None:
    """Heads counted by -1 between two dynamic sizes: only the exporter knows how many, and discovery needs to."""
    rest = """h = MatMul (x, w)
    s = Shape (x)
    first = Constant <value_ints = [0]> ()
    second = Constant <value_ints = [1]> ()
    lead = Gather (s, first)
    next = Gather (s, second)
    sizes = Concat <axis = 0> (lead, next, minus, four)
    heads = Reshape (h, sizes)
    y = Relu (heads)
    """
    model = model_of(
        rest,
        inputs="float[B,S,8] x",
        outputs="float[B,S,heads,4] y",
        weights="float[8,8] w, int64[1] minus = {-1}, int64[1] four = {4}",
    )
    heads = next(value for node in model.graph for value in node.outputs if value.name == "heads")
    heads.shape = ir.Shape(["B", "S", 2, 4])
    half = to_half(model).model
    found = next(value for node in half.graph for value in node.outputs if value.name == "heads")
    assert found.dtype == HALF
    assert found.shape is not None
    assert list(found.shape)[2:] == [2, 4]
