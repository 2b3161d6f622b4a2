"""Two sessions over the parts of one compiled model: how often are the weights that both read in memory?"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from inarch.runtime.bank import Bank, cut_points, write_bank
from inarch.runtime.memory import Footprint
from inarch.runtime.session import load
from inarch.tools.benchmarks.runtimes_consumers import HERE
from inarch.tools.benchmarks.runtimes_envs import python_env
from inarch.tools.benchmarks.runtimes_process import run_job
from inarch.tools.benchmarks.runtimes_subjects import Subject, apart

_OFF = {"session.disable_prepacking": "1"}


@dataclass(frozen=True)
class Way:
    """A way to have both parts in one process.

    Attributes:
        key, title: what it is called.
        files: ``whole``, ``plain`` (parts over one data file), ``packed`` (the same, packed), ``apart`` (each with its own data).
        config: session entries.
        given: whether the weights that both read are given with ``add_initializer``.
    """

    key: str
    title: str
    files: str
    config: Mapping[str, str]
    given: bool = False


WAYS = (
    Way("whole", "the whole model in one session", "whole", {}),
    Way("apart", "two sessions, each part with data of its own", "apart", {}),
    Way("plain", "two sessions over one data file", "plain", {}),
    Way("plain-given", "the same, shared weights given with `add_initializer`", "plain", {}, given=True),
    Way("apart-off", "each part with data of its own, prepacking off", "apart", _OFF),
    Way("apart-off-given", "the same, shared weights given with `add_initializer`", "apart", _OFF, given=True),
    Way("plain-off", "one data file, prepacking off", "plain", _OFF),
    Way("plain-off-given", "the same, shared weights given with `add_initializer`", "plain", _OFF, given=True),
    Way("packed", "two sessions over one packed bank (`write_bank`)", "packed", {}),
)


@dataclass(frozen=True)
class Split:
    """How a model is cut in two.

    Attributes:
        parts: part -> its outputs.
        at: values that it is cut at.
    """

    parts: Mapping[str, Sequence[str]]
    at: tuple[str, ...]


def find_split(path: Path) -> Split:
    """The text part and the rest: cut at the deepest value that the text alone decides and that the rest reads.

    Text inputs are those of integers, or the first input where none are. Towers that do not meet are told by their outputs'
    names.
    """
    graph = load(path).graph
    texts = [value.name or "" for value in graph.inputs if value.dtype is not None and value.dtype.is_integer()]
    points = cut_points(path, texts or [graph.inputs[0].name or ""])
    outputs = [value.name or "" for value in graph.outputs]
    if points:
        return Split({"text": [points[0].name], "rest": outputs}, (points[0].name,))
    alone = [name for name in outputs if name.startswith("text")]
    return Split({"text": alone, "rest": [name for name in outputs if name not in alone]}, ())


@dataclass(frozen=True)
class Banked:
    """One way, measured.

    Attributes:
        loaded, ran: what the process holds more than before it loaded.
        file_bytes: of all model and data files.
        difference: from the whole model's outputs, see :func:`apart`.
    """

    loaded: Footprint
    ran: Footprint
    file_bytes: int
    difference: float

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        return asdict(self)


def measure(way: Way, subject: Subject, folder: Path) -> tuple[Banked, Bank]:
    """Load and run both parts in one process; the files are removed again.

    Raises:
        Unavailable: the process failed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    split = find_split(subject.compiled)
    try:
        bank = write_bank(subject.compiled, split.parts, folder / "bank", at=split.at, packed=way.files == "packed")
        models = [subject.compiled] if way.files == "whole" else list(bank.parts.values())
        if way.files == "apart":
            models = [_alone(path, folder / f"alone-{path.stem}") for path in models]
        given = _given(models, bank.shared) if way.given else {}
        inputs = folder / "inputs.npz"
        named: Any = dict(subject.feeds)
        with inputs.open("wb") as file:
            np.savez(file, **named)
        job = {
            "runtime": "onnxruntime",
            "models": [str(path.resolve()) for path in models],
            "inputs": str(inputs.resolve()),
            "options": {"config": dict(way.config), "initializers": given},
        }
        held = run_job([str(python_env(folder, "", ())), "-P", str(HERE / "runtimes_probe.py")], job)
        difference = apart(held.outputs, subject.outputs["compiled"])
        size = sum(
            path.stat().st_size for model in {path.parent for path in models} for path in model.glob("*") if path.is_file()
        )
        if way.files == "whole":
            size = subject.compiled.stat().st_size + sum(t.stat().st_size for t in _data(subject.compiled))
        return Banked(held.added("loaded"), held.added("ran"), size, difference), bank
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _alone(part: Path, folder: Path) -> Path:
    """A part with data of its own, as two exports leave them."""
    folder.mkdir()
    target = folder / part.name
    ir.save(
        load(part), target, external_data=f"{part.stem}.data", size_threshold_bytes=1024, alignment=4096, align_threshold=65536
    )
    return target


def _data(model: Path) -> list[Path]:
    tensors = onnx.load(model, load_external_data=False).graph.initializer
    names = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    return [model.with_name(name) for name in sorted(names)]


def _given(models: Sequence[Path], shared: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Model -> where the shared weights lie in the first model's data file; each of them is mapped once and given to both."""
    places = {}
    first, *others = models
    for tensor in onnx.load(first, load_external_data=False).graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if tensor.name in shared and "location" in entries:
            places[tensor.name] = {
                "name": tensor.name,
                "file": str(first.with_name(entries["location"]).resolve()),
                "offset": int(entries.get("offset", 0)),
                "dtype": np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).name,
                "shape": list(tensor.dims),
            }
    return {str(model.resolve()): list(places.values()) for model in (first, *others)}
