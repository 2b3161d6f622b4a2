"""Sessions: what is refused, and how."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from inarch.frontends.mapped import sources_of
from inarch.runtime import session as room
from inarch.runtime.providers import onnxruntime
from inarch.runtime.session import Session, SessionOptions, load, model_file, short_message
from inarch.structure.errors import RuntimeFailure

from tests.runtime.handmade import encoder

FEEDS = {"input_ids": np.array([[1, 2, 3]]), "attention_mask": np.ones((1, 3), np.int64)}


def test_a_path_and_a_model_in_memory_run_alike(tmp_path: Path) -> None:
    model = encoder().model
    ir.save(model, tmp_path / "m.onnx", external_data="m.data")
    with Session(model) as memory, Session(tmp_path / "m.onnx") as disk:
        assert memory.inputs == ("input_ids", "attention_mask")
        assert memory.outputs == ("hidden", "pooled")
        a, b = memory.run(FEEDS), disk.run({**FEEDS, "unknown": np.ones(1)})
    assert all((a[name] == b[name]).all() for name in ("hidden", "pooled"))


def test_big_tensors_go_beside_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "INLINE_LIMIT", 1000)
    with model_file(encoder().model) as path:
        assert sorted(file.name for file in path.parent.iterdir()) == ["model.data", "model.onnx"]
        Session(path).run(FEEDS)
    assert not path.exists()


def test_all_tensors_of_a_file_are_views_of_one_mapping_also_behind_links(tmp_path: Path) -> None:
    model = encoder().model
    (tmp_path / "blobs").mkdir()
    (tmp_path / "shown").mkdir()
    ir.save(model, tmp_path / "blobs" / "m.onnx", external_data="m.data")
    for shown, blob in (("model.onnx", "m.onnx"), ("m.data", "m.data")):
        (tmp_path / "shown" / shown).symlink_to(Path("..", "blobs", blob))
    loaded = load(tmp_path / "shown" / "model.onnx")
    for name, value in model.graph.initializers.items():
        tensor = loaded.graph.initializers[name].const_value
        assert tensor is not None
        assert value.const_value is not None
        assert not isinstance(tensor, ir.ExternalTensor)
        assert (tensor.numpy() == value.const_value.numpy()).all()
    assert sources_of(loaded) == {tmp_path / "shown" / "m.data"}
    (tmp_path / "blobs" / "m.data").write_bytes(b"short")
    with pytest.raises(RuntimeFailure, match="cannot be read"):
        load(tmp_path / "shown" / "model.onnx")


def test_only_the_outputs_asked_for_are_returned() -> None:
    assert list(Session(encoder().model).run(FEEDS, ["pooled"])) == ["pooled"]


def test_bad_inputs_are_refused_with_their_shapes() -> None:
    with pytest.raises(RuntimeFailure, match=r"could not run the model on input_ids \[1, 3\]"):
        Session(encoder().model).run({**FEEDS, "attention_mask": np.ones((1, 5), np.int64)})
    with pytest.raises(RuntimeFailure):
        Session(encoder().model).run({"input_ids": FEEDS["input_ids"]})


def test_a_bad_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"nothing of use")
    with pytest.raises(RuntimeFailure, match="ONNX Runtime refuses the model"):
        Session(tmp_path / "bad.onnx")
    with pytest.raises(RuntimeFailure, match="no such model file"):
        Session(tmp_path / "missing.onnx")
    with pytest.raises(RuntimeFailure, match="cannot be read"):
        load(tmp_path / "bad.onnx")
    with pytest.raises(RuntimeFailure, match=r"missing\.onnx: there is no such file"):
        load(tmp_path / "missing.onnx")


def test_a_provider_that_is_not_there_is_refused() -> None:
    with pytest.raises(RuntimeFailure, match=r"has no CUDAExecutionProvider; it has .*CPU"):
        Session(encoder().model, SessionOptions(providers=("CUDAExecutionProvider",)))


def test_a_provider_that_falls_back_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = onnxruntime()

    class Fallen:
        def __init__(self, *unused: object, **more: object) -> None:
            """ORT prints an error and goes on with the CPU."""

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    pretended = SimpleNamespace(
        **{name: getattr(real, name) for name in ("SessionOptions", "GraphOptimizationLevel", "capi")},
        get_available_providers=lambda: ["WebGpuExecutionProvider", "CPUExecutionProvider"],
        InferenceSession=Fallen,
    )
    monkeypatch.setattr(room, "onnxruntime", lambda: pretended)
    with pytest.raises(RuntimeFailure, match="WebGpuExecutionProvider could not start and ONNX Runtime fell back to CPU"):
        Session(encoder().model, SessionOptions(providers=("WebGpuExecutionProvider",)))


def test_orts_own_fallback_is_off_and_its_reason_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    real = onnxruntime()

    class Broken:
        def __init__(self, *unused: object, enable_fallback: int, **more: object) -> None:
            assert not enable_fallback, "it prints to stdout, where JSON goes"
            raise RuntimeError("/a/b/onnxruntime/webgpu_context.cc:65 No supported adapters")

    pretended = SimpleNamespace(
        **{name: getattr(real, name) for name in ("SessionOptions", "GraphOptimizationLevel", "capi")},
        get_available_providers=lambda: ["WebGpuExecutionProvider", "CPUExecutionProvider"],
        InferenceSession=Broken,
    )
    monkeypatch.setattr(room, "onnxruntime", lambda: pretended)
    with pytest.raises(RuntimeFailure, match=r"refuses the model on WebGpuExecutionProvider: .*No supported adapters"):
        Session(encoder().model, SessionOptions(providers=("WebGpuExecutionProvider",)))


@pytest.mark.parametrize("exact", [False, True])
def test_a_provider_is_told_to_be_exact_on_request(monkeypatch: pytest.MonkeyPatch, exact: bool) -> None:
    real = onnxruntime()
    given: list[object] = []

    class Recorded:
        def __init__(self, *unused: object, providers: list[str], provider_options: list[object], **more: object) -> None:
            given.extend(zip(providers, provider_options, strict=True))

        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

        def get_inputs(self) -> list[object]:
            return []

        get_outputs = get_inputs

    pretended = SimpleNamespace(
        **{name: getattr(real, name) for name in ("SessionOptions", "GraphOptimizationLevel", "capi")},
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        InferenceSession=Recorded,
    )
    monkeypatch.setattr(room, "onnxruntime", lambda: pretended)
    Session(encoder().model, SessionOptions(providers=("CUDAExecutionProvider",), exact=exact))
    assert given == [("CUDAExecutionProvider", {"use_tf32": "0"} if exact else {}), ("CPUExecutionProvider", {})]


def test_bound_inputs_are_run_many_times() -> None:
    with Session(encoder().model) as session:
        want = session.run(FEEDS)
        with session.bind({**FEEDS, "unknown": np.ones(1)}) as bound:
            for _ in range(3):
                bound.run()
                for name, values in zip(session.outputs, bound.outputs(), strict=True):
                    assert np.array_equal(np.asarray(values), want[name])


def test_inputs_that_cannot_be_bound_are_refused() -> None:
    with (
        Session(encoder().model) as session,
        pytest.raises(RuntimeFailure, match=r"could not run the model on attention_mask \[1, 3\]"),
    ):
        session.bind({"attention_mask": FEEDS["attention_mask"].astype(np.complex64)})


def negative(dtype: ir.DataType) -> ir.Model:
    """y = -x, computed in fp32, as a CPU can."""
    shape = ir.Shape(["n", 2])
    x, y = (ir.Value(name=name, type=ir.TensorType(dtype), shape=shape) for name in "xy")
    wide = ir.node("Cast", [x], {"to": ir.DataType.FLOAT})
    minus = ir.node("Neg", list(wide.outputs))
    back = ir.Node("", "Cast", list(minus.outputs), [ir.AttrInt64("to", int(dtype))], outputs=[y])
    graph = ir.Graph([x], [y], nodes=[wide, minus, back], opset_imports={"": 20}, name="g")
    return ir.Model(graph, ir_version=10)


def test_bf16_goes_in_and_out_though_numpy_does_not_have_it() -> None:
    x = np.array([[1.0, -2.5], [3.0, 0.0]], ml_dtypes.bfloat16)
    with Session(negative(ir.DataType.BFLOAT16)) as session:
        (y,) = session.run({"x": x}).values()
        assert y.dtype == x.dtype
        assert np.array_equal(y, -x)
        with session.bind({"x": x}) as bound:
            bound.run()
            (again,) = bound.outputs()
        assert np.array_equal(np.asarray(again), -x)
        assert session.run({"x": x[:0]})["y"].shape == (0, 2)


def test_a_profile_is_written_on_request(tmp_path: Path) -> None:
    with Session(encoder().model, SessionOptions(profile=tmp_path / "seen")) as session:
        session.run(FEEDS)
        path = session.end_profile()
    assert path.parent == tmp_path
    assert any(event.get("cat") == "Node" for event in json.loads(path.read_text()))
    with Session(encoder().model) as session, pytest.raises(RuntimeFailure, match="no profile"):
        session.end_profile()


def test_a_missing_onnxruntime_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> ModuleType:
        if name == "onnxruntime":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(RuntimeFailure, match=r"not installed \(pip install 'inarch\[ort\]'"):
        onnxruntime()


@pytest.mark.parametrize(("version", "warns"), [("1.20.1", True), ("1.9.0", True), ("1.21.0", False), ("2.0.0", False)])
def test_an_old_onnxruntime_will_not_shrink_memory(monkeypatch: pytest.MonkeyPatch, version: str, warns: bool) -> None:
    monkeypatch.setattr(onnxruntime(), "__version__", version)
    if warns:
        with pytest.warns(UserWarning, match="memory will not shrink before 1.21"):
            onnxruntime()
    else:
        onnxruntime()  # warnings are errors


def test_the_optimised_graph_is_written_on_request(tmp_path: Path) -> None:
    path = tmp_path / "optimised.onnx"
    Session(encoder().model, SessionOptions(optimised_path=path)).close()
    operators = {node.op_type for node in load(path).graph}
    assert "SkipLayerNormalization" in operators or "FusedMatMul" in operators or len(operators) < 14


def test_messages_lose_orts_addresses() -> None:
    text = "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status /a/b/onnxruntime/core/x.cc:53 reshape\nsecond\nthird"
    assert short_message(RuntimeError(text)) == "Non-zero status onnxruntime/core/x.cc:53 reshape second"
