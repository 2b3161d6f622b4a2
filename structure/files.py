"""Files that are whole or not there, and that take no other file's place."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from inarch.structure.errors import InarchError


def refuse_to_replace(out: Path, inputs: Iterable[str | os.PathLike[str] | None]) -> None:
    """Refuse an output that is one of the inputs, by whatever name.

    Args:
        out: where something is to be written.
        inputs: what is read; None stands for what was not given.

    Raises:
        InarchError: it is one of them.
    """
    for path in inputs:
        with suppress(OSError):  # what is not there is not replaced
            if path is not None and out.samefile(path):
                raise InarchError("this is a file that is read", where=str(out), hint="write under another name")


def refuse_devices(out: Path) -> None:
    """Refuse to put a file where a device, a pipe or a socket is.

    Raises:
        OSError: there is one.
    """
    if out.exists() and not out.is_file() and not out.is_dir():
        raise OSError(errno.EINVAL, "this is no file but a device or a pipe", str(out))


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A draft beside a file, to be written in its place: it takes the file's name when all of it is on the disk.

    Whatever goes wrong, what stood there still stands and no draft is left; a killed process may leave one, hidden and under its
    own number. Two writers of one file do not get in each other's way.

    Raises:
        OSError: the draft cannot be put in place, or a device is there; what the caller raises goes through.
    """
    refuse_devices(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield draft
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
