"""A command as a whole process: how long it took, and how much memory."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_INTERVAL = 0.005


@dataclass(frozen=True)
class Watched:
    """A command that succeeded.

    Attributes:
        seconds: wall time, from start to end of the process.
        anonymous: most anonymous memory that was seen, in bytes; what is mapped from files does not count.
        resident: most resident memory, in bytes.
        output: what it printed.
    """

    seconds: float
    anonymous: int
    resident: int
    output: str


def watch(command: Sequence[str], accept: Sequence[int] = (0,)) -> Watched:
    """Run a command to its end.

    Args:
        command: program and arguments.
        accept: exit codes that are no failure.

    Raises:
        SystemExit: it failed.
    """
    anonymous = resident = 0
    started = time.perf_counter()
    with tempfile.TemporaryFile() as out, subprocess.Popen(command, stdout=out) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            for line in status.read_text(encoding="utf-8").splitlines():
                if line.startswith("RssAnon:"):
                    anonymous = max(anonymous, int(line.split()[1]) * 1024)
                elif line.startswith("VmHWM:"):
                    resident = int(line.split()[1]) * 1024
            time.sleep(_INTERVAL)
        seconds = time.perf_counter() - started
        out.seek(0)
        output = out.read().decode()
    if process.returncode not in accept:
        raise SystemExit(f"the command failed with exit code {process.returncode}: {' '.join(command)}\n{output}")
    return Watched(seconds, anonymous, resident, output)
