"""Structures by rule, the earlier ways to share: whole layers of a backbone (ALBERT), or the same layer of both backbones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from pydantic import JsonValue

from inarch.learning.families import families
from inarch.learning.gates import Bools, GateSpace, Hard
from inarch.learning.harden import Hardened, as_plan
from inarch.learning.unit_rows import Key
from inarch.structure.sites import SiteTable

BLOCKS = (2, 3, 4, 6, 12)
"""Layers in a block that are tried, the smallest that saves enough first."""


def share_by_rule(table: SiteTable, rule: str, keep: float, name: str, provenance: Mapping[str, JsonValue]) -> Hardened:
    """Share whole sites, the deepest first, until the budget is met; the last one in part.

    Args:
        table: the model's sites.
        rule: ``layer``: every layer of a block reads the block's first, in the smallest blocks that can save enough; ``cross``:
            a layer of the vision backbone reads the text layer at its depth, which cannot save more than one backbone.
        keep: fraction of the whole model's parameters to store; where the rule cannot save so much, all that it can is shared.
        name: the model's name.
        provenance: goes into the plan.
    """
    target = keep * table.parameters
    found: Hardened | None = None
    for block in BLOCKS if rule == "layer" else (1,):
        space = GateSpace(table, families(table, "layer" if rule == "layer" else "cross", block), prune=False)
        everything = _shared(space, 1.0)
        found = as_plan(space, everything, name, provenance)
        if found.stored <= target:
            return _bisect(space, target, name, provenance)
    assert found is not None
    return found


def _bisect(space: GateSpace, target: float, name: str, provenance: Mapping[str, JsonValue]) -> Hardened:
    low, high = 0.0, 1.0
    best = as_plan(space, _shared(space, 1.0), name, provenance)
    for _ in range(14):
        middle = (low + high) / 2
        found = as_plan(space, _shared(space, middle), name, provenance)
        if abs(found.stored - target) < abs(best.stored - target):
            best = found
        if found.stored > target:
            low = middle
        else:
            high = middle
    return best


def _shared(space: GateSpace, part: float) -> Hard:
    """The deepest readers shared, so many that they are this part of all; the last one by a prefix of its units."""
    readers = [reader for family in space.families for reader in family.readers]
    order = sorted(readers, key=[site.name for site in space.sites].index, reverse=True)
    keep: dict[Key, Bools] = {}
    share: dict[Key, Bools] = {}
    for key, spec in space.axes.items():
        count = spec.heads * spec.per_head
        keep[key], share[key] = np.ones(count, np.bool_), np.zeros(count, np.bool_)
        if spec.base is None:
            continue
        wanted = min(max(part * len(order) - order.index(key[0]), 0.0), 1.0)
        step = -(-space.limits.min_segment // spec.heads)
        units = int(wanted * spec.per_head / step + 0.5) * step
        share[key] = np.tile(np.arange(spec.per_head) < (spec.per_head if wanted == 1.0 else units), spec.heads)
    return Hard(keep, share)
