"""The cost table: what a lowering may give up for speed, as figures that were measured, not as code.

The shipped table is ``cost_default.json``. A table of one's own is given explicitly and its hash is recorded in the
compiled model, so that the same input gives the same bytes everywhere.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from inarch.structure.errors import InarchError

FORMAT: Final = "inarch.cost/1"

Preference = Literal["size", "latency"]


class CostError(InarchError):
    """A cost table is malformed or asked for something that it does not hold; ``where`` is the file or a JSON path."""


class Limits(BaseModel):
    """The limits that one lowering keeps.

    Attributes:
        multiple: units; block widths (heads x units a head) are brought to multiples of this where it can be done.
        rounding: fraction of a group's units on an axis that may be given up to reach ``multiple``. Less than ``multiple``
            units may always be given up; where more would be, half the multiple is tried, and so on.
        min_segment: units; a shared segment narrower than this does not pay for its extra kernel and is stored privately,
            unless it is all that each of its readers stores. A further group of heads has to save as much.
        max_segments: blocks, shared and private together, that a projection of one site may be split into.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    multiple: Annotated[int, Field(ge=1, le=1024)]
    rounding: Annotated[float, Field(ge=0.0, le=1.0)]
    min_segment: Annotated[int, Field(ge=1)]
    max_segments: Annotated[int, Field(ge=1, le=64)]


class CostTable(BaseModel):
    """Limits by what the user prefers (``inarch.cost/1``).

    Attributes:
        format: always ``inarch.cost/1``.
        description: where the figures come from, for people.
        balanced: the limits where nothing is preferred.
        size: looser limits: the smallest file, some latency.
        latency: tighter limits: the fewest kernels, some bytes.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    format: Literal["inarch.cost/1"]
    description: str
    balanced: Limits
    size: Limits
    latency: Limits

    def limits(self, prefer: str | None = None) -> Limits:
        """The limits for a preference: None, ``size`` or ``latency``.

        Raises:
            CostError: another word.
        """
        if prefer is None:
            return self.balanced
        if prefer == "size":
            return self.size
        if prefer == "latency":
            return self.latency
        raise CostError(f"cannot prefer {prefer!r}", hint="size or latency")


def parse_cost(text: str | bytes, source: str = "cost table") -> CostTable:
    """Read a cost table from JSON, strictly.

    Raises:
        CostError: not JSON, an unknown or missing key, a wrong type or a figure out of range; it names the JSON path.
    """
    try:
        return CostTable.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        raise CostError(first["msg"], where=f"{source}: {path}" if path else source) from None


def load_cost(path: str | Path) -> CostTable:
    """Read a cost table from a file, strictly.

    Raises:
        CostError: the file cannot be read, or as :func:`parse_cost`.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise CostError(f"cannot be read: {error.strerror}", where=str(path)) from None
    return parse_cost(data, str(path))


def cost_hash(table: CostTable) -> str:
    """sha256 (hex) over the table's figures; the description takes no part, nor does the spelling of the file."""
    figures = table.model_dump(mode="json", exclude={"description"})
    return hashlib.sha256(json.dumps(figures, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


DEFAULT_COST: Final = load_cost(Path(__file__).with_name("cost_default.json"))
"""The shipped table."""
