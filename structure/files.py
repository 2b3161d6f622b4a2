"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A draft beside a file, to be written in its place: it takes the file's name when all of it is on the disk.

    Whatever goes wrong, what stood there still stands and no draft is left; a killed process may leave one, hidden and under its
    own number. Two writers of one file do not get in each other's way.

    Raises:
        OSError: the draft cannot be put in place; what the caller raises goes through.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield draft
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
