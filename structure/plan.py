"""Read, check and write plans: strict ``inarch.plan/1`` JSON in, one spelling out.

A malformed plan is refused with one error of its own kind (:mod:`inarch.structure.errors`, ``PlanError.code``) that names the
JSON path. The schema beside this file is generated from the types: ``python -m inarch.structure.plan > plan.schema.json``.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from pathlib import Path
from typing import NoReturn, cast

from pydantic import BaseModel, JsonValue, ValidationError
from pydantic_core import ErrorDetails

from inarch.structure.errors import (
    BaseTakenTwiceError,
    DuplicateKeyError,
    InvalidRangeError,
    InvalidValueError,
    MissingKeyError,
    PlanError,
    PlanFileError,
    PlanFormatError,
    PlanSyntaxError,
    SharedTwiceError,
    UnknownKeyError,
    WrongTypeError,
)
from inarch.structure.files import whole
from inarch.structure.plan_checks import check_members, check_sharing, check_sites, view_alone
from inarch.structure.plan_types import (
    AXIS_NAMES,
    FORMAT,
    AxisName,
    AxisPlan,
    Expect,
    MemberRef,
    ModelRef,
    Plan,
    SharePlan,
    SitePlan,
    json_path,
)

__all__ = [
    "AXIS_NAMES",
    "FORMAT",
    "AxisName",
    "AxisPlan",
    "Expect",
    "MemberRef",
    "ModelRef",
    "Plan",
    "SharePlan",
    "SitePlan",
    "dump_plan",
    "json_path",
    "lint_plan",
    "lint_text",
    "load_plan",
    "parse_plan",
    "plan_hash",
    "plan_schema",
    "save_plan",
    "schema_text",
]

MAX_BYTES = 2**28
"""A longer file is no plan: a model of 400 M parameters has a plan of some hundred kB."""

MAX_DEPTH = 64
"""Deeper nesting is no plan; provenance needs little."""


def load_plan(path: str | os.PathLike[str]) -> Plan:
    """Read a plan from a file.

    Raises:
        PlanFileError: the file cannot be read.
        PlanError: it is not a valid plan; the kind says what is wrong, ``where`` says where, and the text begins with the file.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise PlanFileError(f"cannot be read: {error.strerror or error}", source=os.fspath(path)) from error
    return parse_plan(data, source=os.fspath(path))


def parse_plan(data: str | bytes, source: str = "plan") -> Plan:
    """Read a plan from its JSON text (UTF-8 where it is bytes).

    Args:
        data: the text.
        source: where it came from; an error's text begins with it.

    Raises:
        PlanError: the first mistake, of the kinds that :func:`lint_text` lists.
    """
    plan, errors = _read(data)
    if errors or plan is None:
        raise _sourced(errors[0], source)
    return plan


def lint_text(data: str | bytes, source: str = "plan") -> list[PlanError]:
    """Every mistake in a plan's JSON text that shows without the model; empty where :func:`parse_plan` accepts it.

    Syntax mistakes hide all others; mistakes of shape (keys, types, ranges) hide those of content.
    """
    return [_sourced(error, source) for error in _read(data)[1]]


def lint_plan(plan: Plan) -> list[PlanError]:
    """Every contradiction inside a plan that shows without the model, in the order of the plan's sites by axis."""
    errors = list(check_members(plan))
    sizes = list(check_sites(plan))
    return errors + (sizes or check_sharing(view_alone(plan))[0])


def dump_plan(plan: Plan) -> str:
    """Write a plan as JSON: one spelling, stable to the byte. Equal decisions have equal text.

    Sites keep their order (it is the model's); axes, members and provenance are sorted; ``null`` heads, an absent ``expect``
    and empty ``share`` lists are left out; a range string, a member or a number stands on one line.
    """
    document: dict[str, JsonValue] = {
        "format": plan.format,
        "model": {"name": plan.model.name, "fingerprint": plan.model.fingerprint},
        "sites": {name: _site_document(site) for name, site in plan.sites.items()},
    }
    if plan.expect is not None:
        document["expect"] = {"parameters": plan.expect.parameters, "bytes": plan.expect.bytes}
    # Through JSON once, to sort the keys of whatever lies inside.
    document["provenance"] = json.loads(json.dumps(plan.provenance, sort_keys=True, allow_nan=False))
    return _emit(document, "") + "\n"


