"""From logits to a plan: the structure at exactly the budget, as the lowering stores it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from pydantic import JsonValue
from torch import Tensor

from inarch.learning.gates import Floats, GateSpace, Hard
from inarch.structure.errors import InarchError
from inarch.structure.lowering import lower
from inarch.structure.plan import Plan
from inarch.structure.resolve import build_plan, resolve
from inarch.structure.sites import SiteTable

TOLERANCE = 0.03
"""How far from the budget, in parts of the whole model, a structure may end; steps of a small model are coarse."""

SHUT = 1e4
"""How far a logit is from 0 that nothing moves back."""

_REACH = "allow pruning or more sharing, or ask for what can be reached"

CLOSE = 0.0002
"""How near to the budget, in parts of the whole model, is near enough to look no further."""


NEAR = 0.01
"""How near to the budget, in parts of the whole model, heads and what is shared stay as learned."""


@dataclass(frozen=True, eq=False)
class Hardened:
    """A structure and its plan.

    Attributes:
        hard: the structure.
        plan: the same as a plan.
        planned, stored: parameters of the whole model, as the plan counts them and as the compiled file holds them.
        table: the model's sites.
    """

    hard: Hard
    plan: Plan
    planned: int
    stored: int
    table: SiteTable


def harden(
    space: GateSpace,
    logits: Tensor,
    keep: float,
    name: str,
    provenance: Mapping[str, JsonValue],
    finish: Callable[[Hard], Hard] | None = None,
) -> Hardened:
    """Find the structure whose stored count is nearest to the budget.

    One offset is added to the logits of keeping, and bisected; where nothing may be pruned, to those of sharing; where that does
    not come near the budget, to those of heads too, and at last, the other way, to those of sharing.

    Args:
        space: the gates.
        logits: [L], without noise.
        keep: fraction of the whole model's parameters.
        name: the model's name.
        provenance: goes into the plan.
        finish: what is done to a structure before it is counted.

    Raises:
        InarchError: no offset comes near the budget.
    """
    start = logits.detach().cpu().numpy().astype(np.float32)
    target = keep * space.table.parameters
    best: Hardened | None = None
    seen: dict[bytes, int] = {}

    def above(offset: Floats) -> bool:
        """Whether the structure at an offset, one number a logit, stores too much; the best one is kept."""
        nonlocal best
        hard = space.project(start + offset)[0]
        label = b"".join(np.packbits(mask).tobytes() for masks in (hard.keep, hard.share) for mask in masks.values())
        if label in seen:  # near the end the same few come again and again, and a plan takes long to count
            return seen[label] > target
        found = as_plan(space, hard if finish is None else finish(hard), name, provenance)
        seen[label] = found.stored
        if best is None or abs(found.stored - target) < abs(best.stored - target):
            best = found
        return found.stored > target

    def off() -> float:
        return 1.0 if best is None else abs(best.stored - target) / space.table.parameters

    for lever in (budget_lever(space), budget_lever(space, heads=True), budget_lever(space, heads=True, sharing=True)):
        low, high = -40.0, 40.0
        for _ in range(24):
            if off() <= CLOSE:
                break
            middle = (low + high) / 2
            low, high = (low, middle) if above(middle * lever) else (middle, high)
        # Logits that are all but equal tip over together: let only the first so many of them do.
        first, last = 0, space.logits
        while last - first > 1 and off() > CLOSE:
            cut = (first + last) // 2
            offset = np.where(np.arange(space.logits) < cut, np.float32(low), np.float32(high)).astype(np.float32)
            first, last = (cut, last) if above(offset * lever) else (first, cut)
        if off() <= NEAR:
            break
    assert best is not None
    if off() > TOLERANCE:
        reached = best.stored / space.table.parameters
        raise InarchError(
            f"the nearest structure to {keep:.4g} keeps {reached:.4f} of the model",
            where="--keep",
            hint=_REACH,
        )
    return best


def refuse_unreachable(space: GateSpace, keep: float, name: str, *, filled: bool) -> None:
    """Refuse a budget that no logits can meet, before anything is trained for it.

    Args:
        space: the gates.
        keep: fraction of the whole model's parameters.
        name: the model's name.
        filled: whether sharing comes from what pruning leaves, and not from gates.

    Raises:
        InarchError: the smallest structure that there is stores more.
    """
    logits = np.full(space.logits, -SHUT if filled else SHUT, np.float32)
    lever = budget_lever(space, heads=True)
    logits[lever != 0] = -SHUT * lever[lever != 0]
    for group in space.groups:
        if group.logits is not None and not space.prune:
            logits[group.logits] = SHUT
    smallest = _stored(space, logits, name)
    if smallest > keep + TOLERANCE:
        raise InarchError(
            f"{keep:.4g} is out of reach: the smallest structure keeps {smallest:.4f} of the model",
            where="structure.keep",
            hint=_REACH,
        )

    largest = _stored(space, np.full(space.logits, SHUT, np.float32), name) if space.tied else 1.0
    if largest < keep - TOLERANCE:
        raise InarchError(
            f"{keep:.4g} is out of reach: with all shared that is tied, the model keeps {largest:.4f}",
            where="structure.keep",
            hint="ask for less, or let fewer layers share",
        )


def _stored(space: GateSpace, logits: Floats, name: str) -> float:
    """The part of the model that logits keep."""
    return as_plan(space, space.project(logits)[0], name, {}).stored / space.table.parameters


def budget_lever(space: GateSpace, *, heads: bool = False, sharing: bool = False) -> Floats:
    """What one number is added to, to store more or less: [L], 1 or -1 where a logit moves with it, 0 where it stays.

    Logits of keeping; where nothing may be pruned, or it is asked for, those of sharing, the other way. Heads would all tip over
    at once, long before their units: they go as learned, and move only where no units can go instead, or where they are asked to.
    """
    lever = np.zeros(space.logits, np.float32)
    for spec in space.axes.values():
        if space.prune:
            lever[spec.keep] = 1
        if spec.share is not None and (sharing or not space.prune):
            lever[spec.share] = -1
    for group in space.groups:
        stuck = all(spec.frozen for spec in space.axes.values() if spec.key[0] in group.sites)
        if group.logits is not None and (heads or stuck):
            lever[group.logits] = 1
    return lever


def as_plan(space: GateSpace, hard: Hard, name: str, provenance: Mapping[str, JsonValue]) -> Hardened:
    """A structure as a plan, and what it keeps."""
    plan = build_plan(space.table, space.decisions(hard), name, provenance)
    lowered = lower(space.table, resolve(plan, space.table))
    return Hardened(hard, plan, lowered.planned, lowered.stored, space.table)
