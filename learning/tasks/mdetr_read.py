"""What MDETR's outputs say, in numpy. Shapes: n texts, Q queries, P phrases, T tokens, S token slots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]


def softmax(logits: Floats) -> Floats:
    """Over the last axis."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    result: Floats = shifted / shifted.sum(-1, keepdims=True)
    return result


def refer(outputs: Mapping[str, npt.NDArray[Any]], top: int) -> tuple[Floats, Floats]:
    """The boxes that a whole text refers to, best first: [n, top, 4]; their scores [n, top], one minus no-object (published)."""
    scores = 1 - softmax(outputs["logits"])[..., -1]
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return np.take_along_axis(outputs["boxes"], order[..., None], 1), np.take_along_axis(scores, order, 1)


def ground(outputs: Mapping[str, npt.NDArray[Any]], spans: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """The best box of each phrase: the query that gives most to its tokens.

    Args:
        outputs: ``logits`` [n, Q, S + 1] and ``boxes`` [n, Q, 4].
        spans: [n, P, T].

    Returns:
        Boxes [n, P, 4] and the scores of all queries [n, P, Q].
    """
    mass = softmax(outputs["logits"])[..., : spans.shape[-1]]
    scores: Floats = np.einsum("nqt,npt->npq", mass, spans.astype(mass.dtype))
    best = scores.argmax(-1)
    return np.take_along_axis(outputs["boxes"], best[..., None], 1), scores
