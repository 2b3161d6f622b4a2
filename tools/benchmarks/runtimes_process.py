"""A model in another runtime, in processes of its own: what they hold at each stage, and what the model computes.

The process is a script (``runtimes_probe.py`` in Python, ``runtimes_web.mjs`` in Node) that stops at each stage until it is told
to go on. Its memory and that of all its descendants (a browser has several) is read from outside meanwhile. Needs Linux.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inarch.runtime.memory import Footprint
from inarch.tools.benchmarks.runtimes_envs import Unavailable

Array = npt.NDArray[Any]
STAGES = ("before", "loaded", "ran")


@dataclass(frozen=True)
class Held:
    """One run of one model.

    Attributes:
        stages: ``before``, ``loaded``, ``ran`` -> memory of the processes.
        said: what the process told: versions and the like.
        outputs: what the model computed.
    """

    stages: Mapping[str, Footprint]
    said: Mapping[str, Any]
    outputs: Mapping[str, Array]

    def added(self, stage: str) -> Footprint:
        """What was added since the inputs were there and the runtime was imported."""
        before, now = self.stages["before"], self.stages[stage]
        return Footprint(now.anonymous - before.anonymous, now.rss - before.rss, now.pss - before.pss)

    def to_json(self) -> dict[str, Any]:
        """Everything but the outputs, as plain JSON types."""
        return {"said": dict(self.said), "stages": {name: asdict(held) for name, held in self.stages.items()}}


def run_job(
    command: Sequence[str],
    job: Mapping[str, Any],
    *,
    cwd: Path | None = None,
    environ: Mapping[str, str] | None = None,
    limit: float = 1800,
) -> Held:
    """Start a process on a job, look at its memory at each stage, and read its outputs.

    Args:
        command: what to start; the job's file is put at its end.
        job: without ``out``.
        cwd: the folder to start it in.
        environ: variables to set beside this process's own.
        limit: seconds.

    Raises:
        Unavailable: it failed, or took too long; the message is its own.
    """
    with tempfile.TemporaryDirectory(prefix="inarch-") as name, tempfile.TemporaryFile("w+") as errors:
        folder = Path(name)
        web = command[0] == "node"
        file = folder / "job.json"
        file.write_text(json.dumps({**job, "out": str(folder if web else folder / "outputs.npz")}), encoding="utf-8")
        stages: dict[str, Footprint] = {}
        said: dict[str, Any] = {}
        with subprocess.Popen(
            [*command, str(file)],
            cwd=cwd,
            env=os.environ | dict(environ or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process:
            stop = threading.Timer(limit, process.kill)
            stop.start()
            try:
                for line in process.stdout or ():
                    told = _message(line)
                    if told is None:
                        continue
                    stage = told.pop("stage")
                    pid = told.pop("pid", process.pid)
                    said |= told
                    if stage in STAGES:
                        stages[stage] = footprint(pid)
                        if process.stdin is not None:
                            process.stdin.write("\n")
                            process.stdin.flush()
            finally:
                stop.cancel()
        if process.returncode or set(stages) != set(STAGES):
            errors.seek(0)
            raise Unavailable(_reason(errors.read(), process.returncode))
        outputs = _read_web(said.pop("outputs")) if web else _read_npz(folder / "outputs.npz")
    return Held(stages, said, outputs)


def footprint(pid: int) -> Footprint:
    """Memory of a process and its descendants; what two of them share counts in each, but for its PSS."""
    total = {"Anonymous": 0, "Rss": 0, "Pss": 0}
    for process in _family(pid):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8").splitlines()
        except OSError:
            continue  # it has just ended
        for line in lines:
            key, _, rest = line.partition(":")
            if key in total:
                total[key] += int(rest.split()[0]) * 1024
    return Footprint(total["Anonymous"], total["Rss"], total["Pss"])


def _family(pid: int) -> Iterator[int]:
    yield pid
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = path.read_text(encoding="utf-8").split()
        except OSError:
            continue
        for child in children:
            yield from _family(int(child))


def _message(line: str) -> dict[str, Any] | None:
    """A stage's line; None for what a runtime prints by itself."""
    try:
        told = json.loads(line)
    except json.JSONDecodeError:
        return None
    return told if isinstance(told, dict) and "stage" in told else None


def _reason(errors: str, status: int) -> str:
    if status < 0:
        return f"it was ended by signal {-status}: too slow, or out of memory"
    lines = [line.strip() for line in errors.splitlines() if line.strip() and not line.startswith("    at ")]
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Fail)\w*: ", line)]
    return ([*lines, *raised] or [f"exit status {status}"])[-1][:300]


def _read_npz(path: Path) -> dict[str, Array]:
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


def _read_web(items: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
    return {item["name"]: np.fromfile(item["file"], item["type"]).reshape(item["dims"]) for item in items}
