"""The models: MDETR and GLIP, their configurations, checkpoints and export. Names are imported when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inarch.learning.models.checkpoints import load_checkpoint
    from inarch.learning.models.export import export_model
    from inarch.learning.models.registry import PRESETS, build, preset

__all__ = ["PRESETS", "build", "export_model", "load_checkpoint", "preset"]

_HOME = {"load_checkpoint": "checkpoints", "export_model": "export"}


def __getattr__(name: str) -> object:
    """Import a public name from the module it lives in.

    Raises:
        AttributeError: there is no such name.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME.get(name, 'registry')}"), name)
