"""The uniform planner: the same fraction of every axis goes; which units, their magnitude inside the site decides.

FFNs lose units. MSAs of many heads lose whole heads, which takes scores, softmax and transposes along with the parameters; an
MSA of few heads, where one is too large a step, or whose heads cannot go, loses units inside its heads, the same count in each.
"""

from __future__ import annotations

from inarch.structure.planners.budget import Draft, Move


def deepest(move: Move) -> float:
    """How far the move's axis is pruned already: the least pruned axis of the model comes next."""
    return move.depth


MANY = 12
"""Heads, from which on one of them is a fine enough step."""


def one_way(draft: Draft) -> None:
    """Leave one way of pruning to each MSA: whole heads where it has many, else inside heads where every axis allows it."""
    if draft.site.kind == "ffn":
        return
    moves = list(draft.moves())
    inside = {axis for move in moves if not move.heads for axis in move.kept} == set(draft.axes)
    whole = any(move.heads for move in moves)
    if inside and not (whole and draft.site.heads >= MANY):
        draft.whole = False
    else:
        draft.inside = False
