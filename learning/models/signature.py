"""What a model takes and gives, in the words of an export: names, and which axes may change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

LARGEST = 1 << 14
"""No size grows beyond this many steps."""


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

    def dynamic_shapes(self) -> dict[str, dict[int, Any]]:
        """The dynamic axes as ``torch.export.export`` takes them."""
        return {name: {axis: _size(text) for axis, text in axes.items()} for name, axes in self.inputs.items()}


def _size(text: str) -> Any:
    factor, _, name = text.rpartition("*")
    return int(factor) * torch.export.Dim(name, min=2, max=LARGEST) if factor else torch.export.Dim.DYNAMIC
