"""Memory of a model in a process of its own.

*Anonymous* memory is what the process alone holds and the system cannot drop: the figure that sharing is to shrink. RSS also
counts mapped pages of the model's file, PSS divides what processes share. Before "loaded" and "ran" are read, freed memory is
given back with ``malloc_trim``, since an allocator's left-overs are no memory of the model. Needs Linux (``/proc``). On CUDA the
driver is asked for the device's memory as well.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from inarch.runtime.binding import is_narrow
from inarch.runtime.inputs import Case
from inarch.runtime.providers import CPU, onnxruntime, runs_on_host, short_name
from inarch.runtime.session import ModelLike, model_file, short_message
from inarch.structure.errors import RuntimeFailure

_INTERVAL = 0.005


@dataclass(frozen=True)
class Footprint:
    """Bytes of a process at one moment.

    Attributes:
        anonymous: private memory that is no file's page.
        rss: resident memory.
        pss: resident memory, what is shared with other processes divided among them.
        device: memory of the GPU that is in use, by whomever; None where the model runs on none, or it cannot be asked.
    """

    anonymous: int
    rss: int
    pss: int
    device: int | None = None


@dataclass(frozen=True)
class MemoryReport:
    """Memory of one model.

    Attributes:
        before: with Python, numpy and ORT imported, no model yet.
        loaded: after the session was made, freed memory given back.
        ran: after the first run, freed memory given back.
        peak_anonymous: the most anonymous memory that was seen, sampled every 5 ms from outside.
        peak_rss: the most resident memory, as the kernel counted it; it contains mapped pages of the file.
        threads: intra-op threads.
        case: name of the inputs.
        device_unknown: why a GPU's memory is not known; empty where it is, or where there is no GPU.
    """

    before: Footprint
    loaded: Footprint
    ran: Footprint
    peak_anonymous: int
    peak_rss: int
    threads: int
    case: str
    device_unknown: str = ""

    @property
    def model_anonymous(self) -> int:
        """Anonymous bytes that loading the model added: the figure to compare models by."""
        return self.loaded.anonymous - self.before.anonymous

    @property
    def model_device(self) -> int | None:
        """The same of a GPU's memory; the libraries that compute there are in it, alike for all models."""
        if self.loaded.device is None or self.before.device is None:
            return None
        return self.loaded.device - self.before.device

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        return {**asdict(self), "model_anonymous": self.model_anonymous, "model_device": self.model_device}


def measure_memory(
    model: ModelLike,
    case: Case,
    *,
    threads: int = 1,
    providers: Sequence[str] = (CPU,),
    timeout: float = 600.0,
) -> MemoryReport:
    """Load and run a model in a fresh process.

    Args:
        model: the model; one in memory is written to a temporary folder first.
        case: the inputs of the one run.
        threads: intra-op threads.
        providers: execution providers.
        timeout: seconds after which the process is ended.

    Raises:
        RuntimeFailure: no ``/proc``, ORT refuses the model or the inputs, or the time is up.
    """
    onnxruntime()
    if not Path("/proc/self/smaps_rollup").exists():
        raise RuntimeFailure("memory can only be measured on Linux", hint="it needs /proc/self/smaps_rollup")
    probe = Path(__file__).with_name("memory_probe.py")
    with model_file(model) as path, tempfile.TemporaryDirectory(prefix="inarch-") as folder:
        inputs = Path(folder) / "inputs.npz"
        with inputs.open("wb") as file:
            _write_npz(file, case)
        # -P: the script's own folder must not come before the standard library's on the search path.
        command = [sys.executable, "-P", str(probe), str(path), str(inputs), "--threads", str(threads)]
        command += ["--providers", ",".join(providers)]
        with (Path(folder) / "out").open("w+") as out, (Path(folder) / "err").open("w+") as err:
            with subprocess.Popen(command, stdout=out, stderr=err) as process:
                peak = _watch(process, timeout)
            text, message = _read(out), _read(err)
    if process.returncode != 0:
        raise RuntimeFailure(
            f"the model could not be measured: {short_message(RuntimeError(message)) or f'exit status {process.returncode}'}"
        )
    record = json.loads(text.splitlines()[-1])
    stages = {name: Footprint(**record[name]) for name in ("before", "loaded", "ran")}
    peak = max(peak, *(stage.anonymous for stage in stages.values()))
    unknown = record["device_unknown"]
    if not unknown and stages["loaded"].device is None and not runs_on_host(providers[0]):
        unknown = f"{short_name(providers[0])} does not tell what memory it takes"
    return MemoryReport(
        **stages,
        peak_anonymous=peak,
        peak_rss=max(record["peak_rss"], stages["ran"].rss),
        threads=threads,
        case=case.name,
        device_unknown=unknown,
    )


def _watch(process: subprocess.Popen[bytes], timeout: float) -> int:
    """Sample a process's anonymous memory until it ends; the most that was seen, in bytes."""
    rollup = Path(f"/proc/{process.pid}/smaps_rollup")
    deadline = time.monotonic() + timeout
    most = 0
    while process.poll() is None:
        if time.monotonic() > deadline:
            process.kill()
            raise RuntimeFailure(f"the model did not load and run within {timeout:.0f} s")
        try:
            for line in rollup.read_text().splitlines():
                if line.startswith("Anonymous:"):
                    most = max(most, int(line.split()[1]) * 1024)
        except OSError:
            break  # it has just ended
        time.sleep(_INTERVAL)
    process.wait()
    return most


def _write_npz(file: IO[bytes], case: Case) -> None:
    # Not through savez, whose own argument is called "file", as an input may be.
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in case.feeds.items():
            with archive.open(f"{name}.npy", "w") as member:
                bits = array.view(np.uint16) if is_narrow(array) else array
                np.lib.format.write_array(member, np.ascontiguousarray(bits))


def _read(file: IO[str]) -> str:
    file.flush()
    file.seek(0)
    return file.read()
