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

import numpy as np
import onnxruntime


def snapshot() -> dict[str, int]:
    """Bytes of this process now: ``anonymous``, ``rss``, ``pss``, after freed memory was given back to the system."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    wanted = {"Anonymous": "anonymous", "Rss": "rss", "Pss": "pss"}
    found = {}
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
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # start VmHWM afresh, after the imports
    before = snapshot()
    try:
        session = onnxruntime.InferenceSession(arguments.model, options, providers=arguments.providers.split(","))
        loaded = snapshot()
        session.run(None, feeds)
    except Exception as error:  # ORT's exceptions have no base of their own
        sys.stderr.write(f"{error}\n")
        return 1
    result = {"before": before, "loaded": loaded, "ran": snapshot(), "peak_rss": peak_rss()}
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
