"""The cost table: what a lowering may give up for speed, as figures that were measured, not as code.

Two tables are shipped, ``cpu`` (the default) and ``gpu``; ``inarch calibrate`` measures one for the machine at hand. A table
other than the default is named explicitly and its hash is recorded in the compiled model, so that the same input gives the same
bytes everywhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from inarch.structure.cost_figures import Measured
from inarch.structure.errors import InarchError
from inarch.structure.files import whole

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
        measured: the timings that the limits were derived from, where they were measured on one machine.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    format: Literal["inarch.cost/1"]
    description: str
    balanced: Limits
    size: Limits
    latency: Limits
    measured: Measured | None = None

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
        hint = f"a table is one JSON object of the format {FORMAT}; inarch calibrate -o FILE writes one"
        raise CostError(first["msg"], where=f"{source}: {path}" if path else source, hint=hint) from None


def load_cost(path: str | Path) -> CostTable:
    """Read a cost table from a file, strictly, or take a shipped one by its name: ``cpu`` or ``gpu``.

    As a ``Path``, ``./gpu`` is the same as ``gpu``; a file of that name is reached by its whole path.

    Raises:
        CostError: the file cannot be read, or as :func:`parse_cost`.
    """
    if str(path) in SHIPPED:
        return SHIPPED[str(path)]
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        names = " and ".join(SHIPPED)
        hint = f"{names} name the shipped tables; inarch calibrate -o FILE measures one for this machine"
        raise CostError(f"cannot be read: {error.strerror}", where=str(path), hint=hint) from None
    return parse_cost(data, str(path))


def save_cost(table: CostTable, path: str | Path) -> None:
    """Write a cost table, whole or not at all.

    Raises:
        CostError: it cannot be written.
    """
    try:
        with whole(Path(path)) as draft:
            draft.write_text(table.model_dump_json(indent=2, exclude_none=True) + "\n", encoding="utf-8")
    except OSError as error:
        hint = "name a file in a folder that exists and can be written"
        raise CostError(f"cannot be written: {error.strerror}", where=str(path), hint=hint) from None


def cost_hash(table: CostTable) -> str:
    """sha256 (hex) over the limits; neither the description nor the timings take part, nor does the spelling of the file."""
    figures = table.model_dump(mode="json", exclude={"description", "measured"})
    return hashlib.sha256(json.dumps(figures, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def shipped_name(digest: str) -> str | None:
    """The name of the shipped table with this hash (:func:`cost_hash`), or None."""
    return next((name for name, table in SHIPPED.items() if cost_hash(table) == digest), None)


def cost_schema() -> dict[str, JsonValue]:
    """The JSON schema of cost tables, generated from the types."""
    schema: dict[str, JsonValue] = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": FORMAT}
    return schema | cast("dict[str, JsonValue]", CostTable.model_json_schema())


def schema_text() -> str:
    """The schema as the repository keeps it."""
    return json.dumps(cost_schema(), indent=2, sort_keys=True) + "\n"


def _read(name: str) -> CostTable:
    path = Path(__file__).with_name(name)
    return parse_cost(path.read_bytes(), name)


DEFAULT_COST: Final = _read("cost_default.json")
"""The shipped table for CPUs, which is used where none is named."""

SHIPPED: Final[Mapping[str, CostTable]] = MappingProxyType({"cpu": DEFAULT_COST, "gpu": _read("cost_gpu.json")})
"""Name -> shipped table."""
