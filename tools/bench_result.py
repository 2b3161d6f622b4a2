"""What ``inarch bench`` finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inarch.runtime.latency import LatencyReport
    from inarch.runtime.memory import MemoryReport
    from inarch.runtime.placement import Placement
    from inarch.runtime.size import SizeReport


@dataclass(frozen=True)
class Measured:
    """One model.

    Attributes:
        size: its parameters and bytes.
        memory: of a process of its own.
        latency: against the dense model, one a case and thread count, interleaved; empty for the dense model itself.
        placement: which provider ran how much of it; None on the CPU, where there is no question.
        precision: what most of its weights are stored in.
        multiplications: of one run on the first inputs; None where an operator's are not known.
    """

    size: SizeReport
    memory: MemoryReport
    latency: tuple[LatencyReport, ...]
    placement: Placement | None
    precision: str
    multiplications: int | None = None


@dataclass(frozen=True)
class Comparison:
    """Models, measured alike.

    Attributes:
        models: ``dense`` first, ``compiled`` last; between them the plan's pruning and sharing alone where they were asked for.
        case: name of the inputs that memory was measured on, and latency where there is no sweep.
        provider: ORT's name of it.
        notes: what has to be known to read the figures, in sentences.
    """

    models: Mapping[str, Measured]
    case: str
    provider: str
    notes: tuple[str, ...] = ()

    @property
    def dense(self) -> Measured:
        """The original."""
        return self.models["dense"]

    @property
    def compiled(self) -> Measured:
        """What it was compiled to."""
        return self.models["compiled"]
