"""What a model takes and gives, in the words of an export: names, and which axes may change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of an exported model.

    Attributes:
        inputs: input name, in the order of ``forward`` -> axis -> name of its size. ``32*height`` is any multiple of 32; equal
            names are equal sizes.
        outputs: names of the results, in the order of the dictionary that ``forward`` returns.
    """

    inputs: Mapping[str, Mapping[int, str]]
    outputs: tuple[str, ...]
