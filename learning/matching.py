"""Readers' units brought into their bases' order before anything is learned: a permutation that no output depends on (ours).

Two networks that learned the same thing hold it in different orders; index i of a reader is to be shared with index i of its
base, so first every reader is permuted to look as much like its base as it can. Shapes: N units, H heads of P units, D numbers of
a unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from inarch.learning.families import Family
from inarch.learning.unit_rows import UnitRows, may_move
from inarch.structure.demand import unit_axes
from inarch.structure.sites import Site
from inarch.structure.units import Indices

Floats = npt.NDArray[np.float32]


@torch.no_grad()
def match(families: Sequence[Family], units: UnitRows, parameters: Mapping[str, Tensor]) -> None:
    """Permute the readers' hidden units in place, most cosine similarity first; heads too, where nothing runs over them.

    Args:
        families: who is to share.
        units: the model's units.
        parameters: the model's, by name; they change.
    """
    for family in families:
        base = units.table[family.base]
        for name in family.readers:
            _match_site(base, units.table[name], units, parameters)


def _match_site(base: Site, reader: Site, units: UnitRows, parameters: Mapping[str, Tensor]) -> None:
    grids: dict[str, npt.NDArray[np.float32]] = {}
    for axis in unit_axes(reader):
        similar = _directions(units, base.name, axis, parameters) @ _directions(units, reader.name, axis, parameters).T
        size = reader.axes[axis]
        grids[axis] = similar.reshape(size.heads, size.per_head, size.heads, size.per_head)
    free = {axis: reader.axes[axis].frozen is None and may_move(reader, axis) for axis in grids}
    heads = np.arange(reader.heads)
    if reader.heads > 1 and not _has_head_riders(reader) and "head" not in reader.frozen and "head" not in reader.ordered:
        total = np.zeros((reader.heads, reader.heads))
        for axis, grid in grids.items():
            for h in range(reader.heads):
                for g in range(reader.heads):
                    total[h, g] += _best(grid[h, :, g], free=free[axis])[1]
        heads = linear_sum_assignment(total, maximize=True)[1]
    for axis, grid in grids.items():
        per_head = reader.axes[axis].per_head
        order = [g * per_head + _best(grid[h, :, g], free=free[axis])[0] for h, g in enumerate(heads.tolist())]
        units.permute((reader.name, axis), np.concatenate(order), parameters)


def _directions(units: UnitRows, site: str, axis: str, parameters: Mapping[str, Tensor]) -> Floats:
    """Weight vectors [N, D], every member's part scaled to length 1."""
    rows = units.read((site, axis), parameters).float().cpu()
    widths = [slot.columns for slot in units.slots[site, axis]]
    parts = torch.split(rows, widths, 1)
    scaled: Floats = torch.cat([torch.nn.functional.normalize(part, dim=1) for part in parts], 1).numpy()
    return scaled


def _best(similar: npt.NDArray[np.floating], *, free: bool) -> tuple[Indices, float]:
    """The reader's unit for each of the base's, and how similar they are in all; the same order where it may not change."""
    count = len(similar)
    columns = linear_sum_assignment(similar, maximize=True)[1] if free else np.arange(count)
    return np.asarray(columns, np.int64), float(similar[np.arange(count), columns].sum())


def _has_head_riders(site: Site) -> bool:
    return any(m.has("head") and not any(m.has(axis) for axis in unit_axes(site)) for m in site.members.values())
