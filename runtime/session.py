"""ONNX Runtime sessions: the only place that imports onnxruntime, and only when one is asked for."""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from inarch.structure.errors import RuntimeFailure

if TYPE_CHECKING:
    import onnxruntime as ort

Array = npt.NDArray[Any]
ModelLike = str | os.PathLike[str] | ir.Model
Optimisation = Literal["off", "basic", "extended", "all"]

MINIMUM_VERSION = (1, 21)
"""From here on a session keeps one packed copy of a weight that several nodes read; before, sharing shrinks the file alone."""

INLINE_LIMIT = 64 << 20
"""Bytes of tensors up to which a model in memory is written as one file; above, its tensors go beside it and are mapped."""


@dataclass(frozen=True)
class SessionOptions:
    """How to run a model.

    Attributes:
        optimisation: ORT's graph optimisation level.
        providers: execution providers, the wanted one first; CPU always catches what the others cannot run.
        threads: intra-op threads; 0 leaves it to ORT.
        optimised_path: where ORT writes the graph it really runs, with its tensors in ``<name>.data`` beside it.
        rests: whether the session's threads sleep once a run is over. ORT's spin on for a while instead, and take a core from
            whatever else runs: another session, when two are timed in turn.
    """

    optimisation: Optimisation = "all"
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    threads: int = 0
    optimised_path: Path | None = None
    rests: bool = False


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
    if _version(module.__version__) < MINIMUM_VERSION:
        warnings.warn(
            f"onnxruntime {module.__version__} computes the right thing, but packs a shared weight once a reader: "
            f"memory will not shrink before {'.'.join(map(str, MINIMUM_VERSION))}",
            stacklevel=2,
        )
    return module


class Session:
    """A loaded model. Use it as a context manager, or keep it; memory goes when it is dropped.

    Args:
        model: a path, or a model in memory (written to a temporary folder while it is loaded).
        options: how to run it.

    Raises:
        RuntimeFailure: ORT is missing, refuses the model, or falls back from the first provider.
    """

    def __init__(self, model: ModelLike, options: SessionOptions | None = None) -> None:
        self.options = options or SessionOptions()
        runtime = onnxruntime()
        self._errors = _error_types(runtime)
        with model_file(model) as path:
            self._session = _create(runtime, path, self.options, self._errors)
        self.inputs: tuple[str, ...] = tuple(item.name for item in self._session.get_inputs())
        self.outputs: tuple[str, ...] = tuple(item.name for item in self._session.get_outputs())

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run the model once.

        Args:
            feeds: input name -> array; names that the model does not have are left out.
            outputs: the outputs wanted; all of them by default.

        Returns:
            Output name -> array, tensors only. Elements of a sequence are named ``name[i]``.

        Raises:
            RuntimeFailure: ORT refused the inputs or failed, with its message.
        """
        names = list(self.outputs if outputs is None else outputs)
        try:
            results = self._session.run(names, {name: feeds[name] for name in self.inputs if name in feeds})
        except self._errors as error:
            shapes = ", ".join(f"{name} {list(feeds[name].shape)}" for name in self.inputs if name in feeds)
            raise RuntimeFailure(f"ONNX Runtime could not run the model on {shapes}: {short_message(error)}") from error
        flat: dict[str, Array] = {}
        for name, result in zip(names, results, strict=True):
            _flatten(name, result, flat)
        return flat

    def close(self) -> None:
        """Let go of the model's memory."""
        del self._session

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


@contextmanager
def model_file(model: ModelLike) -> Iterator[Path]:
    """The model as a file that ORT can load; one in memory is written to a temporary folder, big tensors beside it.

    Raises:
        RuntimeFailure: no such file, or no space for a temporary one.
    """
    if not isinstance(model, ir.Model):
        path = Path(model)
        if not path.is_file():
            raise RuntimeFailure("no such model file", where=str(path))
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="inarch-") as folder:
        path = Path(folder) / "model.onnx"
        size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
        try:
            if size > INLINE_LIMIT or any(_is_external(v.const_value) for v in model.graph.initializers.values()):
                ir.save(model, path, external_data="model.data", alignment=4096)
            else:
                ir.save(model, path)
        except OSError as error:
            reason = f"a temporary copy of the model cannot be written: {error.strerror or error}"
            raise RuntimeFailure(reason, where=folder, hint="TMPDIR names a folder with more space") from error
        yield path


