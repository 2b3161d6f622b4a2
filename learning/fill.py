"""Filling: slots that pruning emptied read the base's units, which are stored anyway (ours).

Pruning alone leaves a reader narrower. But a unit of its base costs nothing more to read than its own bias, so every slot that is
free may hold one: a layer becomes a core that its whole family shares, and a private rest. Pruning and sharing then do not
compete. A reader's units are permuted first, so that those that it keeps for itself do not lie where the base's are. Shapes: N
units of an axis, H heads of P units.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from torch import Tensor

from inarch.learning.gates import GateSpace, Hard
from inarch.learning.unit_rows import Key, UnitRows, may_move
from inarch.structure.demand import VALUE_AXES
from inarch.structure.units import Indices

Orders = dict[Key, Indices]
"""Axis -> the unit that comes to each place, [N]."""


def fill(space: GateSpace, hard: Hard, axes: Collection[str]) -> tuple[Hard, Orders]:
    """Let every reader read as much of its base as it has room for.

    Args:
        space: the gates.
        hard: a structure; what it shares already is forgotten, units that readers keep stay theirs.
        axes: names of the axes that are filled.

    Returns:
        The filled structure, and the permutation of each reader's units that it is meant for.
    """
    keep, share = dict(hard.keep), {key: np.zeros_like(mask) for key, mask in hard.share.items()}
    orders: Orders = {}
    for base, specs in space.readers.items():
        for spec in specs if base[1] in axes else ():
            grid = (spec.heads, spec.per_head)
            mine, core = hard.keep[spec.key].reshape(grid), hard.keep[base].reshape(grid)
            if not may_move(space.table[spec.key[0]], spec.key[1]) or not core.any() or not _alive(space, hard, spec.key[0]):
                continue
            rows = np.flatnonzero(core.any(1))
            _, coarse = space.steps(len(rows), spec.per_head)
            whole = int(core[rows].sum(1).min())
            room = min(whole, spec.per_head - int(mine.sum(1).max()))
            length = room - room % coarse
            if len(specs) + 1 > space.limits.max_segments:  # many readers share few different lengths, or segments are too many
                length = _level(length, whole, coarse, space.limits.max_segments - 1)
            if length == 0:
                continue
            order = np.tile(np.arange(spec.per_head), (spec.heads, 1))
            filled = np.zeros(grid, np.bool_)
            private = np.zeros(grid, np.bool_)
            for row in rows:
                slots = np.flatnonzero(core[row])[:length]
                rest = np.setdiff1d(np.arange(spec.per_head), slots)
                kept, gone = np.flatnonzero(mine[row]), np.flatnonzero(~mine[row])
                order[row, rest] = np.concatenate((kept, gone))[: len(rest)]
                order[row, slots] = np.concatenate((kept, gone))[len(rest) :]
                filled[row, slots] = True
                private[row, rest[: len(kept)]] = True
            offset = (np.arange(spec.heads) * spec.per_head)[:, None]
            orders[spec.key] = (order + offset).reshape(-1)
            share[spec.key] = filled.reshape(-1)
            keep[spec.key] = (filled | private).reshape(-1)
    return Hard(keep, share), orders


def _level(length: int, core: int, coarse: int, count: int) -> int:
    """The longest of ``count`` prefixes of a core that is no longer than a length."""
    levels = [core * i // count - core * i // count % coarse for i in range(count + 1)]
    return max(level for level in levels if level <= length)


def _alive(space: GateSpace, hard: Hard, site: str) -> bool:
    """Whether a site puts out anything; what doesn't is not brought back."""
    return any(hard.keep[key].any() for key in space.axes if key[0] == site and key[1] in VALUE_AXES)


def permute(units: UnitRows, orders: Orders, tensors: Sequence[Mapping[str, Tensor]]) -> None:
    """Permute units in place, in parameters and in whatever is kept for each of them (an optimiser's moments).

    Args:
        units: the model's units.
        orders: the permutations.
        tensors: mappings from the parameters' names to tensors of their shapes.
    """
    for key, order in orders.items():
        for values in tensors:
            units.permute(key, order, values)
