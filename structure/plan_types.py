"""The plan as frozen types: ``inarch.plan/1``, what learning hands to compiling.

These types say what a plan looks like; :mod:`inarch.structure.plan` reads and writes it, and
:mod:`inarch.structure.plan_checks` says what a plan that looks right may still get wrong. Range strings are kept in their
shortest spelling, so that equal decisions are equal plans.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, WithJsonSchema
from pydantic_core import PydanticCustomError

from inarch.structure.sites import Kind
from inarch.structure.units import MAX_UNITS, DuplicateIndexError, Indices, format_indices, parse_sequence, parse_set

FORMAT: Literal["inarch.plan/1"] = "inarch.plan/1"

AxisName = Literal["hidden", "head", "qk", "vo", "vo2"]
AXIS_NAMES: tuple[AxisName, ...] = get_args(AxisName)

_RANGES = "^$|^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$"


def _canonical(text: str, parse: Callable[[str], Indices]) -> str:
    try:
        return format_indices(parse(text))
    except DuplicateIndexError as error:
        raise PydanticCustomError("range_twice", "{why}", {"why": str(error)}) from None
    except ValueError as error:
        raise PydanticCustomError("range_syntax", "{why}", {"why": str(error)}) from None


UnitSet = Annotated[
    str,
    AfterValidator(lambda text: _canonical(text, parse_set)),
    WithJsonSchema({"type": "string", "pattern": _RANGES, "description": "Ascending disjoint ranges: 0-511,640."}),
]
UnitSequence = Annotated[
    str,
    AfterValidator(lambda text: _canonical(text, parse_sequence)),
    WithJsonSchema({"type": "string", "pattern": _RANGES, "description": "Disjoint ranges in the order meant: 7-9,3."}),
]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class SharePlan(_Strict):
    """Units whose weight vectors are those of a base site's units, pair by pair.

    Attributes:
        base: name of the base site.
        units: units of the axis that are shared.
        base_units: the base's units on its axis of the same name, as many and in the same order.
    """

    base: str
    units: UnitSequence
    base_units: UnitSequence

    @property
    def reader_indices(self) -> Indices:
        """``units`` as indices, shape [n]; parsed at every use."""
        return parse_sequence(self.units)

    @property
    def base_indices(self) -> Indices:
        """``base_units`` as indices, shape [n]; parsed at every use."""
        return parse_sequence(self.base_units)


class AxisPlan(_Strict):
    """What is to become of one hidden axis.

    Attributes:
        size: units on the axis; on ``qk`` and ``vo`` heads times units a head.
        keep: units that are not pruned.
        share: which of the kept units are shared, with what.
    """

    size: int = Field(ge=1, le=MAX_UNITS)
    keep: UnitSet
    # Strict mode takes no list for a tuple, and JSON has no tuples.
    share: tuple[SharePlan, ...] = Field(default=(), strict=False)

    @property
    def kept(self) -> Indices:
        """``keep`` as indices, shape [n], ascending; parsed at every use."""
        return parse_set(self.keep)


class MemberRef(_Strict):
    """Where the axis lies in a parameter.

    Attributes:
        param: the parameter's name.
        axis: its axis, as it is stored.
        ranges: the indices that the member occupies on that axis.
        transposed: True where a matrix is stored [out, in].
    """

    param: str = Field(min_length=1)
    axis: int = Field(ge=0)
    ranges: UnitSet
    transposed: bool


class SitePlan(_Strict):
    """What is to become of one site.

    Attributes:
        kind: ``ffn`` or ``msa``.
        heads: heads of an MSA (key/value heads where they are grouped); None for an FFN.
        members: role -> where it is, or None where the site has no such member.
        axes: axis name -> what is to become of it; an axis that is left out keeps every unit private.
    """

    kind: Kind
    heads: int | None = Field(default=None, ge=1, le=MAX_UNITS)
    members: dict[str, MemberRef | None] = Field(default_factory=dict)
    axes: dict[AxisName, AxisPlan] = Field(default_factory=dict)


class ModelRef(_Strict):
    """The model that the plan was made for.

    Attributes:
        name: for people.
        fingerprint: :attr:`inarch.structure.sites.SiteTable.fingerprint` of the model.
    """

    name: str
    fingerprint: str = Field(pattern="^[0-9a-f]{64}$")


class Expect(_Strict):
    """What the plan's author expects.

    Attributes:
        parameters: planned parameters of the whole model.
        bytes: the same in bytes.
    """

    parameters: int = Field(ge=0)
    bytes: int = Field(ge=0)


class Plan(_Strict):
    """Which units of a model are pruned and which are shared.

    Attributes:
        format: the format's name and version.
        model: the model that it was made for.
        sites: site name -> what is to become of it, in model order. Sites left out keep every unit private.
        expect: what the author expects, or None.
        provenance: how the plan was made; any JSON.
    """

    format: Literal["inarch.plan/1"]
    model: ModelRef
    sites: dict[str, SitePlan]
    expect: Expect | None = None
    provenance: dict[str, JsonValue] = Field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        """Equal decisions on equally ordered sites: the order binds sites where names are lost."""
        if not isinstance(other, Plan):
            return NotImplemented
        return super().__eq__(other) and list(self.sites) == list(other.sites)


def json_path(*parts: str | int) -> str:
    """Write a path into a plan: ``sites["text.layer.3.ffn"].axes.hidden.share[0].base_units``.

    Site names and keys that are no plain words are quoted in brackets, whatever they hold.
    """
    text = ""
    for place, part in enumerate(parts):
        if isinstance(part, int):
            text += f"[{part}]"
        elif (place == 1 and parts[0] == "sites") or not part.isidentifier():
            text += f"[{json.dumps(part, ensure_ascii=False)}]"
        else:
            text += f".{part}" if text else part
    return text
