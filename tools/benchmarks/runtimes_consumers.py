"""Runtimes other than ONNX Runtime's CPU provider: do they compute the same, and is a compiled model smaller in them too?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from inarch.tools.benchmarks.runtimes_envs import Unavailable, browser, has_nvidia_gpu, node_env, python_env, software_vulkan
from inarch.tools.benchmarks.runtimes_process import Held, run_job
from inarch.tools.benchmarks.runtimes_subjects import Subject, apart

HERE = Path(__file__).parent
FORMS = ("dense", "compiled")
SAME = 1e-4
"""Relative difference up to which outputs are the same; four times the model's own noise where that is more."""

OPENVINO_TIMES = 3
"""Its memory varies by up to 28 MB from run to run."""


@dataclass(frozen=True)
class Consumer:
    """A way to run a model.

    Attributes:
        key: short name.
        title: what the page calls it.
        runtime: the probe's loader; ``web`` for onnxruntime-web, empty for what cannot be had here.
        packages: of pip or npm; none for this environment.
        options: the probe's.
        frozen: whether it wants fixed sizes.
        vulkan: whether it runs shaders on software Vulkan.
        heap: whether the figure to compare is the WASM heap, which the page counts itself.
        times: how often it is run; the run that took the least memory counts, where they differ.
        missing: why it cannot be had, where that is known beforehand.
    """

    key: str
    title: str
    runtime: str
    packages: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    frozen: bool = False
    vulkan: bool = False
    heap: bool = False
    times: int = 1
    missing: str = ""


_OPENVINO = ("openvino", "numpy")
_WEB = ("onnxruntime-web", "puppeteer-core")
_NO_PACKING = {"session.disable_prepacking": "1"}
_WEBGPU = {"providers": ["WebGpuExecutionProvider", "CPUExecutionProvider"]}
_NO_GPU = "needs an NVIDIA GPU, and this machine has none"

CONSUMERS = (
    Consumer("ort", "ONNX Runtime, CPU", "onnxruntime"),
    Consumer("ort-frozen", "the same, sizes fixed", "onnxruntime", frozen=True),
    Consumer("ort-unpacked", "the same, `session.disable_prepacking`", "onnxruntime", options={"config": _NO_PACKING}),
    Consumer(
        "openvino",
        "OpenVINO, CPU, `INFERENCE_PRECISION_HINT: f32`",
        "openvino",
        _OPENVINO,
        {"config": {"INFERENCE_PRECISION_HINT": "f32"}},
        times=OPENVINO_TIMES,
    ),
    Consumer("openvino-default", "the same, default precision", "openvino", _OPENVINO, times=OPENVINO_TIMES),
    Consumer("tract", "tract, sizes fixed", "tract", ("tract", "numpy"), frozen=True),
    Consumer("web", "onnxruntime-web, WASM", "web", _WEB, {"provider": "wasm"}, heap=True),
    Consumer(
        "web-unpacked",
        "the same, `session.disable_prepacking`",
        "web",
        _WEB,
        {"provider": "wasm", "options": {"extra": {"session": {"disable_prepacking": "1"}}}},
        heap=True,
    ),
    Consumer("web-webgpu", "onnxruntime-web, WebGPU", "web", _WEB, {"provider": "webgpu"}, vulkan=True),
    Consumer("webgpu", "ONNX Runtime, WebGPU", "onnxruntime", ("onnxruntime-webgpu", "numpy"), _WEBGPU, vulkan=True),
    Consumer("cuda", "ONNX Runtime, CUDA", "", missing="" if has_nvidia_gpu() else _NO_GPU),
    Consumer("tensorrt", "TensorRT", "", missing="" if has_nvidia_gpu() else _NO_GPU),
)
"""CUDA is measured by ``make bench-models``; TensorRT is not measured by anything yet."""


