"""int8: weights, tables and kernels become int8 once each, every reader reads that one, and the model says nearly what it did."""

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
from inarch.compiler.half import to_half
from inarch.compiler.metadata import QUANTISED, SHARED
from inarch.runtime import quantise
from inarch.runtime.quantise import quantise_int8
from inarch.runtime.session import Session
from inarch.runtime.sharing import check_sharing
from inarch.structure.errors import RuntimeFailure

from tests.onnx_text import attention, attention_weights, ffn, ffn_weights, model_of
from tests.passes.case import COST, Decisions, case_of, ffns, keep, proto, share
from tests.zoo import build
from tests.zoo.check import inputs_of

pytest.importorskip("onnxruntime")

Arrays = dict[str, npt.NDArray[Any]]
WIDTH = 32


def compiled(body: str, weights: list[str], decide: Any) -> ir.Model:
    model = model_of(body, inputs=f"float[B,S,{WIDTH}] x", outputs=f"float[B,S,{WIDTH}] y", weights=", ".join(weights))
    sites = [site.name for site in case_of(model, {}).found.table.sites]
    decisions: Decisions = decide(*sites)
    case = case_of(model, decisions)
    return compile_model(case.model, case.plan, None, cost=COST).model


def shared_ffns() -> ir.Model:
    """Three FFNs: the second shares a part of the first, the third all of what is left of the first."""
    body = ffn("a", "x", "x1") + ffn("b", "x1", "x2") + ffn("c", "x2", "y")
    return compiled(
        body,
        [ffn_weights(site, WIDTH, 64) for site in "abc"],
        lambda a, b, c: {
            a: {"hidden": keep("0-47")},
            b: {"hidden": share(a, "0-31")},
            c: {"hidden": keep_and_share(a)},
        },
    )


def keep_and_share(base: str) -> Any:
    decision = share(base, "0-47")
    return type(decision)(keep("0-47").keep, decision.share)


def shared_heads() -> ir.Model:
    """Two attentions of four heads that share two."""
    body = attention("a", "x", "x1", 4, 8) + attention("b", "x1", "y", 4, 8)
    return compiled(body, [attention_weights(site, WIDTH, 4, 8) for site in "ab"], lambda a, b: {b: {"head": share(a, "0-1")}})


MODELS = {"ffns": shared_ffns, "heads": shared_heads}


def run(model: ir.Model | Path, feeds: Arrays) -> Arrays:
    with Session(model) as session:
        return session.run(feeds)


def moved(before: Arrays, after: Arrays) -> float:
    """Largest relative error (Frobenius) of any output."""
    assert list(before) == list(after)
    return max(float(np.linalg.norm(want - after[name]) / np.linalg.norm(want)) for name, want in before.items())


def x(*shape: int) -> Arrays:
    return {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}


def tensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("name", list(MODELS))
def test_what_is_shared_is_one_int8_tensor_with_all_its_readers(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    before, names = proto(model), json.loads(model.metadata_props[SHARED])
    assert len(names) >= 4
    path = tmp_path / "int8.onnx"
    found = quantise_int8(model, path)
    assert proto(model) == before, "the model is not changed"
    loaded = onnx.load(path)
    content = path.read_bytes() + (found.written.data_path.read_bytes() if found.written.data_path else b"")
    stored = tensors(path)
    for shared in names:
        readers = len(model.graph.initializers[shared].uses())
        assert readers >= 2
        assert shared not in stored
        kept = stored[f"{shared}_quantized"]
        assert kept.dtype == np.int8
        assert content.count(kept.tobytes()) == 1
        of = [node for node in loaded.graph.node if f"{shared}_quantized" in node.input]
        assert [node.op_type for node in of] == ["MatMulInteger"] * readers
        assert {tuple(node.input[1:2]) + tuple(node.input[3:]) for node in of} == {
            (f"{shared}_quantized", f"{shared}_zero_point")
        }, "one tensor, one zero point"
        # One scale, too: the same for all readers.
        assert sum(f"{shared}_scale" in node.input for node in loaded.graph.node) == readers
    assert found.shared == sorted(f"{shared}_quantized" for shared in names)
    assert json.loads(_props(loaded)[SHARED]) == list(found.shared)
    report = check_sharing(path)
    assert all(tensor.copies == 1 for tensor in report.tensors)
    assert len(report.tensors) == len(names)


def _props(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


@pytest.mark.parametrize("name", list(MODELS))
def test_it_says_nearly_what_it_did_and_is_a_quarter(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    path = tmp_path / "int8.onnx"
    found = quantise_int8(model, path)
    feeds = x(2, 7, WIDTH)
    assert 1e-4 < moved(run(model, feeds), run(path, feeds)) < 0.02
    assert found.left == {}
    bytes_before = sum(found.quantised.values())
    stored = tensors(path)
    bytes_after = sum(stored[f"{name}_quantized"].nbytes for name in found.quantised)
    assert bytes_after * 4 == bytes_before


def test_weights_are_rounded_to_the_nearest_of_255_steps_of_each_column(tmp_path: Path) -> None:
    model = ffns("a", hidden=64, width=WIDTH)
    weight = np.asarray(model.graph.initializers["a.up.weight"].const_value)
    quantise_int8(model, tmp_path / "int8.onnx")
    stored = tensors(tmp_path / "int8.onnx")
    scale = stored["a.up.weight_scale"]
    assert scale.shape == (64,)
    apart = np.abs(stored["a.up.weight_quantized"] * scale - weight)
    assert (apart <= 0.5001 * scale).all()
    assert (scale <= 2.01 * np.abs(weight).max(0) / 254).all()
    assert not stored["a.up.weight_zero_point"].any()


def test_options(tmp_path: Path) -> None:
    model, feeds = shared_ffns(), x(2, 7, WIDTH)
    quantise_int8(model, tmp_path / "tensor.onnx", per_channel=False)
    quantise_int8(model, tmp_path / "seven.onnx", reduce_range=True)
    assert {array.shape for name, array in tensors(tmp_path / "tensor.onnx").items() if name.endswith("_scale")} == {()}
    largest = [
        np.abs(array.astype(int)).max() for name, array in tensors(tmp_path / "seven.onnx").items() if "_quantized" in name
    ]
    assert max(largest) <= 64
    for name, reduced in (("tensor", False), ("seven", True)):
        assert moved(run(model, feeds), run(tmp_path / f"{name}.onnx", feeds)) < 0.05
        said = json.loads(_props(onnx.load(tmp_path / f"{name}.onnx"))[QUANTISED])
        assert said["reduce_range"] == reduced


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    model = shared_ffns()
    contents = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        quantise_int8(model, tmp_path / name / "int8.onnx")
        contents.append({path.name: path.read_bytes() for path in sorted((tmp_path / name).iterdir())})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 2


def test_metadata_is_the_models_and_says_what_was_done(tmp_path: Path) -> None:
    model = shared_ffns()
    model.producer_name, model.metadata_props["author"] = "somebody", "somebody"
    quantise_int8(model, tmp_path / "int8.onnx")
    loaded = onnx.load(tmp_path / "int8.onnx")
    props = _props(loaded)
    same = {key: value for key, value in model.metadata_props.items() if key != SHARED}
    assert {key: props[key] for key in same} == same
    assert set(props) <= {*model.metadata_props, QUANTISED, "inarch.data"}
    assert loaded.producer_name == "somebody"


def test_kept_weights_stay_as_they_are_for_all_readers(tmp_path: Path) -> None:
    model = shared_ffns()
    names = json.loads(model.metadata_props[SHARED])
    quantise_int8(model, tmp_path / "int8.onnx", keep=("segment0.*",))
    stored = tensors(tmp_path / "int8.onnx")
    for shared in names:
        is_kept = shared.startswith("segment0.")
        assert (shared in stored) == is_kept
        if is_kept:
            of = [node for node in onnx.load(tmp_path / "int8.onnx").graph.node if shared in node.input]
            assert [node.op_type for node in of] == ["MatMul"] * len(model.graph.initializers[shared].uses())


def gemms(first: str, second: str) -> ir.Model:
    """Two products with one weight [32,32]."""
    return model_of(
        f"h = {first} a = Relu (h) y = {second}",
        inputs=f"float[B,{WIDTH}] x",
        outputs=f"float[B,{WIDTH}] y",
        weights=f"float[{WIDTH},{WIDTH}] w, float[{WIDTH}] b, float[{WIDTH}] c",
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Gemm <transB = 1> (x, w, b)", "Gemm <transB = 1> (a, w, c)"),
        ("Gemm (x, w, b)", "Gemm (a, w)"),
        ("Gemm (x, w, b)", "MatMul (a, w)"),
    ],
)
def test_gemms_that_share_a_weight(first: str, second: str, tmp_path: Path) -> None:
    model, feeds = gemms(first, second), x(5, WIDTH)
    found = quantise_int8(model, tmp_path / "int8.onnx")
    assert list(found.quantised) == ["w"]
    assert moved(run(model, feeds), run(tmp_path / "int8.onnx", feeds)) < 0.03
    assert sum("w_quantized" in node.input for node in onnx.load(tmp_path / "int8.onnx").graph.node) == 2


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Gemm <transB = 1> (x, w, b)", "MatMul (a, w)"),
        ("Gemm <transB = 1> (x, w, b)", "Gemm (a, w, c)"),
        ("MatMul (x, w)", "Gemm <alpha = 2.0> (a, w, c)"),
        ("MatMul (x, w)", "MatMul (w, a)"),
    ],
)
def test_a_weight_of_other_readers_too_stays_one_tensor_in_fp32(first: str, second: str, tmp_path: Path) -> None:
    """Half of it in int8 and half in fp32 would be the weight twice."""
    if "(w, a)" in second:
        second = second.replace("(w, a)", "(a, u)") + " z = Relu (w)"
    model = gemms(first, second.replace("u)", "w)"))
    with pytest.raises(RuntimeFailure, match="nothing to quantise"):
        quantise_int8(model, tmp_path / "int8.onnx")
    assert list(tmp_path.iterdir()) == []


