"""The order of the passes, and the verifier before the first and after each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from inarch.compiler.verifier import signature, verify_model
from inarch.passes.prune import Prune
from inarch.passes.refresh_shapes import RefreshShapes
from inarch.passes.remove_dead import RemoveDead
from inarch.passes.rewrite import Workpiece
from inarch.passes.share import Share
from inarch.passes.strip_traces import StripTraces
from inarch.structure.errors import PassError

Progress = Callable[[str, int, int], None]
"""Called with a step's name, what is done and what there is."""


def passes_for(work: Workpiece) -> list[ir.passes.InPlacePass]:
    """The passes that carry out a lowered plan, in order."""
    return [StripTraces(), Prune(work), Share(work), RemoveDead(), RefreshShapes()]


def run_pipeline(model: ir.Model, passes: Sequence[ir.passes.InPlacePass], progress: Progress | None = None) -> bool:
    """Run passes over a model in place.

    Args:
        model: changed in place; its inputs and outputs stay as they are.
        passes: in order.
        progress: told before every pass.

    Returns:
        Whether any pass changed it.

    Raises:
        PassError: a pass refused, or left an invalid model behind; ``where`` names the pass and the node.
    """
    expect = signature(model)
    verify_model(model, shapes=False)
    modified = False
    for i, step in enumerate(passes):
        name = str(getattr(step, "name", type(step).__name__))
        if progress is not None:
            progress(name, i, len(passes))
        try:
            result = step(model)
        except ir.passes.PassError as error:
            raise PassError(str(error), where=name) from error
        modified = modified or result.modified
        # Shapes are stale until the last pass has made them anew.
        verify_model(model, name, expect=expect, shapes=i == len(passes) - 1)
    if progress is not None:
        progress("passes", len(passes), len(passes))
    return modified
