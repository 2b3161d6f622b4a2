"""Which indices a stored block takes of an axis, and how large the axis becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from inarch.structure.dims import Dim, dim, product
from inarch.structure.errors import LoweringError
from inarch.structure.lowered import Block, Group
from inarch.structure.units import Indices

INNER = ("hidden", "qk", "vo", "vo2")
"""Factors that blocks cut; ``head`` is cut by groups, every other factor is carried whole."""

Factors = Sequence[tuple[str | None, Dim]]


def fixed_part(factors: Factors) -> Factors:
    """Factors of an axis behind the last one whose size is not known; nothing that is cut stands before it."""
    last = max((i for i, (_, size) in enumerate(factors) if size.value is None), default=-1)
    return list(factors)[last + 1 :]


@dataclass(frozen=True, eq=False)
class Selection:
    """The part of a site that one version of a value holds.

    Attributes:
        heads: head numbers, in stored order.
        units: factor name -> in-head unit numbers, shape [heads, units a head]; a factor that is absent is not cut.
        total_heads: heads of the whole site.
    """

    heads: Indices
    units: dict[str, Indices]
    total_heads: int

    @staticmethod
    def of(group: Group, blocks: Mapping[str, Sequence[Block]], per_head: Mapping[str, int], total_heads: int) -> Selection:
        """The selection of some blocks of a group; several blocks of one axis stand side by side inside each head."""
        heads = np.array(group.heads, np.int64)
        units: dict[str, Indices] = {}
        for name, parts in blocks.items():
            local = [block.units - heads[:, None] * per_head[name] for block in parts]
            units[name] = np.concatenate(local, axis=1)
        return Selection(heads, units, total_heads)

    def size(self, factors: Factors) -> Dim:
        """Size of an axis with these factors under the selection."""
        return product(self._factor(name, size) for name, size in factors)

    def _factor(self, name: str | None, size: Dim) -> Dim:
        if name == "head":
            return dim(len(self.heads))
        if name in self.units:
            return dim(int(self.units[name].shape[1]))
        return size

    def positions(self, factors: Factors) -> Indices:
        """Positions on the fixed part of an axis of these factors, in the order in which the version stores them.

        Raises:
            LoweringError: the axis has no head factor and the heads select different units.
        """
        factors = fixed_part(factors)
        names = [name for name, _ in factors]
        sizes = [size.coef for _, size in factors]
        grid = np.arange(int(np.prod(sizes)), dtype=np.int64).reshape(sizes)
        inner = next((i for i, name in enumerate(names) if name in self.units), None)
        head = names.index("head") if "head" in names else None
        if inner is not None:
            local = self.units[str(names[inner])]
            if head is None:
                if local.shape[0] > 1 and (local != local[0]).any():
                    raise LoweringError("units inside heads differ on an axis that all heads have in common")
                grid = np.take(grid, local[0], axis=inner)
            else:
                rest = [i for i in range(len(names)) if i not in (head, inner)]
                moved = grid.transpose([head, inner, *rest])[self.heads[:, None], local]
                grid = moved.transpose(np.argsort([head, inner, *rest]))
        elif head is not None:
            grid = np.take(grid, self.heads, axis=head)
        return grid.reshape(-1)

    def whole(self, factors: Factors) -> bool:
        """Whether the selection leaves an axis of these factors as it is."""
        positions = self.positions(factors)
        size = product(size for _, size in fixed_part(factors)).coef
        return len(positions) == size and bool((positions == np.arange(size)).all())
