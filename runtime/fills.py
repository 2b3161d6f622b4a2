"""What a mask or a clamp writes into an output: one large constant, beside which results look like nothing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LEAST = 1e3
"""No fill is smaller: probabilities that are 1, and coordinates, are results."""

APART = 1e2
"""How far, as a factor, a fill lies above everything else."""


def fills(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Where arrays of one shape hold the same fill: the largest finite magnitude of all, far above the next, alike in both.

    Such values (-1e9, the type's smallest, +-50000) say whether the mask is right and nothing of how large results are: relative
    to them any error of a result is small.

    Args:
        first: says what a fill is.
        second: has to agree with it there exactly. Where it does not, nothing of that size is a fill.
    """
    size = np.abs(first)
    rest = np.isfinite(first)
    found = np.zeros(first.shape, np.bool_)
    while True:
        largest = _largest(size, rest)
        there = rest & (size == largest)
        next_largest = _largest(size, rest & ~there)
        if largest < LEAST or not 0 < next_largest * APART <= largest or (first != second)[there].any():
            return found
        found |= there
        rest &= ~there


def _largest(size: npt.NDArray[np.float64], where: npt.NDArray[np.bool_]) -> float:
    return float(np.max(size, where=where, initial=0.0))