def save_plan(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Write a plan to a file, whole or not at all; to a device or a pipe, as it comes.

    Raises:
        PlanFileError: the file cannot be written; what stood there still stands.
    """
    target = Path(path)
    try:
        if target.exists() and not target.is_file() and not target.is_dir():
            target.write_text(dump_plan(plan), encoding="utf-8")
            return
        with whole(target) as draft:
            draft.write_text(dump_plan(plan), encoding="utf-8", newline="\n")
    except OSError as error:
        raise PlanFileError(f"cannot be written: {error.strerror or error}", source=os.fspath(path)) from error


def plan_hash(plan: Plan) -> str:
    """sha256 (hex) of the plan's one spelling."""
    return hashlib.sha256(dump_plan(plan).encode()).hexdigest()


def plan_schema() -> dict[str, JsonValue]:
    """The plan's JSON schema, generated from the types.

    It says what JSON Schema can say: that a unit is in range, or that sharing has no circle, only :func:`lint_text` finds.
    """
    schema: dict[str, JsonValue] = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": FORMAT}
    return schema | cast("dict[str, JsonValue]", Plan.model_json_schema())


def schema_text() -> str:
    """The schema as the repository keeps it."""
    return json.dumps(plan_schema(), indent=2, sort_keys=True) + "\n"


# Reading


class _DuplicateKey:
    """Stands in the document for an object that has a key twice."""

    def __init__(self, key: str) -> None:
        self.key = key


class _NotFinite:
    """Stands in the document for a number that JSON does not have."""

    def __init__(self, text: str) -> None:
        self.text = text


def _read(data: str | bytes) -> tuple[Plan | None, list[PlanError]]:
    try:
        document = _strict_json(data)
        _check_format(document)
    except PlanError as error:
        return None, [error]
    try:
        plan = Plan.model_validate(document)
    except ValidationError as error:
        return None, [_translate(detail) for detail in error.errors(include_url=False)]
    return plan, lint_plan(plan)


def _strict_json(data: str | bytes) -> object:
    """Parse strict JSON: UTF-8, one document, no key twice, no NaN or infinity, no lone surrogates, no absurd depth or size."""
    if len(data) > MAX_BYTES:
        raise PlanSyntaxError(f"longer than {MAX_BYTES} bytes")
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PlanSyntaxError(f"not UTF-8: {error.reason} at byte {error.start}") from None
    try:
        document = json.loads(text, object_pairs_hook=_object, parse_constant=_NotFinite, parse_float=_float)
    except json.JSONDecodeError as error:
        raise PlanSyntaxError(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise PlanSyntaxError("nested too deeply") from None
    except ValueError as error:  # an integer of thousands of digits
        raise PlanSyntaxError(f"not JSON: {error}") from None
    _walk(document)
    return cast(object, document)


def _object(pairs: list[tuple[str, object]]) -> object:
    document = dict(pairs)
    if len(document) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                return _DuplicateKey(key)
            seen.add(key)
    return document


def _float(text: str) -> object:
    value = float(text)
    return value if math.isfinite(value) else _NotFinite(text)


def _walk(document: object) -> None:
    """Refuse, with their path, what ``json.loads`` let through."""
    stack: list[tuple[tuple[str | int, ...], object]] = [((), document)]
    while stack:
        path, value = stack.pop()
        if len(path) > MAX_DEPTH:
            raise PlanSyntaxError("nested too deeply", where=json_path(*path))
        if isinstance(value, _DuplicateKey):
            _check_text(value.key, path)
            raise DuplicateKeyError(f"the key {value.key!r} stands here twice", where=json_path(*path, value.key))
        if isinstance(value, _NotFinite):
            raise PlanSyntaxError(f"{value.text} is no number of JSON", where=json_path(*path))
        if isinstance(value, str):
            _check_text(value, path)
        elif isinstance(value, dict):
            for key in value:
                _check_text(key, path)
            stack += [((*path, key), inner) for key, inner in reversed(value.items())]
        elif isinstance(value, list):
            stack += [((*path, number), inner) for number, inner in reversed(list(enumerate(value)))]


def _check_text(text: str, path: tuple[str | int, ...]) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PlanSyntaxError("a lone surrogate is no text", where=json_path(*path) or None) from None


def _check_format(document: object) -> None:
    if not isinstance(document, dict):
        raise WrongTypeError("a plan is a JSON object")
    if "format" not in document:
        raise PlanFormatError(
            "this is no inarch plan: it has no format", where="format", hint=f'a plan begins with "format": "{FORMAT}"'
        )
    if document["format"] != FORMAT:
        raise PlanFormatError(
            f"{document['format']!r} is not a format that is read here", where="format", hint=f"wanted {FORMAT!r}"
        )


def _translate(detail: ErrorDetails) -> PlanError:
    """The plan's error for one of pydantic's."""
    kind, value = detail["type"], detail["input"]
    # Pydantic puts "[key]" behind the name of an axis that there is not; a plan may have it as a name of its own, too.
    no_axis = kind == "literal_error" and detail["loc"][-1] == "[key]"
    parts = list(detail["loc"][:-1] if no_axis else detail["loc"])
    where = json_path(*parts)
    if no_axis or kind == "extra_forbidden":
        known = AXIS_NAMES if no_axis else tuple(_owner(parts).model_fields)
        return UnknownKeyError(f"unknown key {parts[-1]!r}", where=where, hint=f"known here: {', '.join(known)}")
    if kind == "missing":
        return MissingKeyError(f"the key {parts[-1]!r} is missing", where=where)
    if kind == "range_twice" and parts[-1] == "base_units":
        return BaseTakenTwiceError(f"a base unit is taken twice: {detail['msg']}", where=where)
    if kind == "range_twice" and parts[-1] == "units":
        return SharedTwiceError(f"a unit is shared twice: {detail['msg']}", where=where)
    if kind in ("range_twice", "range_syntax"):
        return InvalidRangeError(detail["msg"], where=where, hint="write ascending ranges like 0-511,640")
    if kind.endswith("_type") or (kind == "literal_error" and not isinstance(value, str)):
        return WrongTypeError(f"{_shown(value)} is not what belongs here: {detail['msg']}", where=where)
    return InvalidValueError(f"{_shown(value)} cannot stand here: {detail['msg']}", where=where)


def _owner(parts: list[int | str]) -> type[BaseModel]:
    """The type of the object that holds the last part of a path."""
    if len(parts) == 1:
        return Plan
    if parts[0] != "sites":
        return ModelRef if parts[0] == "model" else Expect
    if len(parts) == 3:
        return SitePlan
    if parts[2] == "members":
        return MemberRef
    return AxisPlan if len(parts) == 5 else SharePlan


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else f"{text[:45]}...{text[-10:]}"


def _sourced(error: PlanError, source: str) -> PlanError:
    return type(error)(error.message, where=error.where, hint=error.hint, source=source)


# Writing

_ROLE_ORDER = (
    "up",
    "up_bias",
    "gate",
    "gate_bias",
    "down",
    "q",
    "q_bias",
    "k",
    "k_bias",
    "v",
    "v_bias",
    "o",
    "v2",
    "v2_bias",
    "o2",
)


def _site_document(site: SitePlan) -> dict[str, JsonValue]:
    document: dict[str, JsonValue] = {"kind": site.kind}
    if site.heads is not None:
        document["heads"] = site.heads
    roles = sorted(site.members, key=lambda role: (_ROLE_ORDER.index(role) if role in _ROLE_ORDER else len(_ROLE_ORDER), role))
    document["members"] = {role: _member_document(site.members[role]) for role in roles}
    axes: dict[str, JsonValue] = {}
    for name in AXIS_NAMES:
        axis = site.axes.get(name)
        if axis is None:
            continue
        axes[name] = {"size": axis.size, "keep": axis.keep}
        if axis.share:
            shares: list[JsonValue] = [{"base": s.base, "units": s.units, "base_units": s.base_units} for s in axis.share]
            axes[name] = {"size": axis.size, "keep": axis.keep, "share": shares}
    document["axes"] = axes
    return document


def _member_document(member: MemberRef | None) -> JsonValue:
    if member is None:
        return None
    return {"param": member.param, "axis": member.axis, "ranges": member.ranges, "transposed": member.transposed}


def _emit(value: JsonValue, indent: str) -> str:
    """JSON in which an object of a member's shape stands on one line, and everything else is indented by one."""
    inner = indent + " "
    if isinstance(value, dict) and value and set(value) != set(MemberRef.model_fields):
        rows = [f"{inner}{_scalar(key)}: {_emit(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(inner + _emit(item, inner) for item in value) + f"\n{indent}]"
    return _scalar(value)


def _scalar(value: JsonValue) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _main() -> NoReturn:
    sys.stdout.write(schema_text())
    sys.exit(0)


if __name__ == "__main__":
    _main()
