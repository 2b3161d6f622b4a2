"""Images of the next batch are prepared while one is learned from, once, and are the same ones."""

from __future__ import annotations

from threading import Event
from typing import Any

import numpy as np
import pytest

from inarch.learning.tasks.coco.ahead import Ahead
from inarch.learning.tasks.coco.files import ImageRow
from inarch.structure.errors import DataError

NAMES = "abcdef"
ROWS = {name: ImageRow(id=number, file_name=name, height=1, width=number + 1) for number, name in enumerate(NAMES)}
LONG = 60.0
"""Seconds after which a thread that should have begun never will."""


class Reader:
    """Makes an image of a row, and says so."""

    def __init__(self, broken: str = "") -> None:
        self.read: list[str] = []
        self.begun = {name: Event() for name in NAMES}
        self.broken = broken

    def __call__(self, row: ImageRow) -> Any:
        self.read.append(row.file_name)
        self.begun[row.file_name].set()
        if row.file_name in self.broken:
            raise DataError("is broken", where=row.file_name)
        return np.full((3, 1, row.width), row.width, np.float32)


def rows(names: str) -> list[ImageRow]:
    return [ROWS[name] for name in names]


def widths(images: list[Any]) -> list[int]:
    return [image.shape[2] for image in images]


def test_the_next_batch_is_begun_with_and_read_once() -> None:
    reader = Reader()
    ahead = Ahead(reader)
    assert widths(ahead.take("weights", rows("ab"), rows("cd"))) == [1, 2]
    assert all(reader.begun[name].wait(LONG) for name in "cd"), "nobody has asked for them"
    assert widths(ahead.take("structure", rows("e"), rows("f"))) == [5]
    assert widths(ahead.take("weights", rows("cd"), [])) == [3, 4]
    assert reader.begun["f"].wait(LONG)
    assert sorted(reader.read) == list("abcdef")


def test_what_was_not_expected_is_read_all_the_same() -> None:
    ahead = Ahead(Reader())
    ahead.take("weights", rows("ab"), rows("cd"))
    assert widths(ahead.take("weights", rows("dc"), rows("e"))) == [4, 3]
    assert widths(ahead.take("weights", rows("e"), [])) == [5]


def test_an_image_that_is_broken_is_said_when_it_is_wanted() -> None:
    ahead = Ahead(Reader(broken="c"))
    assert widths(ahead.take("weights", rows("ab"), rows("cd"))) == [1, 2]
    with pytest.raises(DataError, match="is broken"):
        ahead.take("weights", rows("cd"), rows("e"))
    assert widths(ahead.take("weights", rows("e"), [])) == [5]
