"""Archives of arrays, read whole: whatever is wrong with one is one kind of error."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def read_npz(path: str | Path) -> dict[str, npt.NDArray[Any]]:
    """All arrays of an ``.npz`` file by their names.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no archive of arrays, or a broken one.
    """
    try:
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise ValueError("it is one array without a name")
            with loaded as archive:
                found: dict[str, Any] = {name: archive[name] for name in archive.files}
    except (KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(str(error)) from error
    stray = next((name for name, values in found.items() if not isinstance(values, np.ndarray)), None)
    if stray is not None:
        raise ValueError(f"{stray} is no array")
    return found
