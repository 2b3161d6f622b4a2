"""The uniform planner: the same fraction of every axis goes; which units, their magnitude inside the site decides.

FFNs lose units, MSAs lose units inside their heads, the same count in each; an MSA whose heads cannot be narrowed (a frozen
axis, or no legal width between the whole and nothing) loses whole heads.
"""

from __future__ import annotations

from inarch.structure.planners.budget import Draft, Move


def deepest(move: Move) -> float:
    """How far the move's axis is pruned already: the least pruned axis of the model comes next."""
    return move.depth


def one_way(draft: Draft) -> None:
    """Leave one way of pruning to each MSA: inside heads where that is possible on every axis, else whole heads."""
    if draft.site.kind == "ffn":
        return
    offered = {axis for move in draft.moves() if not move.heads for axis in move.kept}
    if offered == set(draft.axes):
        draft.whole = False
    else:
        draft.inside = False
