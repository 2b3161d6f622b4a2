"""What all settings have in common: numbers in their bounds, no key that is not known, sections that are filled up."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Pixels = Annotated[int, Field(ge=1, le=8192)]
"""A side of an image; a batch of larger ones fits no memory."""
Rate = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
FilePath = Annotated[str, Field(min_length=1), AfterValidator(os.path.abspath)]
"""Of a file or a folder; absolute in the run's folder, so that the run can go on from anywhere."""


class Settings(BaseModel):
    """Base of all sections."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        """What a section leaves out has the default that it has here, which need not be the section's own."""
        if not isinstance(values, Mapping):
            return values
        return filled(values, {name: field.default.model_dump(exclude_unset=True) for name, field in cls._sections()})

    @classmethod
    def _sections(cls) -> list[tuple[str, Any]]:
        return [(name, field) for name, field in cls.model_fields.items() if isinstance(field.default, Settings)]


def filled(values: Mapping[str, Any], defaults: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Values with what their sections leave out; a section that is no mapping is whole already."""
    whole = dict(values)
    for name, section in defaults.items():
        given = values.get(name, {})
        if section and isinstance(given, Mapping):
            whole[name] = {**section, **given}
    return whole
