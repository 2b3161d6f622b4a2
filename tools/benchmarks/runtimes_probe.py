"""The process that :mod:`inarch.tools.benchmarks.runtimes_process` measures: it loads a model in one runtime and runs it.

It is started as a script by the Python of an environment that has that runtime and numpy, and imports nothing of inarch. A job is
a JSON file::

    {"runtime": "openvino", "models": ["model.onnx"], "inputs": "inputs.npz", "outputs": [names], "out": "outputs.npz",
     "options": {...}}

Of several models, each is run in turn, and what one computes is given to the next. At each stage it prints one line of JSON and
waits for a line on stdin, so that what the process holds can be looked at from outside.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]
Job = Mapping[str, Any]
Run = Callable[[Arrays], Arrays]
Facts = Callable[[], dict[str, Any]]


def load_onnxruntime(job: Job, feeds: Arrays) -> tuple[Run, Facts]:
    """Sessions; options: ``providers``, ``config`` entries, ``profile`` to count nodes, ``initializers`` that are given."""
    ort = import_module("onnxruntime")
    options = job["options"]
    kept: list[Any] = []
    values: dict[str, Any] = {}

    def session(path: str) -> Any:
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = settings.inter_op_num_threads = 1
        settings.log_severity_level = 4
        for key, value in options.get("config", {}).items():
            settings.add_session_config_entry(key, value)
        if "profile" in options:
            settings.enable_profiling = True
            settings.profile_file_prefix = options["profile"]
        for given in options.get("initializers", {}).get(path, ()):
            if (key := json.dumps(given)) not in values:
                place = {"offset": given["offset"], "shape": tuple(given["shape"])}
                mapped = np.memmap(given["file"], given["dtype"], "r", **place)
                values[key] = ort.OrtValue.ortvalue_from_numpy(np.asarray(mapped))
                kept.extend((mapped, values[key]))
            settings.add_initializer(given["name"], values[key])
        made = ort.InferenceSession(path, settings, providers=options.get("providers", ["CPUExecutionProvider"]))
        wanted = options.get("providers", ["CPUExecutionProvider"])[0]
        if wanted not in made.get_providers():
            raise RuntimeError(f"{wanted} could not start, and ONNX Runtime fell back to {', '.join(made.get_providers())}")
        return made

    sessions = [session(path) for path in job["models"]]

    def run(feeds: Arrays) -> Arrays:
        found: Arrays = {}
        for made in sessions:
            names = [item.name for item in made.get_outputs()]
            given = {item.name: (feeds | found)[item.name] for item in made.get_inputs()}
            found |= dict(zip(names, made.run(names, given), strict=True))
        return found

    def facts() -> dict[str, Any]:
        nodes: dict[str, int] = {}
        kept.clear()  # not before: a session does not keep alive what it was given
        if "profile" in options:
            for made in sessions:
                for event in json.loads(Path(made.end_profiling()).read_text(encoding="utf-8")):
                    provider = event.get("args", {}).get("provider")
                    if provider and event["name"].endswith("_kernel_time"):
                        nodes[provider] = nodes.get(provider, 0) + 1
        return {"version": f"onnxruntime {ort.__version__}", "nodes": nodes}

    return run, facts


def load_openvino(job: Job, feeds: Arrays) -> tuple[Run, Facts]:
    """A compiled model on CPU; options: ``config``."""
    ov = import_module("openvino")
    core = ov.Core()
    compiled = core.compile_model(job["models"][0], "CPU", {"INFERENCE_NUM_THREADS": 1, **job["options"].get("config", {})})
    request = compiled.create_infer_request()

    def run(feeds: Arrays) -> Arrays:
        # A port has all the names of the values that OpenVINO made one.
        given = {port: feeds[name] for port in compiled.inputs for name in port.get_names() if name in feeds}
        result = request.infer(given)
        return {name: np.array(result[port]) for port in compiled.outputs for name in port.get_names()}

    return run, lambda: {"version": f"openvino {ov.__version__.split('-')[0]}"}


def load_tract(job: Job, feeds: Arrays) -> tuple[Run, Facts]:
    """A runnable of tract, for inputs of the sizes that are given: it does not resize by a size that it does not know."""
    tract = import_module("tract")
    model = tract.onnx().load(job["models"][0])
    inputs = [model.input_name(i) for i in range(model.input_count())]
    kinds = {"float32": "f32", "int64": "i64", "bool": "bool"}
    for i, name in enumerate(inputs):
        sizes = ",".join(map(str, feeds[name].shape))
        model.set_input_fact(i, f"{sizes},{kinds[str(feeds[name].dtype)]}")
    runnable = model.into_model().into_runnable()

    def run(feeds: Arrays) -> Arrays:
        results = runnable.run([np.ascontiguousarray(feeds[name]) for name in inputs])
        return {name: np.array(value.to_numpy()) for name, value in zip(job["outputs"], results, strict=True)}

    return run, lambda: {"version": f"tract {import_module('importlib.metadata').version('tract')}"}


LOADERS: Mapping[str, Callable[[Job, Arrays], tuple[Run, Facts]]] = {
    "onnxruntime": load_onnxruntime,
    "openvino": load_openvino,
    "tract": load_tract,
}


def stage(name: str, **facts: object) -> None:
    """Say where the process is, and wait; freed memory is given back to the system first."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    sys.stdout.write(json.dumps({"stage": name, **facts}) + "\n")
    sys.stdout.flush()
    if name != "done":
        sys.stdin.readline()


def main() -> int:
    """Do one job; on failure the message on stderr, exit status 1."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    with np.load(job["inputs"]) as archive:
        feeds = {name: archive[name] for name in archive.files}
    import_module(job["runtime"])
    stage("before")
    try:
        run, facts = LOADERS[job["runtime"]](job, feeds)
        stage("loaded")
        outputs = run(feeds)
    except Exception as error:  # whatever a runtime raises
        sys.stderr.write(f"{type(error).__name__}: {error}".split("Stack backtrace")[0].strip() + "\n")
        return 1
    stage("ran")
    named: Any = outputs  # numpy's own types would have them be its options
    with Path(job["out"]).open("wb") as file:
        np.savez(file, **named)
    stage("done", **facts())
    return 0


if __name__ == "__main__":
    sys.exit(main())
