"""Annotation files in COCO's JSON format, as MDETR's releases and COCO itself write them, read strictly.

A file is refused with one error that names the file and the place in it. Keys that are not read may be missing or hold
anything: the public files carry many. Three kinds are read: referring expressions (``finetune_refcoco_val.json``: every row of
``images`` is one expression and has one box), GQA (``finetune_gqa_testdev_balanced.json``, every row is one question, with the
vocabularies ``gqa_answer2id.json`` and ``gqa_answer2id_by_type.json``) and detection (``instances_val2017.json``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, Strict, TypeAdapter, ValidationError

from inarch.structure.errors import DataError
from inarch.structure.plan_types import json_path

PathLike = str | os.PathLike[str]
Place = tuple[str | int, ...]
T = TypeVar("T")

Text = Annotated[str, Field(min_length=1)]
Positive = Annotated[int, Field(ge=1)]
Length = Annotated[float, Field(ge=0)]
Class = Annotated[int, Field(lt=2**63)]
CategoryId = Annotated[int, Field(ge=0, lt=2**63)]
# JSON has no tuples: a strict tuple would refuse its arrays. What lies inside stays strict.
Box = Annotated[tuple[float, float, Length, Length], Strict(False)]
Span = Annotated[tuple[int, int], Strict(False)]
Spans = Annotated[tuple[Span, ...], Strict(False)]

GqaType = Literal["obj", "attr", "rel", "global", "cat"]
GQA_TYPES: tuple[GqaType, ...] = ("obj", "attr", "rel", "global", "cat")
"""In the order of the classes of MDETR's type head, which is not the order of its queries."""

UNKNOWN = "unknown"
"""What MDETR's vocabularies call an answer that they do not have."""


