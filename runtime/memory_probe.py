"""The process that :mod:`inarch.runtime.memory` measures: it loads one model, runs it, and prints what it holds.

It is started as a script and imports numpy and onnxruntime alone, so that nothing of inarch is in the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

CUDA = "CUDAExecutionProvider"
BFLOAT16 = "tensor(bfloat16)"


class DeviceMemory:
    """Memory of the first CUDA device, asked of its driver: what ORT alone brings has no way to ask for it.

    The figure is the device's and not the process's, so other processes have to keep still.
    """

    def __init__(self) -> None:
        self.why_not = ""
        try:
            self._driver: Any = ctypes.CDLL("libcuda.so.1")
            device, context = ctypes.c_int(), ctypes.c_void_p()
            self._call("cuInit", 0)
            self._call("cuDeviceGet", ctypes.byref(device), 0)
            # The context that the runtime uses too, so that its own memory is there before a model is.
            self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
            self._call("cuCtxSetCurrent", context)
        except OSError as error:
            self.why_not = f"the driver cannot be asked: {error}"

    def used(self) -> int | None:
        """Bytes in use on the device; None where it cannot be asked."""
        if self.why_not:
            return None
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return total.value - free.value

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._driver, name)(*arguments)
        if status:
            raise OSError(f"{name} returned {status}")


def snapshot(device: DeviceMemory | None = None) -> dict[str, int | None]:
    """Bytes of this process now: ``anonymous``, ``rss``, ``pss``, after freed memory was given back, and ``device``."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    wanted = {"Anonymous": "anonymous", "Rss": "rss", "Pss": "pss"}
    found: dict[str, int | None] = {"device": device.used() if device is not None else None}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        key, _, rest = line.partition(":")
        if key in wanted:
            found[wanted[key]] = int(rest.split()[0]) * 1024
    return found


def peak_rss() -> int:
    """The largest RSS so far, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def run(session: onnxruntime.InferenceSession, feeds: dict[str, npt.NDArray[Any]]) -> None:
    """Run once. What numpy has no type for came by its bits, and stays in ORT's hands."""
    types = {item.name: item.type for item in (*session.get_inputs(), *session.get_outputs())}
    if BFLOAT16 not in types.values():
        session.run(None, feeds)
        return
    make = onnxruntime.OrtValue
    values = {
        name: make.ortvalue_from_numpy_with_onnx_type(array, 16) if types[name] == BFLOAT16 else make.ortvalue_from_numpy(array)
        for name, array in feeds.items()
    }
    session.run_with_ort_values(None, values)


def main() -> int:
    """Print one JSON line; on failure the message on stderr, exit status 1."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("inputs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--providers", default="CPUExecutionProvider")
    arguments = parser.parse_args()
    with np.load(arguments.inputs) as archive:
        feeds = {name: archive[name] for name in archive.files}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    providers = arguments.providers.split(",")
    device = DeviceMemory() if providers[0] == CUDA else None
    if device is not None:
        # Else weights lie in an arena that grows by doubling, and a smaller model may take as much as a larger one.
        if hasattr(onnxruntime, "preload_dlls"):
            with contextlib.redirect_stdout(sys.stderr):
                onnxruntime.preload_dlls()
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # start VmHWM afresh, after the imports
    before = snapshot(device)
    try:
        session = onnxruntime.InferenceSession(arguments.model, options, providers=providers, enable_fallback=0)
        if providers[0] not in session.get_providers():
            raise RuntimeError(f"{providers[0]} could not start")
        loaded = snapshot(device)
        run(session, feeds)
    except Exception as error:  # ORT's exceptions have no base of their own
        sys.stderr.write(f"{error}\n")
        return 1
    result = {"before": before, "loaded": loaded, "ran": snapshot(device), "peak_rss": peak_rss()}
    result["device_unknown"] = device.why_not if device is not None else ""
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
