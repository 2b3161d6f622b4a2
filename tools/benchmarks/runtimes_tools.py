"""Tools that rewrite a model: is what was stored once still stored once, and computes it the same?"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from inarch.tools.benchmarks.runtimes_consumers import HERE, OPENVINO_TIMES
from inarch.tools.benchmarks.runtimes_envs import Unavailable, python_env
from inarch.tools.benchmarks.runtimes_process import Held, run_job
from inarch.tools.benchmarks.runtimes_subjects import Sharing, Subject, apart, sharing_of

COMMON = ("onnx", "onnxruntime", "onnxsim", "onnxslim", "onnxscript")
LIMIT = 1500.0
KEPT = 0.98
"""Part of the second readers that makes sharing kept: a tool may fold a small constant that had some."""


@dataclass(frozen=True)
class Tool:
    """A tool.

    Attributes:
        key: its name in ``runtimes_rewrite.py``.
        title: what the page calls it.
        packages: what its environment needs, the first one names it; none: this environment.
        reads: what runs its result.
        exact: whether it keeps the precision, so that outputs have to be the same.
        missing: why it is not tried.
    """

    key: str
    title: str
    packages: tuple[str, ...] = COMMON
    reads: str = "onnxruntime"
    exact: bool = True
    missing: str = ""


TOOLS = (
    Tool("onnx-save", "`onnx.load`, `onnx.save`"),
    Tool("onnx-ir-save", "`onnx_ir.load`, `onnx_ir.save`"),
    Tool("version-converter", "`onnx.version_converter`, to opset 21"),
    Tool("extract-model", "`onnx.utils.extract_model`, all of it"),
    Tool("onnxsim", "onnxsim"),
    Tool("onnxslim", "OnnxSlim"),
    Tool("onnxscript", "onnxscript.optimizer"),
    Tool("ort-save", "ONNX Runtime's optimised save, .onnx"),
    Tool("ort-packed", "the same, with packed weights"),
    Tool("ort-format", "ONNX Runtime's .ort format"),
    Tool("fixed-sizes", "ONNX Runtime's `make_dynamic_shape_fixed`"),
    Tool("transformers-fusion", "onnxruntime.transformers, fusion"),
    Tool("float16", "onnxruntime.transformers.float16", exact=False),
    Tool("quantize-dynamic", "`quantize_dynamic`, int8", exact=False),
    Tool("nncf", "NNCF `compress_weights`, int8", ("nncf", "onnx", "onnxruntime"), exact=False),
    Tool("olive-peephole", "Olive, `OnnxPeepholeOptimizer`", ("olive-ai", "torch==2.13.0", "requests", "onnxruntime")),
    Tool("openvino", "OpenVINO `save_model`", ("openvino", "numpy"), reads="openvino"),
    Tool(
        "optimum",
        "optimum `ORTOptimizer`",
        missing="takes only models of a transformers configuration; what it runs is onnxruntime.transformers, above",
    ),
)


@dataclass(frozen=True)
class Rewritten:
    """What a tool made of one model.

    Attributes:
        file_bytes: all files that it wrote.
        sharing: what the result shares; None for formats that are no ONNX.
        anonymous: bytes of anonymous memory that loading it and one run added.
        loaded: the same before the run.
        difference: from what the model computed before, see :func:`apart`.
        version: the tool's.
    """

    file_bytes: int
    sharing: Sharing | None
    anonymous: int
    loaded: int
    difference: float
    version: str


@dataclass(frozen=True)
class Row:
    """A tool on one subject.

    Attributes:
        tool: the tool.
        forms: ``dense`` and ``compiled`` -> the result.
        problems: the same -> why there is none.
    """

    tool: Tool
    forms: Mapping[str, Rewritten] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)


def rewrite(tool: Tool, subject: Subject, form: str, envs: Path) -> Rewritten:
    """Let a tool rewrite one form of a model, and look at the result; its files are removed.

    Raises:
        Unavailable: the tool cannot be had, or failed, or its result does not run.
    """
    if tool.missing:
        raise Unavailable(tool.missing)
    python = python_env(envs, "tools" if tool.packages == COMMON else "".join(tool.packages[:1]), tool.packages)
    folder = subject.folder / f"{tool.key}-{form}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "sizes.json").write_text(json.dumps(subject.sizes), encoding="utf-8")
    try:
        out = folder / ("model.ort" if tool.key == "ort-format" else "model.onnx")
        version = _start(python, tool.key, subject.file(form), out)
        result = out.with_suffix(".xml") if tool.reads == "openvino" else out
        sharing = sharing_of(out) if out.suffix == ".onnx" and out.exists() else None
        runner, times = (python, OPENVINO_TIMES) if tool.reads == "openvino" else (python_env(envs, "", ()), 1)
        runs = [_run(tool, subject, result, runner) for _ in range(times)]
        held = min(runs, key=lambda run: run.added("ran").anonymous)
        difference = apart(held.outputs, subject.outputs[form])
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != "sizes.json")
        return Rewritten(size, sharing, held.added("ran").anonymous, held.added("loaded").anonymous, difference, version)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(python: Path, tool: str, source: Path, out: Path) -> str:
    command = [str(python), "-P", str(HERE / "runtimes_rewrite.py"), tool, str(source), str(out)]
    environ = os.environ | {"OMP_NUM_THREADS": "1", "OLIVE_DISABLE_TELEMETRY": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"it took more than {LIMIT:.0f} s") from error
    lines = [line for line in (done.stderr if done.returncode else done.stdout).splitlines() if line.strip()]
    if done.returncode or not lines:
        raise Unavailable(lines[-1][:300] if lines else f"exit status {done.returncode}")
    return str(json.loads(lines[-1])["version"])


def _run(tool: Tool, subject: Subject, model: Path, python: Path) -> Held:
    inputs = subject.folder / "inputs.npz"
    named: Any = dict(subject.feeds)
    with inputs.open("wb") as file:
        np.savez(file, **named)
    options = {"config": {"INFERENCE_PRECISION_HINT": "f32"}} if tool.reads == "openvino" else {}
    job = {"runtime": tool.reads, "models": [str(model.resolve())], "inputs": str(inputs.resolve()), "options": options}
    return run_job([str(python), "-P", str(HERE / "runtimes_probe.py")], job, environ={"OMP_NUM_THREADS": "1"})


def keeps(row: Row, subject: Subject) -> str:
    """Whether the sharing is still there, in a word, from the graph; from the file's size where it is no ONNX."""
    compiled, dense = row.forms["compiled"], row.forms.get("dense")
    before = sharing_of(subject.compiled)
    if compiled.sharing is None:
        whole = dense.file_bytes if dense is not None else sharing_of(subject.dense).stored
        kept = compiled.file_bytes / whole <= 1.02 * before.stored / sharing_of(subject.dense).stored
        return "yes, by its size" if kept else "no"
    now = compiled.sharing
    if now.readers >= KEPT * before.readers:
        return "yes"
    return "no" if not now.readers else f"in part: {now.readers} of {before.readers} second readers"
