"""What ONNX Runtime is installed, and where it can run a model.

The one place that imports onnxruntime, and only when it is asked to. Execution providers are named as ORT names them
(``CUDAExecutionProvider``) or in short (``cuda``): :func:`resolve_provider` turns the one into the other.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from inarch.structure.errors import RuntimeFailure

CPU = "CPUExecutionProvider"
MINIMUM_VERSION = (1, 21)
"""From here on a session keeps one packed copy of a weight that several nodes read; before, sharing shrinks the file alone."""

_SUFFIX = "ExecutionProvider"
_PACKAGES = {
    "cuda": "onnxruntime-gpu",
    "dml": "onnxruntime-directml",
    "openvino": "onnxruntime-openvino",
    "webgpu": "onnxruntime-webgpu",
}
_MEMORY = {"cuda": "cuda", "tensorrt": "cuda"}
_EXACT = {"cuda": {"use_tf32": "0"}, "openvino": {"precision": "ACCURACY"}}
_HOST = frozenset({"cpu", "xnnpack", "dnnl", "acl", "armnn", "azure", "openvino"})
"""Providers that compute in the host's memory, OpenVINO by default."""
_COMPILING = frozenset({"openvino", "tensorrt", "nvtensorrtrtx", "qnn", "coreml", "migraphx", "vitisai"})
_GPU_NODES = ("dri/renderD*", "nvidia[0-9]*", "dxg")
_SOFTWARE = re.compile(r"swiftshader|lvp|llvmpipe", re.IGNORECASE)


def onnxruntime() -> ModuleType:
    """Import ONNX Runtime.

    Raises:
        RuntimeFailure: it is not installed.
    """
    try:
        import onnxruntime as installed
    except ImportError as error:
        raise RuntimeFailure(
            "ONNX Runtime is not installed", hint="pip install 'inarch[ort]', or onnxruntime-gpu for CUDA"
        ) from error
    module: ModuleType = installed
    if version(module.__version__) < MINIMUM_VERSION:
        warnings.warn(
            f"onnxruntime {module.__version__} computes the right thing, but packs a shared weight once a reader: "
            f"memory will not shrink before {'.'.join(map(str, MINIMUM_VERSION))}",
            stacklevel=2,
        )
    return module


def version(text: str) -> tuple[int, ...]:
    """Major and minor number of a version."""
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def available_providers() -> tuple[str, ...]:
    """What the installed ONNX Runtime was built with; whether the machine has the device shows when a session is made.

    Raises:
        RuntimeFailure: it is not installed.
    """
    return tuple(onnxruntime().get_available_providers())


def short_name(provider: str) -> str:
    """``cuda`` for ``CUDAExecutionProvider``."""
    return provider.removesuffix(_SUFFIX).lower()


def resolve_provider(name: str) -> str:
    """The provider that a user means.

    Args:
        name: ``cpu``, ``cuda``, ``webgpu``, ``openvino`` or the short name of any other, or ORT's own name; case does not matter.

    Returns:
        ORT's own name.

    Raises:
        RuntimeFailure: ONNX Runtime is not installed, or has no such provider; the message lists those it has.
    """
    there = available_providers()
    wanted = name.strip().lower().removesuffix(_SUFFIX.lower())
    for provider in there:
        if short_name(provider) == wanted:
            return provider
    listed = ", ".join(sorted(short_name(provider) for provider in there))
    package = _PACKAGES.get(wanted)
    hint = f"{package} brings it; give it an environment of its own, since such packages replace each other" if package else None
    raise RuntimeFailure(f"the installed ONNX Runtime has no provider {name!r}; it has {listed}", hint=hint)


def device_memory(provider: str) -> str | None:
    """ORT's name of the device memory that values of a provider can be bound in and waited for; None for the host's.

    WebGPU has memory of its own, but a run with outputs left there returns before they are computed (measured with 1.27: after
    0.2 ms, where reading them then takes seconds), and nothing else waits for them.
    """
    return _MEMORY.get(short_name(provider))


def runs_on_host(provider: str) -> bool:
    """Whether a provider computes in the host's memory, so that there is no other to measure."""
    return short_name(provider) in _HOST


def writing_providers(providers: Sequence[str]) -> tuple[str, ...]:
    """Providers with which ORT writes the graph that it optimised: the given ones, or the CPU for one that compiles subgraphs.

    What such a provider makes of a graph ORT cannot write. It is given what the CPU would optimise further.
    """
    return (CPU,) if any(short_name(name) in _COMPILING for name in providers) else tuple(providers)


def exact_options(provider: str) -> dict[str, str]:
    """Options with which a provider keeps the precision of a model's types."""
    return dict(_EXACT.get(short_name(provider), {}))


def missing_device(provider: str) -> str:
    """Why a provider has nothing here to run on, so that nothing is to be measured; empty where nothing says so."""
    if device_memory(provider) != "cuda":
        return software_device(provider)
    try:
        return "" if _cuda_devices() else "this machine has no CUDA device"
    except OSError as error:
        return f"this machine has no CUDA: {error}"


def device_name(provider: str) -> str:
    """What a provider runs on, as the driver calls it; the provider's name where nobody can be asked."""
    if device_memory(provider) != "cuda":
        return short_name(provider)
    try:
        return ", ".join(_cuda_devices())
    except OSError:
        return short_name(provider)


def prepare(runtime: ModuleType, provider: str) -> None:
    """Load what a provider needs from where pip put it: CUDA and cuDNN of NVIDIA's packages."""
    preload = getattr(runtime, "preload_dlls", None)
    if device_memory(provider) == "cuda" and preload is not None:
        with contextlib.redirect_stdout(sys.stderr):  # it prints what it does not find
            preload()


def software_device(provider: str) -> str:
    """Why what a GPU provider runs on is no GPU but a program that acts as one; empty where nothing says so."""
    if short_name(provider) != "webgpu" or not sys.platform.startswith("linux"):
        return ""
    if not any(next(Path("/dev").glob(pattern), None) for pattern in _GPU_NODES):
        return "this machine has no GPU, and WebGPU runs on the CPU through a software driver"
    named = os.pathsep.join(os.environ.get(name, "") for name in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES"))
    drivers = [text for text in named.split(os.pathsep) if text]
    if drivers and all(_SOFTWARE.search(driver) for driver in drivers):
        return f"WebGPU runs on the CPU through the software driver {Path(drivers[0]).name}"
    return ""


def _cuda_devices() -> list[str]:
    """Names of the devices that the CUDA driver finds.

    Raises:
        OSError: there is no driver, or it fails.
    """
    driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")

    def call(name: str, *arguments: object) -> None:
        status = getattr(driver, name)(*arguments)
        if status:
            raise OSError(f"{name} returned {status}")

    count = ctypes.c_int()
    call("cuInit", 0)
    call("cuDeviceGetCount", ctypes.byref(count))
    names = []
    for number in range(count.value):
        text = ctypes.create_string_buffer(128)
        call("cuDeviceGetName", text, len(text), number)
        names.append(text.value.decode())
    return names
