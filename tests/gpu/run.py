"""``make test-gpu``: find a Vulkan driver, and run the tests marked ``gpu`` on ONNX Runtime's WebGPU provider over it.

A real GPU is used where the machine has one. Else the Vulkan driver that Chromium ships, SwiftShader, computes the same shaders
on the CPU: what is proved is that they are right, not that they are fast. Mesa's software driver is not used: Dawn refuses it.
``INARCH_GPU`` names another provider, which needs no Vulkan.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

LOADER = "libvulkan.so.1"
DRIVER = "vk_swiftshader_icd.json"
FOLDERS = (
    "/usr/lib/chromium",
    "/usr/lib/chromium-browser",
    "/usr/lib64/chromium-browser",
    "/opt/google/chrome",
    "~/.cache/ms-playwright/chromium-*/chrome-linux*",
)
"""Where Chromium is, by package, as Chrome, and as playwright installs it."""

MISSING = f"""no Vulkan driver to test WebGPU with: this machine has no GPU, and {DRIVER} is in none of
  {", ".join(FOLDERS)}.
Install Chromium, whose software driver is enough (apt-get install chromium libvulkan1),
or name a driver's file in VK_DRIVER_FILES."""

NO_LOADER = f"""no Vulkan loader: {LOADER} is not there. apt-get install libvulkan1"""


class Unready(Exception):
    """What is missing, and what to install."""


def folders(patterns: Sequence[str] = FOLDERS) -> list[Path]:
    """The folders that exist."""
    found: list[Path] = []
    for pattern in patterns:
        path = Path(pattern).expanduser()
        found += [item for item in sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor)))) if item.is_dir()]
    return found


def has_gpu(devices: Path = Path("/dev")) -> bool:
    """Whether the machine has a device that a Vulkan driver could be for."""
    return any(next(devices.glob(pattern), None) for pattern in ("dri/renderD*", "nvidia[0-9]*", "dxg"))


def environment(given: Mapping[str, str], places: Sequence[Path], *, gpu: bool, loader: bool) -> dict[str, str]:
    """The variables under which WebGPU finds a driver.

    Args:
        given: the variables that are set.
        places: folders in which Chromium may be.
        gpu: whether there is a GPU, whose driver the loader finds by itself.
        loader: whether the system has a Vulkan loader.

    Raises:
        Unready: there is no driver or no loader.
    """
    wanted = dict(given)
    named = wanted.get("VK_DRIVER_FILES") or wanted.get("VK_ICD_FILENAMES")
    if not named and not gpu:
        drivers = [place / DRIVER for place in places if (place / DRIVER).is_file()]
        if not drivers:
            raise Unready(MISSING)
        # The older name too: loaders before 1.3.207 know no other.
        wanted["VK_DRIVER_FILES"] = wanted["VK_ICD_FILENAMES"] = str(drivers[0])
    if not loader:
        beside = [place for place in places if (place / LOADER).is_file()]
        if not beside:
            raise Unready(NO_LOADER)
        wanted["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, (str(beside[0]), wanted.get("LD_LIBRARY_PATH", ""))))
    wanted.setdefault("XDG_RUNTIME_DIR", "/tmp")
    return wanted


def has_loader() -> bool:
    """Whether the system has a Vulkan loader."""
    try:
        ctypes.CDLL(LOADER)
    except OSError:
        return False
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Become pytest, with its arguments; 2 where something is missing."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    variables = dict(os.environ)
    try:
        if variables.get("INARCH_GPU", "webgpu") == "webgpu":
            variables = environment(os.environ, folders(), gpu=has_gpu(), loader=has_loader())
    except Unready as error:
        sys.stderr.write(f"{error}\n")
        return 2
    named = any(Path(argument.partition("::")[0]).exists() for argument in arguments)
    command = [sys.executable, "-m", "pytest", "-m", "gpu", *arguments, *([] if named else ["tests/gpu"])]
    os.execve(sys.executable, command, variables)


if __name__ == "__main__":
    sys.exit(main())
