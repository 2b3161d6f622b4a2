"""What a model says of itself in its metadata: written by inarch, and by then perhaps by other tools, too."""

from __future__ import annotations

import json
from collections.abc import Mapping

SHARED = "inarch.shared"
"""Names of the initializers that sites share, as JSON."""

QUANTISED = "inarch.quantised"
"""A JSON object that says what was quantised, and how."""


def json_in(metadata: Mapping[str, str], key: str) -> object:
    """What the metadata have under a key; None where that is nothing, or no JSON."""
    try:
        found: object = json.loads(metadata.get(key, ""))
    except ValueError:
        return None
    return found


def quantised_to(metadata: Mapping[str, str]) -> str | None:
    """What ``inarch quantize`` made the weights: ``int8`` or ``fp16``; None where it did not, or where that cannot be read."""
    said = json_in(metadata, QUANTISED)
    kind = said.get("to") if isinstance(said, dict) else None
    return kind if isinstance(kind, str) else None


def shared_in(metadata: Mapping[str, str]) -> list[str] | None:
    """The names under :data:`SHARED`; None where they are not listed."""
    names = json_in(metadata, SHARED)
    return [str(name) for name in names] if isinstance(names, list) else None
