"""Sessions: what is refused, and how."""

from __future__ import annotations

import builtins
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from inarch.runtime import session as room
from inarch.runtime.session import Session, SessionOptions, load, model_file, onnxruntime, short_message
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
