"""Where a model can run: names, what is refused, and what is no GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from inarch.runtime import providers as room
from inarch.runtime.providers import (
    available_providers,
    device_memory,
    exact_options,
    resolve_provider,
    runs_on_host,
    short_name,
    software_device,
)
from inarch.structure.errors import RuntimeFailure

WEBGPU = "WebGpuExecutionProvider"
CUDA = "CUDAExecutionProvider"


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [CUDA, WEBGPU, "OpenVINOExecutionProvider", "NvTensorRTRTXExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(room, "onnxruntime", lambda: SimpleNamespace(get_available_providers=lambda: names))


@pytest.mark.parametrize(
    ("name", "provider"),
    [
        ("cpu", "CPUExecutionProvider"),
        ("cuda", CUDA),
        ("CUDA", CUDA),
        ("webgpu", WEBGPU),
        ("WebGpuExecutionProvider", WEBGPU),
        ("webgpuexecutionprovider", WEBGPU),
        ("openvino", "OpenVINOExecutionProvider"),
        ("nvtensorrtrtx", "NvTensorRTRTXExecutionProvider"),
    ],
)
@pytest.mark.usefixtures("everything")
def test_names_in_short_and_in_full(name: str, provider: str) -> None:
    assert resolve_provider(name) == provider
    assert resolve_provider(short_name(provider)) == provider


def test_the_installed_package_has_a_cpu() -> None:
    assert "CPUExecutionProvider" in available_providers()
    assert resolve_provider("cpu") == "CPUExecutionProvider"


@pytest.mark.usefixtures("everything")
def test_what_is_not_there_is_refused_with_what_is() -> None:
    there = "cpu, cuda, nvtensorrtrtx, openvino, webgpu"
    with pytest.raises(RuntimeFailure, match=f"no provider 'rocm'; it has {there}$"):
        resolve_provider("rocm")


def test_a_missing_provider_names_its_package() -> None:
    with pytest.raises(RuntimeFailure, match=r"no provider 'CUDA'; it has .*cpu.* \(onnxruntime-gpu brings it"):
        resolve_provider("CUDA")


def test_what_each_provider_is() -> None:
    assert device_memory(CUDA) == "cuda"
    assert device_memory(WEBGPU) is None, "a run with outputs left there returns before they are computed"
    assert device_memory("CPUExecutionProvider") is None
    assert exact_options(CUDA) == {"use_tf32": "0"}
    assert exact_options("CPUExecutionProvider") == {}
    assert runs_on_host("CPUExecutionProvider")
    assert not runs_on_host(WEBGPU)


def test_a_driver_that_is_a_program_is_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(room, "Path", lambda text: tmp_path if text == "/dev" else Path(text))
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES"):
        monkeypatch.delenv(name, raising=False)
    assert "has no GPU" in software_device(WEBGPU)
    assert not software_device(CUDA), "a CUDA provider without a GPU does not start"
    (tmp_path / "dri").mkdir()
    (tmp_path / "dri" / "renderD128").touch()
    assert not software_device(WEBGPU)
    monkeypatch.setenv("VK_ICD_FILENAMES", "/usr/lib/chromium/vk_swiftshader_icd.json")
    assert "vk_swiftshader_icd.json" in software_device(WEBGPU)
    monkeypatch.setenv("VK_DRIVER_FILES", "/usr/share/vulkan/icd.d/nvidia_icd.json")
    assert not software_device(WEBGPU)
