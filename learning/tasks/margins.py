"""How close a choice was: how far the first is ahead of the second."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def margin(scores: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Of scores in any order, [..., K]: [...]; of one alone, without end."""
    if scores.shape[-1] < 2:
        return np.full(scores.shape[:-1], np.inf)
    two = np.sort(scores, axis=-1)[..., -2:]
    return np.asarray(two[..., 1] - two[..., 0])


def ahead(scores: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Of scores [n, K] that are best first: [n]; of one alone, what it scores."""
    return np.asarray(scores[:, 0] - (scores[:, 1] if scores.shape[1] > 1 else 0))
