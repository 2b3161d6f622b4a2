from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inarch.learning.tasks.coco.files import (
    GQA_TYPES,
    read_answers,
    read_answers_by_type,
    read_coco,
    read_gqa,
    read_referring,
)
from inarch.structure.errors import DataError

from tests.learning.tasks.small import BY_TYPE, COCO, GQA, REFERRING, Json, changed, write


def refusal(read: Callable[[Path], object], path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    return caught.value


def test_referring(tmp_path: Path) -> None:
    file = read_referring(write(tmp_path, REFERRING))
    assert [row.caption for row in file.expressions] == ["the red ball", "a box on the left"]
    # In the order of the expressions, not of the annotations.
    assert [target.bbox for target in file.targets] == [(0, 0, 10, 10), (5, 10.5, 10, 20)]
    assert file.targets[0].tokens_positive == ((4, 7), (8, 12))
    assert file.expressions[1].dataset_name == "refcoco+"


MISTAKES: list[tuple[tuple[Any, ...], str, str]] = [
    (("images", ...), "images", "is missing"),
    (("images", {}), "images", "valid list"),
    (("images", []), "images", "there is none"),
    (("images", 0, "caption", ...), "images[0].caption", "is missing"),
    (("images", 0, "caption", ""), "images[0].caption", "at least 1 character"),
    (("images", 0, "dataset_name", None), "images[0].dataset_name", "valid string, not None"),
    (("images", 1, "height", 0), "images[1].height", "greater than or equal to 1"),
    (("images", 1, "height", 40.0), "images[1].height", "valid integer"),
    (("images", 1, "width", "30"), "images[1].width", "valid integer"),
    (("images", 1, "id", True), "images[1].id", "valid integer"),
    (("images", 1, "id", 7), "images[1].id", "7 stands here twice"),
    (("images", 0, "tokens_negative", [[0, 99]]), "images[0].tokens_negative[0]", "are no characters of a text of 12"),
    (("annotations", ...), "annotations", "is missing"),
    (("annotations", 0, "bbox", ...), "annotations[0].bbox", "is missing"),
    (("annotations", 0, "bbox", [1, 2, 3]), "annotations[0].bbox[3]", "is missing"),
    (("annotations", 0, "bbox", [1, 2, 3, 4, 5]), "annotations[0].bbox", "at most 4"),
    (("annotations", 0, "bbox", [1, 2, "3", 4]), "annotations[0].bbox[2]", "valid number, not '3'"),
    (("annotations", 0, "bbox", [1, 2, -3, 4]), "annotations[0].bbox[2]", "greater than or equal to 0"),
    (("annotations", 0, "bbox", 5), "annotations[0].bbox", "valid array"),
    (("annotations", 0, "bbox", [1, 2, 0, 4]), "annotations[0].bbox", "empty box"),
    (("annotations", 0, "iscrowd", 2), "annotations[0].iscrowd", "less than or equal to 1"),
    (("annotations", 0, "iscrowd", False), "annotations[0].iscrowd", "valid integer"),
    (("annotations", 0, "area", ...), "annotations[0].area", "is missing"),
    (("annotations", 0, "tokens_positive", ...), "annotations[0].tokens_positive", "is missing"),
    (("annotations", 0, "tokens_positive", [[3, 3]]), "annotations[0].tokens_positive[0]", "[3, 3) are no characters"),
    (("annotations", 0, "tokens_positive", [[-1, 3]]), "annotations[0].tokens_positive[0]", "are no characters"),
    (("annotations", 0, "tokens_positive", [[0, 1.5]]), "annotations[0].tokens_positive[0][1]", "valid integer"),
    (("annotations", 0, "image_id", 99), "annotations[0].image_id", "no image has the id 99"),
    (("annotations", 1, "image_id", 3), "annotations[1].image_id", "has a box already"),
    (("annotations", 1, "id", 0), "annotations[1].id", "stands here twice"),
    (("annotations", 1, ...), "images[0]", "expression 7 has no box"),
]


@pytest.mark.parametrize(("change", "place", "said"), MISTAKES)
def test_malformed_referring(tmp_path: Path, change: tuple[Any, ...], place: str, said: str) -> None:
    path = write(tmp_path, changed(REFERRING, *change))
    error = refusal(read_referring, path)
    assert error.where == f"{path}: {place}"
    assert said in error.message


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not JSON: Expecting value at line 1, column 1"),
        (b'{"images": [', "not JSON"),
        (b"{} {}", "not JSON: Extra data"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' stands twice"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not JSON"),
        (b"[" * 200_000, "nested too deeply"),
        (b"[]", "valid object"),
    ],
)
def test_no_json(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(data)
    assert re.search(said, refusal(read_referring, path).message)


def test_numbers_beyond_floats(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(write(tmp_path, REFERRING).read_text().replace("10.5", "1e999"))
    assert refusal(read_referring, path).where == f"{path}: annotations[0].bbox[1]"


def test_no_file(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refusal(read_coco, tmp_path / "none.json").message
    assert "cannot be read" in refusal(read_coco, tmp_path).message


def test_gqa(tmp_path: Path) -> None:
    file = read_gqa(write(tmp_path, GQA))
    assert [(row.question_id, row.question_type, row.answer) for row in file.questions] == [
        ("0501", "attr", "yes"),
        ("0502", "cat", "ball"),
        ("0503", "cat", "zebra"),
    ]


@pytest.mark.parametrize(
    ("change", "place", "said"),
    [
        (("images", 0, "questionId", ...), "images[0].questionId", "is missing"),
        (("images", 0, "questionId", 1.5), "images[0].questionId", "should be a valid"),
        (("images", 1, "answer", None), "images[1].answer", "valid string, not None"),
        (("images", 1, "question_type", "query"), "images[1].question_type", "'obj', 'attr', 'rel', 'global' or 'cat'"),
        (("images", 1, "question_type", None), "images[1].question_type", "'obj'"),
    ],
)
def test_malformed_gqa(tmp_path: Path, change: tuple[Any, ...], place: str, said: str) -> None:
    path = write(tmp_path, changed(GQA, *change))
    error = refusal(read_gqa, path)
    assert error.where == f"{path}: {place}"
    assert said in error.message
    assert (error.hint is not None) == (change[2] != "questionId")


def test_answers(tmp_path: Path) -> None:
    assert read_answers(write(tmp_path, {"yes": 1, "no": 0})) == {"yes": 1, "no": 0}
    found = read_answers_by_type(write(tmp_path, BY_TYPE | {"answer_more": {}, "version": 1}))
    assert list(found) == list(GQA_TYPES)
    assert found["cat"] == {"ball": 1, "box": 0, "unknown": 2}


@pytest.mark.parametrize(
    ("document", "place", "said"),
    [
        ({}, "", "at least one answer"),
        ({"yes": "0"}, "yes", "valid integer"),
        ({"yes": 0, "no": 0}, "no", "'yes' is class 0 already"),
        ({"yes": -1}, "yes", "-1 is no class"),
        ({"yes": 2**70}, "yes", "less than 9223372036854775808"),
        ({"yes": 0, "no": {"maybe": 1}}, "no", "valid integer"),
    ],
)
def test_malformed_answers(tmp_path: Path, document: Json, place: str, said: str) -> None:
    path = write(tmp_path, document)
    error = refusal(read_answers, path)
    assert error.where == (f"{path}: {place}" if place else str(path))
    assert said in error.message


@pytest.mark.parametrize(
    ("change", "place", "said"),
    [
        (("answer_rel", ...), "answer_rel", "is missing"),
        (("answer_rel", {}), "answer_rel", "at least one answer"),
        (("answer_rel", 3), "answer_rel", "valid object"),
        (("answer_cat", "box", 1), "answer_cat.box", "'ball' is class 1 already"),
        (("answer_cat", "box", None), "answer_cat.box", "valid integer"),
    ],
)
def test_malformed_answers_by_type(tmp_path: Path, change: tuple[Any, ...], place: str, said: str) -> None:
    path = write(tmp_path, changed(BY_TYPE, *change))
    error = refusal(read_answers_by_type, path)
    assert error.where == f"{path}: {place}"
    assert said in error.message


def test_coco(tmp_path: Path) -> None:
    file = read_coco(write(tmp_path, COCO))
    assert [len(part) for part in (file.images, file.annotations, file.categories)] == [2, 4, 2]
    assert list(file.annotations[3].bbox) == [2, 40, 20, 15.5]
    assert file.annotations[2].iscrowd == 1
    # COCO's training set has boxes without width.
    thin = read_coco(write(tmp_path, changed(COCO, "annotations", 0, "bbox", [1, 2, 0, 4])))
    assert list(thin.annotations[0].bbox) == [1, 2, 0, 4]


@pytest.mark.parametrize(
    ("change", "place", "said"),
    [
        (("categories", ...), "categories", "is missing"),
        (("categories", 0, "name", ...), "categories[0].name", "is missing"),
        (("categories", 1, "id", 18), "categories[1].id", "18 stands here twice"),
        (("categories", 1, "id", -5), "categories[1].id", "greater than or equal to 0"),
        (("categories", 1, "id", 2**70), "categories[1].id", "less than 9223372036854775808"),
        (("annotations", 2, "category_id", 19), "annotations[2].category_id", "no category has the id 19"),
        (("annotations", 2, "image_id", 19), "annotations[2].image_id", "no image has the id 19"),
        (("annotations", 2, "iscrowd", ...), "annotations[2].iscrowd", "is missing"),
        (("images", 1, "file_name", ...), "images[1].file_name", "is missing"),
    ],
)
def test_malformed_coco(tmp_path: Path, change: tuple[Any, ...], place: str, said: str) -> None:
    path = write(tmp_path, changed(COCO, *change))
    error = refusal(read_coco, path)
    assert error.where == f"{path}: {place}"
    assert said in error.message
