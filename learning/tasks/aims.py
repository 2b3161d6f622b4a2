"""What a model can be trained for, and judged on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from inarch.structure.errors import InarchError

Aim = Literal["grounding", "referring", "vqa", "detection"]
"""Phrases to boxes, one expression to its box, questions to answers, classes to boxes."""

OF_FILES: Mapping[str, Aim] = {"refcoco": "referring", "gqa": "vqa", "coco": "detection"}
"""Task on files in COCO's format -> what a model learns there."""


def check_aim(kind: Aim, only: Aim, task: str) -> None:
    """Refuse another kind than the one that a task has.

    Raises:
        InarchError: it is another.
    """
    if kind != only:
        raise InarchError(f"there is no {kind} on {task}", where="--task", hint=f"there is {only}")
