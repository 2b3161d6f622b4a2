"""The magnitude planner: what weighs least for the parameters that it saves goes first, across the whole model."""

from __future__ import annotations

from inarch.structure.planners.budget import Move


def weakest(move: Move) -> float:
    """Relative energy lost per parameter saved: FFN units, units inside heads and whole heads compete in it."""
    return move.cost / move.saving
