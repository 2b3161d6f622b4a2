"""The passes by name. Each is an onnx_ir pass; a name is loaded when it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

import onnx_ir as ir

_PASSES: dict[str, tuple[str, str]] = {
    "strip-traces": ("inarch.passes.strip_traces", "StripTraces"),
    "prune": ("inarch.passes.prune", "Prune"),
    "share": ("inarch.passes.share", "Share"),
    "remove-dead": ("inarch.passes.remove_dead", "RemoveDead"),
    "refresh-shapes": ("inarch.passes.refresh_shapes", "RefreshShapes"),
}
"""Name -> (module, class), in the order in which compiling runs them."""


@dataclass(frozen=True)
class PassInfo:
    """A pass for people.

    Attributes:
        name: its name.
        summary: the first line of its docstring.
    """

    name: str
    summary: str


def load(name: str) -> type[ir.passes.PassBase]:
    """The class of a pass.

    Raises:
        KeyError: there is no such pass.
    """
    module, attribute = _PASSES[name]
    found: type[ir.passes.PassBase] = getattr(import_module(module), attribute)
    return found


def available() -> list[PassInfo]:
    """All passes, in the order in which compiling runs them."""
    return [PassInfo(name, (load(name).__doc__ or "").strip().splitlines()[0]) for name in _PASSES]