def load(model: ModelLike) -> ir.Model:
    """The model as IR, tensors mapped; a model in memory is returned as it is.

    Raises:
        RuntimeFailure: the file cannot be read.
    """
    if isinstance(model, ir.Model):
        return model
    try:
        return ir.load(model)
    except Exception as error:  # onnx raises DecodeError, OSError, ValueError or KeyError, whatever is wrong with the file
        raise RuntimeFailure(f"cannot be read: {short_message(error)}", where=str(model)) from error


def short_message(error: BaseException) -> str:
    """The first two lines of an error's message, without the addresses and source lines that ORT puts before it."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error).strip())
    text = re.sub(r"/\S*?/(?=onnxruntime/)", "", text)
    return " ".join(text.splitlines()[:2])[:600]


def _create(
    runtime: ModuleType, path: Path, options: SessionOptions, errors: tuple[type[Exception], ...]
) -> ort.InferenceSession:
    settings = runtime.SessionOptions()
    settings.graph_optimization_level = {
        "off": runtime.GraphOptimizationLevel.ORT_DISABLE_ALL,
        "basic": runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        "extended": runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        "all": runtime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    }[options.optimisation]
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 4  # what ORT would print as an error is raised, and reported once
    if options.rests:
        settings.add_session_config_entry("session.force_spinning_stop", "1")
    if options.optimised_path is not None:
        settings.optimized_model_filepath = str(options.optimised_path)
        name = f"{options.optimised_path.name}.data"
        settings.add_session_config_entry("session.optimized_model_external_initializers_file_name", name)
        settings.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    wanted = list(options.providers)
    available = runtime.get_available_providers()
    missing = [name for name in wanted if name not in available]
    if missing:
        raise RuntimeFailure(
            f"this ONNX Runtime has no {missing[0]}; it has {', '.join(available)}", hint="install the package that brings it"
        )
    if "CPUExecutionProvider" not in wanted:
        wanted.append("CPUExecutionProvider")
    try:
        session: ort.InferenceSession = runtime.InferenceSession(str(path), settings, providers=wanted)
    except errors as error:
        message = short_message(error)
        lacking = "Could not find an implementation" in message
        hint = "fp16 and bf16 files are for GPUs: a CPU has no kernels for all of them" if lacking else None
        raise RuntimeFailure(f"ONNX Runtime refuses the model: {message}", where=str(path), hint=hint) from error
    active = session.get_providers()
    if wanted[0] not in active:
        raise RuntimeFailure(f"{wanted[0]} could not start and ONNX Runtime fell back to {', '.join(active)}", where=str(path))
    return session


def _error_types(runtime: ModuleType) -> tuple[type[Exception], ...]:
    """What ORT raises: its own exception types have no common base but Exception."""
    state = runtime.capi.onnxruntime_pybind11_state
    found = [item for item in vars(state).values() if isinstance(item, type) and issubclass(item, Exception)]
    return (*found, RuntimeError, ValueError)


def _flatten(name: str, result: object, into: dict[str, Array]) -> None:
    if isinstance(result, np.ndarray):
        into[name] = result
    elif isinstance(result, (list, tuple)):
        for i, item in enumerate(result):
            _flatten(f"{name}[{i}]", item, into)
    elif isinstance(result, Mapping):
        for key, item in result.items():
            _flatten(f"{name}[{key}]", item, into)
    elif result is not None:
        into[name] = np.asarray(result)


def _is_external(tensor: object) -> bool:
    return isinstance(tensor, ir.ExternalTensor)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])
