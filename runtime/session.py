"""ONNX Runtime sessions: a model, loaded and run."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from inarch.frontends.mapped import map_external
from inarch.runtime.binding import BFLOAT16, Binding, run_values
from inarch.runtime.providers import CPU, device_memory, exact_options, onnxruntime, prepare
from inarch.structure.errors import RuntimeFailure

if TYPE_CHECKING:
    import onnxruntime as ort

Array = npt.NDArray[Any]
ModelLike = str | os.PathLike[str] | ir.Model
Optimisation = Literal["off", "basic", "extended", "all"]

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
        exact: whether products keep the precision of their type where a provider would round more by default (TF32 on CUDA, bf16
            and fp16 on OpenVINO): for what is compared with something, not for what is timed as users run it.
        profile: where ORT writes what ran and where, a path to begin the file's name with; :meth:`Session.end_profile` ends it.
        packs: whether ORT lays weights out anew for its kernels, as it does by default. A profile leaves those out.
        rests: whether the session's threads sleep once a run is over. ORT's spin on for a while instead, and take a core from
            whatever else runs: another session, when two are timed in turn.
    """

    optimisation: Optimisation = "all"
    providers: tuple[str, ...] = (CPU,)
    threads: int = 0
    optimised_path: Path | None = None
    rests: bool = False
    exact: bool = False
    profile: Path | None = None
    packs: bool = True


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
        self._runtime = onnxruntime()
        self._errors = _error_types(self._runtime)
        with model_file(model) as path:
            self._session = _create(self._runtime, path, self.options, self._errors)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self.inputs: tuple[str, ...] = tuple(item.name for item in inputs)
        self.outputs: tuple[str, ...] = tuple(item.name for item in outputs)
        self._narrow = any(item.type == BFLOAT16 for item in (*inputs, *outputs))

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
        given = self._given(feeds)
        try:
            if self._narrow:
                return named(names, run_values(self._runtime, self._session, names, given))
            return named(names, self._session.run(names, given))
        except self._errors as error:
            raise self._refused(given, error) from error

    def bind(self, feeds: Mapping[str, Array]) -> Binding:
        """Stand inputs ready for many runs, on the device where the first provider has memory of its own.

        Args:
            feeds: as for :meth:`run`.

        Returns:
            What runs them; close it before the session, or use it as a context manager. It raises what ORT raises.

        Raises:
            RuntimeFailure: ORT refused the inputs.
        """
        given = self._given(feeds)
        try:
            return Binding(self._runtime, self._session, given, device_memory(self.options.providers[0]))
        except self._errors as error:
            raise self._refused(given, error) from error

    def end_profile(self) -> Path:
        """Write what ran since the session was made.

        Raises:
            RuntimeFailure: none was asked for.
        """
        if self.options.profile is None:
            raise RuntimeFailure("the session has no profile")
        return Path(self._session.end_profiling())

    def _given(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {name: feeds[name] for name in self.inputs if name in feeds}

    def _refused(self, given: Mapping[str, Array], error: Exception) -> RuntimeFailure:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in given.items())
        return RuntimeFailure(f"ONNX Runtime could not run the model on {shapes}: {short_message(error)}")

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
        loaded = ir.load(model)
        map_external(loaded)
        return loaded
    except FileNotFoundError as error:
        raise RuntimeFailure("there is no such file", where=str(error.filename or model)) from error
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
    if options.profile is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(options.profile)
    if not options.packs:
        settings.add_session_config_entry("session.disable_prepacking", "1")
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
    if CPU not in wanted:
        wanted.append(CPU)
    prepare(runtime, wanted[0])
    settled = [exact_options(name) if options.exact else {} for name in wanted]
    try:
        # Without ORT's own fallback, which prints to stdout and goes on with the CPU.
        session: ort.InferenceSession = runtime.InferenceSession(
            str(path), settings, providers=wanted, provider_options=settled, enable_fallback=0
        )
    except errors as error:
        message = short_message(error)
        lacking = "Could not find an implementation" in message
        hint = "fp16 and bf16 files are for GPUs: a CPU has no kernels for all of them" if lacking else None
        on = "" if wanted[0] == CPU else f" on {wanted[0]}"
        raise RuntimeFailure(f"ONNX Runtime refuses the model{on}: {message}", where=str(path), hint=hint) from error
    active = session.get_providers()
    if wanted[0] not in active:
        message = f"{wanted[0]} could not start and ONNX Runtime fell back to {', '.join(active)}"
        raise RuntimeFailure(
            message, where=str(path), hint="it prints the reason to stderr; its libraries or its device may be missing"
        )
    return session


def _error_types(runtime: ModuleType) -> tuple[type[Exception], ...]:
    """What ORT raises: its own exception types have no common base but Exception."""
    state = runtime.capi.onnxruntime_pybind11_state
    found = [item for item in vars(state).values() if isinstance(item, type) and issubclass(item, Exception)]
    return (*found, RuntimeError, ValueError)


def named(names: Sequence[str], results: Sequence[object]) -> dict[str, Array]:
    """Results by name; elements of a sequence are named ``name[i]``, and what is no tensor is left out."""
    flat: dict[str, Array] = {}
    for name, result in zip(names, results, strict=True):
        _flatten(name, result, flat)
    return flat


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
