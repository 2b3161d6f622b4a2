"""Environments of their own for other runtimes, since ONNX Runtime's packages replace each other and tools pin what they like."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path


class Unavailable(Exception):
    """A runtime or tool that cannot be had here; the message says why, and is what the page says."""


def python_env(folder: Path, name: str, packages: Sequence[str]) -> Path:
    """The Python of an environment with these packages, made where it is not there; none named: this process's own.

    Raises:
        Unavailable: pip could not install them.
    """
    if not packages:
        return Path(sys.executable)
    place = folder / name
    python = place / "bin" / "python"
    if not _is_ready(place, packages):
        venv.create(place, clear=True, with_pip=True)
        _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages], place)
        _mark(place, packages)
    return python


def node_env(folder: Path, name: str, packages: Sequence[str]) -> Path:
    """A folder with these npm packages in ``node_modules``.

    Raises:
        Unavailable: there is no Node, or npm could not install them.
    """
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise Unavailable("Node is not installed")
    place = folder / name
    if not _is_ready(place, packages):
        place.mkdir(parents=True, exist_ok=True)
        (place / "package.json").write_text('{"private": true}\n', encoding="utf-8")
        _run(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *packages], place)
        _mark(place, packages)
    return place


def browser() -> str | None:
    """Path of a Chromium, or None."""
    return next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)


def software_vulkan() -> dict[str, str]:
    """What lets a program find Chromium's software Vulkan driver.

    Raises:
        Unavailable: the driver or Vulkan's loader is not installed.
    """
    driver = Path("/usr/lib/chromium/vk_swiftshader_icd.json")
    if not driver.exists():
        raise Unavailable("no software Vulkan driver: Debian's package chromium brings one")
    if not any(Path("/usr/lib").glob("*/libvulkan.so.1")):
        raise Unavailable("no Vulkan loader: Debian's package libvulkan1 brings it")
    return {"VK_ICD_FILENAMES": str(driver), "VK_DRIVER_FILES": str(driver)}


def has_nvidia_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU."""
    return any(Path("/dev").glob("nvidia[0-9]*"))


def _is_ready(place: Path, packages: Sequence[str]) -> bool:
    marker = place / ".ready"
    return marker.exists() and marker.read_text(encoding="utf-8").split() == list(packages)


def _mark(place: Path, packages: Sequence[str]) -> None:
    (place / ".ready").write_text("\n".join(packages) + "\n", encoding="utf-8")


def _run(command: Sequence[str], place: Path) -> None:
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or [f"exit status {done.returncode}"]
        raise Unavailable(f"{Path(command[0]).name} could not install it: {lines[0][:200]}")