def embedded(*, tied: bool = False) -> ir.Model:
    head = "t = Transpose (table) y = MatMul (h, t)" if tied else "y = MatMul (h, w)"
    return model_of(
        f"e = Gather <axis = 0> (table, ids) f = Gather <axis = 0> (table, more) s = Add (e, f) h = Relu (s) {head}",
        inputs="int64[B,S] ids, int64[B,S] more",
        outputs="float[B,S,N] y",
        weights=f"float[600,{WIDTH}] table, float[{WIDTH},{WIDTH}] w",
    )


def ids() -> Arrays:
    rng = np.random.default_rng(0)
    return {name: rng.integers(0, 600, (2, 5)) for name in ("ids", "more")}


def test_tables_are_quantised_by_row(tmp_path: Path) -> None:
    model = embedded()
    table = np.asarray(model.graph.initializers["table"].const_value).copy()
    table[7] *= 1000  # one row must not ruin the others
    table[9] = 0
    model.graph.initializers["table"].const_value = ir.tensor(table, name="table")
    quantise_int8(model, tmp_path / "int8.onnx")
    stored = tensors(tmp_path / "int8.onnx")
    assert "table" not in stored
    assert stored["table_quantized"].dtype == np.int8
    assert stored["table_scale"].shape == (600, 1)
    apart = np.abs(stored["table_quantized"] * stored["table_scale"] - table)
    assert (apart <= 0.5001 * stored["table_scale"]).all()
    readers = [node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node if "table_quantized" in node.input]
    assert readers == ["Gather", "Gather"]
    feeds = {"ids": np.where(ids()["ids"] == 7, 8, ids()["ids"]), "more": np.full((2, 5), 9)}
    assert moved(run(model, feeds), run(tmp_path / "int8.onnx", feeds)) < 0.02


def test_a_table_that_is_a_head_too_stays(tmp_path: Path) -> None:
    model = embedded(tied=True)
    with pytest.raises(RuntimeFailure, match="nothing to quantise"):
        quantise_int8(model, tmp_path / "int8.onnx")


