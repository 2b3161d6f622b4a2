"""What commands that train or export need beside inarch: refused early, with what to install."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from inarch.structure.errors import InarchError


def needs(packages: Sequence[str], what: str, extra: str) -> None:
    """Refuse where a package is missing.

    Raises:
        InarchError: it names the first that is, and the extra that brings it.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise InarchError(f"{what} needs {package}", hint=f"pip install 'inarch[{extra}]'")


def needs_export() -> None:
    """Exporting.

    Raises:
        InarchError: see :func:`needs`.
    """
    needs(("torch", "transformers", "onnxscript"), "exporting", "torch")


def needs_learning() -> None:
    """Learning.

    Raises:
        InarchError: see :func:`needs`.
    """
    needs(("torch", "transformers", "onnxscript", "accelerate", "safetensors", "matplotlib"), "learning", "learn")
