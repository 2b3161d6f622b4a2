"""The pairs of models, dense and compiled, that other runtimes are tried on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from inarch.api import compile as compile_model
from inarch.api import make_plan
from inarch.runtime.freeze import freeze_shapes
from inarch.runtime.inputs import make_cases
from inarch.runtime.session import Session, SessionOptions, load
from inarch.runtime.sharing import tensor_bytes
from inarch.tools.benchmarks.twin import TwinEncoders

Array = npt.NDArray[Any]
SMALL = TwinEncoders(layers=2, width=256, heads=4, hidden=1024)
KEEP = 0.63
DENSE = ("dense/model.onnx", "two_tower.onnx")
"""Where a demo leaves its dense model: ``inarch demo``, ``inarch demo towers``."""


@dataclass(frozen=True)
class Sharing:
    """What a file shares.

    Attributes:
        tensors: matrices with more than one reader.
        readers: their readers beyond the first.
        stored: bytes of all tensors.
    """

    tensors: int
    readers: int
    stored: int


def sharing_of(path: Path) -> Sharing:
    """What an ONNX file shares, read from the graph alone, so that it can be held against what a tool makes of it."""
    model = load(path)
    matrices = (
        value
        for value in model.graph.initializers.values()
        if value.shape is not None and len(value.shape) >= 2 and min(value.shape.numpy()) > 1
    )
    readers = [count for value in matrices if (count := _readers(value)) > 1]
    return Sharing(len(readers), sum(count - 1 for count in readers), tensor_bytes(model))


def _readers(value: ir.Value) -> int:
    """Nodes that read a weight, seen through what only gives it another type."""
    uses = list(value.uses())
    if len(uses) == 1 and uses[0].node.op_type in ("DequantizeLinear", "Cast") and uses[0].idx == 0:
        return _readers(uses[0].node.outputs[0])
    return len(uses)


@dataclass(frozen=True)
class Subject:
    """A dense model and what it was compiled to.

    Attributes:
        name: what it is called.
        dense, compiled: the files.
        folder: where frozen forms are written.
    """

    name: str
    dense: Path
    compiled: Path
    folder: Path

    def file(self, form: str, *, frozen: bool = False) -> Path:
        """The ``dense`` or ``compiled`` model; frozen: with the sizes of :attr:`feeds` fixed."""
        path = self.dense if form == "dense" else self.compiled
        if not frozen:
            return path
        out = self.folder / f"{self.name}.{form}.frozen.onnx"
        if not out.exists() or out.stat().st_mtime_ns < path.stat().st_mtime_ns:
            freeze_shapes(path, self.sizes, out)
        return out

    @cached_property
    def feeds(self) -> Mapping[str, Array]:
        """Inputs of the smallest sizes that the dense model accepts."""
        with Session(self.dense) as session:
            cases = make_cases(load(self.dense), session).cases
        return min(cases, key=lambda case: sum(array.size for array in case.feeds.values())).feeds

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Symbol of an input's shape -> its size in :attr:`feeds`."""
        found: dict[str, int] = {}
        for value in load(self.dense).graph.inputs:
            for dim, size in zip(value.shape or (), self.feeds[value.name or ""].shape, strict=True):
                if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                    found[str(dim.value)] = size
        return found

    @cached_property
    def outputs(self) -> Mapping[str, Mapping[str, Array]]:
        """Form -> what ONNX Runtime computes on CPU, optimised."""
        return {form: self._run(form, SessionOptions()) for form in ("dense", "compiled")}

    @cached_property
    def noise(self) -> float:
        """How far ONNX Runtime's own optimisation moves the compiled model's outputs, relative as in :func:`apart`."""
        return apart(self._run("compiled", SessionOptions(optimisation="off")), self.outputs["compiled"])

    @cached_property
    def saved(self) -> int:
        """Bytes of tensors that compiling saved."""
        return sharing_of(self.dense).stored - sharing_of(self.compiled).stored

    def _run(self, form: str, options: SessionOptions) -> dict[str, Array]:
        with Session(self.file(form), options) as session:
            return session.run(self.feeds)


def apart(found: Mapping[str, Array], right: Mapping[str, Array]) -> float:
    """The largest difference of any output over the largest magnitude of that output; infinite where one is missing."""
    worst = 0.0
    for name, array in right.items():
        other = found.get(name)
        if other is None or other.shape != array.shape:
            return math.inf
        wide, exact = np.asarray(other, np.float64), np.asarray(array, np.float64)
        both = np.isfinite(exact)
        if not np.array_equal(both, np.isfinite(wide)):
            return math.inf
        scale = max(float(np.abs(exact[both]).max(initial=0)), 1e-6)
        worst = max(worst, float(np.abs(wide[both] - exact[both]).max(initial=0)) / scale)
    return worst


def find_subjects(out: Path, demo: Path) -> list[Subject]:
    """The demo's pair, or a small pair that is made where there was no demo; and MDETR's where ``make bench-models`` left it."""
    work = out / "runtimes"
    work.mkdir(parents=True, exist_ok=True)
    dense = next((demo / name for name in DENSE if (demo / name).exists()), None)
    if dense is not None and (demo / "compiled.onnx").exists():
        subjects = [Subject("demo", dense, demo / "compiled.onnx", work)]
    else:
        subjects = [make_small(work)]
    big = out / "mdetr-vit-b.onnx", out / "mdetr-vit-b.compiled.onnx"
    if all(path.exists() for path in big):
        subjects.append(Subject("mdetr-vit-b", *big, work))
    return subjects


def make_small(folder: Path, model: TwinEncoders = SMALL) -> Subject:
    """A two-tower model with random weights, pruned and shared by a planner."""
    dense, compiled = model.save(folder), folder / "small.compiled.onnx"
    compile_model(dense, make_plan(dense, keep=KEEP, method="similarity"), compiled)
    return Subject("small", dense, compiled, folder)


def names(subjects: Sequence[Subject]) -> str:
    """Their names in one line."""
    return ", ".join(subject.name for subject in subjects)