def test_kernels_on_request(tmp_path: Path) -> None:
    model = model_of(
        "c = Conv <kernel_shape = [3, 3]> (x, k) r = Relu (c) d = Conv <kernel_shape = [3, 3]> (r, k) y = Relu (d)",
        inputs="float[B,48,8,8] x",
        outputs="float[B,48,4,4] y",
        weights="float[48,48,3,3] k",
    )
    feeds = x(2, 48, 8, 8)
    with pytest.raises(RuntimeFailure, match="nothing to quantise"):
        quantise_int8(model, tmp_path / "int8.onnx")
    found = quantise_int8(model, tmp_path / "int8.onnx", convolutions=True)
    assert list(found.quantised) == ["k"]
    assert moved(run(model, feeds), run(tmp_path / "int8.onnx", feeds)) < 0.02
    assert (tmp_path / "int8.onnx").stat().st_size + (found.written.data_bytes) < 48 * 48 * 9 * 1.2
    readers = [node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node if "k_quantized" in node.input]
    assert readers == ["DequantizeLinear"]


# Weights as Constant nodes, as Gemms, packed, transposed; an opset-23 Attention, which the tool would take for another operator.
@pytest.mark.parametrize(
    "form", ["two_tower_packed", "constant_weights", "gemm_weights", "decoder_cross", "attention_4d", "swin"]
)
def test_every_form_says_nearly_what_it_did(form: str, tmp_path: Path) -> None:
    seed = next(seed for seed in range(20) if build(form, seed).model.opset_imports[""] >= quantise.LEAST_OPSET)
    zoo = build(form, seed)
    found = quantise_int8(zoo.model, tmp_path / "int8.onnx")
    assert len(found.quantised) >= 6
    for feeds in inputs_of(zoo, 0)[:2]:
        assert moved(run(zoo.model, feeds), run(tmp_path / "int8.onnx", feeds)) < 0.1


def test_what_is_quantised_already_or_too_old_is_refused(tmp_path: Path) -> None:
    model = shared_ffns()
    with pytest.raises(RuntimeFailure, match="quantised to fp16 already"):
        quantise_int8(to_half(model).model, tmp_path / "int8.onnx")
    strange = to_half(model).model
    strange.metadata_props[QUANTISED] = "5"
    with pytest.raises(RuntimeFailure, match="quantised to something already"):
        quantise_int8(strange, tmp_path / "int8.onnx")
    model.opset_imports[""] = 12
    with pytest.raises(RuntimeFailure, match="needs opset 13, the model has 12"):
        quantise_int8(model, tmp_path / "int8.onnx")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_stay(tmp_path: Path) -> None:
    model = ffns("a", hidden=1024, width=WIDTH)
    array = np.asarray(model.graph.initializers["a.down.weight"].const_value).copy()
    array[0, 0] = np.inf
    model.graph.initializers["a.down.weight"].const_value = ir.tensor(array, name="a.down.weight")
    found = quantise_int8(model, tmp_path / "int8.onnx")
    assert (list(found.quantised), dict(found.left)) == (["a.up.weight"], {"a.down.weight": ("not finite", 4 * 1024 * WIDTH)})


def test_a_tool_that_breaks_sharing_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = quantise._by_tool

    def broken(work: ir.Model, *rest: Any) -> ir.Model:
        made = real(work, *rest)
        name = next(name for name in made.graph.initializers if name.endswith("_quantized"))
        value = made.graph.initializers[name]
        copy = ir.Value(name="copy", type=value.type, shape=value.shape, const_value=value.const_value)
        made.graph.register_initializer(copy)
        user, place = next(iter(value.uses()))
        user.replace_input_with(place, copy)
        return made

    monkeypatch.setattr(quantise, "_by_tool", broken)
    with pytest.raises(RuntimeFailure, match=r"the weight has \d readers, and \d once it is quantised"):
        quantise_int8(shared_ffns(), tmp_path / "int8.onnx")
    assert list(tmp_path.iterdir()) == []
