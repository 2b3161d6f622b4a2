"""What a model can be trained for, and judged on."""

from __future__ import annotations

from typing import Literal

Aim = Literal["grounding", "referring", "vqa", "detection"]
"""Phrases to boxes, one expression to its box, questions to answers, classes to boxes."""
