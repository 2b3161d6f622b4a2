"""What a deployed model takes and gives, and whether a task fits it; a model of fixed sizes or of fp16 is run all the same."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from inarch.runtime.accuracy import Arrays, Model
from inarch.runtime.session import ModelLike, Session, load
from inarch.structure.errors import RuntimeFailure

Sizes = tuple[int | str, ...] | None
"""Sizes of a tensor: numbers, or names of those that may change; None where even their count is not known."""


@dataclass(frozen=True)
class Face:
    """A model's inputs and outputs.

    Attributes:
        name: of the model, for messages.
        inputs: input -> its element type and sizes, those left out that have a default.
        outputs: output -> its sizes.
    """

    name: str
    inputs: Mapping[str, tuple[ir.DataType | None, Sizes]]
    outputs: Mapping[str, Sizes]

    def size(self, name: str, axis: int) -> int | None:
        """The fixed size of an input's axis, or None."""
        sizes = self.inputs[name][1] if name in self.inputs else None
        found = sizes[axis] if sizes is not None and -len(sizes) <= axis < len(sizes) else None
        return found if isinstance(found, int) else None

    def multiples(self, name: str) -> tuple[int, ...]:
        """What an input's sizes are multiples of where their names say so: 16 for ``16*height``; 1 for all others."""
        sizes = (self.inputs[name][1] if name in self.inputs else None) or (1,)
        return tuple(int(found[1]) if (found := re.match(r"(\d+)\*", str(size))) else 1 for size in sizes)

    @property
    def batch(self) -> int | None:
        """How many samples it takes at a time, where that is fixed."""
        fixed = {self.size(name, 0) for name in self.inputs}
        return fixed.pop() if len(fixed) == 1 else None


def face_of(model: ModelLike, name: str) -> Face:
    """Read a model's inputs and outputs.

    Raises:
        RuntimeFailure: the file cannot be read.
    """
    graph = load(model).graph
    inputs = {str(value.name): (value.dtype, _sizes(value)) for value in graph.inputs if not value.is_initializer()}
    return Face(name, inputs, {str(value.name): _sizes(value) for value in graph.outputs})


def _sizes(value: ir.Value) -> Sizes:
    if value.shape is None:
        return None
    return tuple(size if isinstance(size, int) else str(size.value or "?") for size in value.shape)


def check_fit(face: Face, feeds: Arrays, outputs: Collection[str], task: str, optional: Collection[str] = ()) -> None:
    """Refuse a model that a task does not fit.

    Args:
        face: of the model.
        feeds: what the task gives, for a sample or some.
        outputs: what the task reads.
        task: its name.
        optional: what of ``feeds`` the model may do without.

    Raises:
        RuntimeFailure: the model takes something else, or gives something else; it names the first that does not fit.
    """
    for name, (dtype, sizes) in face.inputs.items():
        if name not in feeds:
            raise _misfit(face, f"the model's input {name!r} is nothing that {task} gives", feeds)
        shape, array = feeds[name].shape, feeds[name]
        if sizes is not None and not _takes(sizes, shape):
            wanted = ", ".join(map(str, sizes))
            raise _misfit(face, f"the model's input {name!r} has the sizes [{wanted}], and {task} gives {list(shape)}", None)
        if dtype is not None and _family(dtype.numpy()) != _family(array.dtype):
            raise _misfit(face, f"the model's input {name!r} is {dtype.name.lower()}, and {task} gives {array.dtype}", None)
    missing = next((name for name in feeds if name not in face.inputs and name not in optional), None)
    if missing is not None:
        raise _misfit(face, f"{task} gives {missing!r}, which is no input of the model", face.inputs)
    absent = next((name for name in outputs if name not in face.outputs), None)
    if absent is not None:
        raise _misfit(face, f"{task} reads the output {absent!r}, which the model does not have", face.outputs)


def _misfit(face: Face, message: str, there: Iterable[str] | None) -> RuntimeFailure:
    hint = None if there is None else f"there are {', '.join(there)}"
    return RuntimeFailure(message, where=face.name, hint=hint)


def _takes(sizes: tuple[int | str, ...], shape: tuple[int, ...]) -> bool:
    """Whether arrays of this shape fit, but for their number of samples."""
    pairs = zip(sizes[1:], shape[1:], strict=False)
    return len(sizes) == len(shape) and all(have == want or not isinstance(want, int) for want, have in pairs)


def _family(dtype: np.dtype[Any]) -> str:
    return "i" if dtype.kind in "iu" else "f" if dtype.name == "bfloat16" else dtype.kind


def fitted(face: Face, feeds: Arrays) -> Arrays:
    """What a task gives as the model takes it: in its types, without what it does not take, and filled up to a fixed batch."""
    given = {}
    for name, (dtype, _) in face.inputs.items():
        array = np.asarray(feeds[name])
        if face.batch is not None and len(array) < face.batch:
            array = _filled(array, face.batch)
        given[name] = array if dtype is None else array.astype(dtype.numpy())
    return given


def runner(session: Session, face: Face, outputs: Iterable[str]) -> Model:
    """A session as a task calls it: see :func:`fitted`; outputs come back in fp32 at least, a row for each sample.

    Args:
        session: the loaded model.
        face: of the same.
        outputs: those that the task reads.
    """
    names = list(outputs)

    def run(feeds: Arrays) -> Arrays:
        count = len(next(iter(feeds.values())))
        return {name: _wide(array)[:count] for name, array in session.run(fitted(face, feeds), names).items()}

    return run


def _filled(array: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    return np.concatenate([array, np.repeat(array[-1:], count - len(array), 0)])


def _wide(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array.astype(np.float32) if _family(array.dtype) == "f" and array.dtype.itemsize < 4 else array