@dataclass(frozen=True)
class Cell:
    """One form of one model in one runtime.

    Attributes:
        anonymous: bytes of anonymous memory that loading and one run added; for WASM the heap.
        loaded: the same before the run.
        rss: resident memory that was added.
        difference: from ONNX Runtime on CPU, see :func:`apart`.
        said: versions and the like.
    """

    anonymous: int
    loaded: int
    rss: int
    difference: float
    said: Mapping[str, Any]


def measure(consumer: Consumer, subject: Subject, form: str, envs: Path) -> Cell:
    """Run one form of a model in one runtime.

    Raises:
        Unavailable: the runtime cannot be had, or refuses the model.
    """
    if consumer.missing:
        raise Unavailable(consumer.missing)
    if not consumer.runtime:
        raise Unavailable("this benchmark does not run it")
    return min((_once(consumer, subject, form, envs) for _ in range(consumer.times)), key=lambda cell: cell.anonymous)


def _once(consumer: Consumer, subject: Subject, form: str, envs: Path) -> Cell:
    held = _web(consumer, subject, form, envs) if consumer.runtime == "web" else _python(consumer, subject, form, envs)
    ran, loaded = held.added("ran"), held.added("loaded")
    difference = apart(held.outputs, subject.outputs[form])
    if consumer.heap:
        return Cell(int(held.said["heap"]), int(held.said["heap"]), ran.rss, difference, held.said)
    return Cell(ran.anonymous, loaded.anonymous, ran.rss, difference, held.said)


def _python(consumer: Consumer, subject: Subject, form: str, envs: Path) -> Held:
    environ = {"OMP_NUM_THREADS": "1"} | (software_vulkan() | {"XDG_RUNTIME_DIR": str(envs)} if consumer.vulkan else {})
    # The folder may say "onnxruntime" for a package that goes by that name and is another.
    python = python_env(envs, consumer.packages[0] if consumer.packages else "", consumer.packages)
    work = subject.folder / "inputs.npz"
    named: Any = dict(subject.feeds)
    with work.open("wb") as file:
        np.savez(file, **named)
    model = subject.file(form, frozen=consumer.frozen).resolve()
    options = dict(consumer.options)
    if consumer.vulkan:
        options["profile"] = str((subject.folder / "profile").resolve())
    job = {
        "runtime": consumer.runtime,
        "models": [str(model)],
        "inputs": str(work.resolve()),
        "outputs": list(subject.outputs[form]),
        "options": options,
    }
    return run_job([str(python), "-P", str(HERE / "runtimes_probe.py")], job, environ=environ)


def _web(consumer: Consumer, subject: Subject, form: str, envs: Path) -> Held:
    folder = node_env(envs, "web", consumer.packages)
    program = browser()
    if program is None and consumer.vulkan:
        raise Unavailable("no browser: Debian's package chromium is one")
    model = subject.file(form, frozen=consumer.frozen).resolve()
    inputs = []
    for number, (name, array) in enumerate(subject.feeds.items()):
        file = subject.folder / f"input{number}.bin"
        array.tofile(file)
        inputs.append({"name": name, "type": str(array.dtype), "dims": list(array.shape), "file": str(file.resolve())})
    data = [{"path": place, "file": str(model.with_name(place))} for place in data_files(model)]
    job = {"model": str(model), "data": data, "inputs": inputs, "browser": program, "options": {}, **consumer.options}
    return run_job(["node", "--expose-gc", str(HERE / "runtimes_web.mjs")], job, cwd=folder)


def data_files(model: Path) -> list[str]:
    """Names of the data files beside a model."""
    tensors = onnx.load(model, load_external_data=False).graph.initializer
    places = (entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location")
    return list(dict.fromkeys(places))


def is_same(difference: float, noise: float) -> bool:
    """Whether outputs that lie this far apart are the same."""
    return difference <= max(SAME, 4 * noise)


def fall(dense: Cell, compiled: Cell, saved: int) -> float:
    """How much of the saved bytes memory fell by."""
    return (dense.anonymous - compiled.anonymous) / saved if saved else 0.0