class Row(BaseModel):
    """Base of what is read: immutable, strict about types, indifferent to further keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)


class ImageRow(Row):
    """An image: its id, its file below the folder of images, and its size in pixels."""

    id: int
    file_name: Text
    height: Positive
    width: Positive


class Expression(ImageRow):
    """A referring expression: its text, its image, and the data set that it comes from.

    Attributes:
        caption: the expression.
        dataset_name: e.g. ``refcoco+``; a file may hold several data sets.
        original_id, original_img_id: COCO's id of the image, under the name that the file has.
        tokens_negative: [begin, end) of characters that speak of other objects.
    """

    caption: Text
    dataset_name: Text
    original_id: int | str | None = None
    original_img_id: int | str | None = None
    tokens_negative: Spans | None = None


class Question(ImageRow):
    """A question of GQA with its answer."""

    caption: Text
    question_id: int | Text = Field(validation_alias="questionId")
    question_type: GqaType
    answer: Text


class BoxRow(Row):
    """A box: x, y of its top left corner, width and height in pixels."""

    id: int
    image_id: int
    category_id: CategoryId
    bbox: Box
    area: Length
    iscrowd: Annotated[int, Field(ge=0, le=1)]


class Target(BoxRow):
    """The box of a referring expression, and [begin, end) of the characters that name it."""

    tokens_positive: Spans


class Category(Row):
    """A class of objects."""

    id: CategoryId
    name: Text


class _Referring(Row):
    images: list[Expression]
    annotations: list[Target]


class _Gqa(Row):
    images: list[Question]


class _Answers(Row):
    answer_obj: dict[str, Class]
    answer_attr: dict[str, Class]
    answer_rel: dict[str, Class]
    answer_global: dict[str, Class]
    answer_cat: dict[str, Class]


class _Coco(Row):
    images: list[ImageRow]
    annotations: list[BoxRow]
    categories: list[Category]


@dataclass(frozen=True, eq=False)
class ReferringFile:
    """Referring expressions, and the box of each."""

    source: str
    expressions: tuple[Expression, ...]
    targets: tuple[Target, ...]


@dataclass(frozen=True, eq=False)
class GqaFile:
    """Questions."""

    source: str
    questions: tuple[Question, ...]


@dataclass(frozen=True, eq=False)
class CocoFile:
    """Images with annotated boxes; every box belongs to an image and a category of the file."""

    source: str
    images: tuple[ImageRow, ...]
    annotations: tuple[BoxRow, ...]
    categories: tuple[Category, ...]


def read_referring(path: PathLike) -> ReferringFile:
    """Read referring expressions.

    Raises:
        DataError: the file cannot be read or is malformed; an expression without a box or with two; an empty box; characters that
            the expression does not have.
    """
    source = os.fspath(path)
    document = _read(path, TypeAdapter(_Referring))
    rows = _by_id(document.images, source, "images")
    _by_id(document.annotations, source, "annotations")
    target_of: dict[int, Target] = {}
    for number, target in enumerate(document.annotations):
        place: Place = ("annotations", number)
        if target.image_id not in rows:
            _refuse(source, (*place, "image_id"), f"no image has the id {target.image_id}")
        if target.image_id in target_of:
            _refuse(source, (*place, "image_id"), f"expression {target.image_id} has a box already", "an expression has one box")
        if min(target.bbox[2:]) <= 0:
            _refuse(source, (*place, "bbox"), "an empty box can never be found")
        _check_spans(target.tokens_positive, rows[target.image_id].caption, source, (*place, "tokens_positive"))
        target_of[target.image_id] = target
    for number, row in enumerate(document.images):
        if row.id not in target_of:
            _refuse(source, ("images", number), f"expression {row.id} has no box", "an expression has one box")
        _check_spans(row.tokens_negative or (), row.caption, source, ("images", number, "tokens_negative"))
    return ReferringFile(source, tuple(document.images), tuple(target_of[row.id] for row in document.images))


def read_gqa(path: PathLike) -> GqaFile:
    """Read questions. Their boxes, which only some splits have, are not read.

    Raises:
        DataError: the file cannot be read or is malformed, or a question has no answer.
    """
    secret = "only the splits train, val and testdev have types and answers"
    document = _read(path, TypeAdapter(_Gqa), {"answer": secret, "question_type": secret})
    _by_id(document.images, os.fspath(path), "images")
    return GqaFile(os.fspath(path), tuple(document.images))


def read_answers(path: PathLike) -> dict[str, int]:
    """Read one vocabulary, answer -> class, in the form of ``gqa_answer2id.json``.

    Raises:
        DataError: the file cannot be read or is malformed, or two answers are one class.
    """
    answers = _read(path, TypeAdapter(dict[str, Class], config=Row.model_config))
    _check_classes(answers, os.fspath(path), ())
    return answers


def read_answers_by_type(path: PathLike) -> dict[GqaType, dict[str, int]]:
    """Read a vocabulary for each type of question, in the form of ``gqa_answer2id_by_type.json``: ``answer_obj`` and so on.

    Raises:
        DataError: the file cannot be read or is malformed, a type is missing, or two answers of one type are one class.
    """
    source = os.fspath(path)
    hint = f"wanted are {', '.join(f'answer_{name}' for name in GQA_TYPES)}"
    document = _read(path, TypeAdapter(_Answers), {f"answer_{kind}": hint for kind in GQA_TYPES})
    found: dict[GqaType, dict[str, int]] = {}
    for kind in GQA_TYPES:
        found[kind] = getattr(document, f"answer_{kind}")
        _check_classes(found[kind], source, (f"answer_{kind}",))
    return found


def read_coco(path: PathLike) -> CocoFile:
    """Read a detection file.

    Raises:
        DataError: the file cannot be read or is malformed, or a box names an image or a category that the file does not have.
    """
    source = os.fspath(path)
    document = _read(path, TypeAdapter(_Coco))
    images = _by_id(document.images, source, "images")
    categories = _by_id(document.categories, source, "categories")
    _by_id(document.annotations, source, "annotations")
    for number, row in enumerate(document.annotations):
        if row.image_id not in images:
            _refuse(source, ("annotations", number, "image_id"), f"no image has the id {row.image_id}")
        if row.category_id not in categories:
            _refuse(source, ("annotations", number, "category_id"), f"no category has the id {row.category_id}")
    return CocoFile(source, tuple(document.images), tuple(document.annotations), tuple(document.categories))


def _refuse(source: str, place: Place, message: str, hint: str | None = None) -> NoReturn:
    where = f"{source}: {json_path(*place)}" if place else source
    raise DataError(message, where=where, hint=hint)


R = TypeVar("R", ImageRow, Expression, Question, BoxRow, Target, Category)


def _by_id(rows: Sequence[R], source: str, key: str) -> dict[int, R]:
    """Rows by their id; refuses an empty table of images and an id that stands twice."""
    if key == "images" and not rows:
        _refuse(source, (key,), "there is none")
    found: dict[int, R] = {}
    for number, row in enumerate(rows):
        if row.id in found:
            _refuse(source, (key, number, "id"), f"the id {row.id} stands here twice")
        found[row.id] = row
    return found


def _check_spans(spans: Iterable[tuple[int, int]], caption: str, source: str, place: Place) -> None:
    for number, (begin, end) in enumerate(spans):
        if not 0 <= begin < end <= len(caption):
            _refuse(source, (*place, number), f"[{begin}, {end}) are no characters of a text of {len(caption)}")


def _check_classes(answers: Mapping[str, int], source: str, place: Place) -> None:
    if not answers:
        _refuse(source, place, "a vocabulary has at least one answer")
    owner: dict[int, str] = {}
    for answer, number in answers.items():
        if number < 0:
            _refuse(source, (*place, answer), f"{number} is no class")
        if number in owner:
            _refuse(source, (*place, answer), f"{owner[number]!r} is class {number} already")
        owner[number] = answer


class _Refused(ValueError):
    """What the standard parser lets through."""


def _read(path: PathLike, wanted: TypeAdapter[T], hints: Mapping[str, str] | None = None) -> T:
    """Read a JSON file as a type; ``hints`` by the key that is wrong."""
    source = os.fspath(path)
    document = _strict_json(source)
    try:
        return wanted.validate_python(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        # A union's or a model's name in the middle of the place is no key of the file.
        place = _real(first["loc"], document)
        key = str(place[-1]) if place else ""
        hint = (hints or {}).get(key)
        if first["type"] == "missing":
            _refuse(source, place, "is missing", hint)
        said = first["msg"].removeprefix("Input ").lower().replace("tuple", "array").replace("dictionary", "object")
        _refuse(source, place, f"{said}, not {_short(first['input'])}", hint)


def _real(loc: Place, document: object) -> Place:
    """As much of pydantic's place as the document has, and a last key that it lacks."""
    place: list[str | int] = []
    for part in loc:
        if isinstance(document, dict) and isinstance(part, str):
            place.append(part)
            document = document.get(part)
        elif isinstance(document, list) and isinstance(part, int):
            place.append(part)
            document = document[part] if part < len(document) else None
    return tuple(place)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _strict_json(source: str) -> object:
    """Parse a file: UTF-8, one document, no key twice, no NaN."""
    try:
        text = Path(source).read_bytes().decode("utf-8")
        return json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except OSError as error:
        _refuse(source, (), f"cannot be read: {error.strerror or error}")
    except UnicodeDecodeError as error:
        _refuse(source, (), f"not UTF-8: {error.reason} at byte {error.start}")
    except json.JSONDecodeError as error:
        _refuse(source, (), f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}")
    except RecursionError:
        _refuse(source, (), "nested too deeply")
    except ValueError as error:  # ours, or an integer of thousands of digits
        _refuse(source, (), f"not JSON: {error}")


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    document = dict(pairs)
    if len(document) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for number, key in enumerate(keys) if key in keys[:number])
        raise _Refused(f"the key {twice!r} stands twice in one object")
    return document


def _constant(text: str) -> object:
    raise _Refused(f"{text} is no number of JSON")
