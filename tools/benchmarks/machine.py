"""What a measurement was taken on, and where measurements that are to be kept go."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path

from inarch.structure.files import whole
from inarch.tools.render import plain

PACKAGES = ("inarch", "numpy", "onnx", "onnx-ir", "onnxruntime")


def describe() -> dict[str, object]:
    """Processor, cores this process may use, memory, load, system and versions. No names of machines or people."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": ", ".join(f"{name} {version}" for name in PACKAGES if (version := _version(name))),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def record(folder: Path, name: str, data: Mapping[str, object], text: str) -> tuple[Path, Path]:
    """Write a measurement as ``NAME.json`` and ``NAME.md``, each whole or not at all.

    Returns:
        The two paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for suffix, content in ((".json", json.dumps(plain(data), indent=2, ensure_ascii=False) + "\n"), (".md", text)):
        path = folder / f"{name}{suffix}"
        with whole(path) as draft:
            draft.write_text(content, encoding="utf-8")
        written.append(path)
    return written[0], written[1]


def _cpu_model() -> str:
    """The processor's name as the kernel gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    fields = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in fields if key.strip() == "model name"), "unknown")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
