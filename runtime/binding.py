"""Arrays on their way into a session and out of it, where numpy alone does not do: another device's memory, and bf16."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

if TYPE_CHECKING:
    import onnxruntime as ort

Array = npt.NDArray[Any]

BFLOAT16 = "tensor(bfloat16)"
"""ORT's name of the type."""

_BFLOAT16 = int(ir.DataType.BFLOAT16)


class Binding:
    """Inputs that stand ready for many runs, and outputs that stay where they are computed.

    In a device's memory nothing is copied between runs, and a run ends when the device is done. A provider that keeps its
    memory to itself, or that cannot be waited for without reading what it computed (WebGPU), gets inputs and outputs in the
    host's memory: it copies them in every run, and the copy of the outputs is what is waited for.

    Args:
        runtime: onnxruntime.
        session: the loaded model.
        feeds: its inputs.
        memory: ORT's name of the device memory, or None for the host's.
    """

    def __init__(
        self, runtime: ModuleType, session: ort.InferenceSession, feeds: Mapping[str, Array], memory: str | None
    ) -> None:
        # The order is that of their end: bound values must not outlive the session that owns the device.
        self._binding: ort.IOBinding = session.io_binding()
        self._values = {name: to_value(runtime, array, memory) for name, array in feeds.items()}
        self._session = session
        for name, value in self._values.items():
            self._binding.bind_ortvalue_input(name, value)
        for output in session.get_outputs():
            # bf16 is read by its address, so it has to be the host's.
            self._binding.bind_output(output.name, "cpu" if memory is None or output.type == BFLOAT16 else memory)
        self._binding.synchronize_inputs()

    def run(self) -> None:
        """Run once, and wait until the outputs are there."""
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()

    def outputs(self) -> list[object]:
        """What the last run computed, in the model's order, as numpy arrays where it is tensors."""
        values = self._binding.get_outputs()
        if any(_is_narrow(value) for value in values):
            return [to_numpy(value) for value in values]
        return list(self._binding.copy_outputs_to_cpu())

    def close(self) -> None:
        """Let go of the bound memory, before the session is closed."""
        self._binding.clear_binding_inputs()
        self._binding.clear_binding_outputs()
        del self._binding, self._values, self._session

    def __enter__(self) -> Binding:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


def is_narrow(array: Array) -> bool:
    """Whether numpy knows the type only through ml_dtypes, so that ORT does not take the array as it is."""
    return array.dtype.name == "bfloat16"


def to_value(runtime: ModuleType, array: Array, memory: str | None = None) -> ort.OrtValue:
    """An array in ORT's hands, in the host's memory or a device's."""
    array = np.ascontiguousarray(array)
    if is_narrow(array):  # by its bits; ORT copies it to the device when it runs
        return runtime.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), _BFLOAT16)
    return runtime.OrtValue.ortvalue_from_numpy(array, memory or "cpu", 0)


def to_numpy(value: ort.OrtValue) -> object:
    """What ORT computed as an array; a sequence or a map as ORT gives it."""
    if not _is_narrow(value):
        return value.numpy()
    shape = tuple(value.shape())
    bits = np.frombuffer(ctypes.string_at(value.data_ptr(), 2 * int(np.prod(shape))), np.uint16)
    return bits.view(ir.DataType.BFLOAT16.numpy()).reshape(shape)


def run_values(
    runtime: ModuleType, session: ort.InferenceSession, names: Sequence[str], feeds: Mapping[str, Array]
) -> list[object]:
    """Like the session's ``run``, with bf16 among inputs or outputs."""
    values = session.run_with_ort_values(list(names), {name: to_value(runtime, array) for name, array in feeds.items()})
    return [to_numpy(value) for value in values]


def _is_narrow(value: ort.OrtValue) -> bool:
    return bool(value.is_tensor()) and value.element_type() == _BFLOAT16
