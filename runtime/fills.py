"""What a mask or a clamp writes into an output: one large constant, beside which results look like nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

LEAST = 1e3
"""No fill is smaller: probabilities that are 1, and coordinates, are results."""

APART = 1e2
"""How far, as a factor, a fill lies above everything else."""


def fills(first: npt.NDArray[np.float64], *others: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Where arrays of one shape hold the same fill: the largest finite magnitude of all, far above the next, alike in all.

    Such values (-1e9, the type's smallest, +-50000) say whether the mask is right and nothing of how large results are: relative
    to them any error of a result is small.

    Args:
        first: says what a fill is.
        others: have to agree with it there exactly. Where one does not, nothing of that size is a fill.
    """
    size = np.abs(first)
    rest = np.isfinite(first)
    found = np.zeros(first.shape, np.bool_)
    while True:
        largest = _largest(size, rest)
        there = rest & (size == largest)
        next_largest = _largest(size, rest & ~there)
        if largest < LEAST or not 0 < next_largest * APART <= largest or not _agree(first, others, there):
            return found
        found |= there
        rest &= ~there


def _largest(size: npt.NDArray[np.float64], where: npt.NDArray[np.bool_]) -> float:
    return float(np.max(size, where=where, initial=0.0))


def _agree(first: npt.NDArray[np.float64], others: Sequence[npt.NDArray[np.float64]], there: npt.NDArray[np.bool_]) -> bool:
    return all(bool(np.array_equal(first[there], other[there])) for other in others)
