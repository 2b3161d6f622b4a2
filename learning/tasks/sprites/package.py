"""The emoji pictures and their names, from three npm packages that the user unpacks; nothing of them lies in this repository.

The art is Google's (Apache 2.0) and Twitter's (CC-BY 4.0), the names are emojibase's (MIT). Every file that is read is checked.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from inarch.learning.tasks.coco.images import pillow
from inarch.learning.tasks.sprites.words import NAMES
from inarch.structure.errors import DataError

Picture = npt.NDArray[np.uint8]
"""Red, green, blue and cover, [H, W, 4], cut to what is painted."""

Style = Literal["google", "twitter"]
STYLES: tuple[Style, ...] = ("google", "twitter")

FOLDER = "INARCH_SPRITES"
"""The environment variable that says where the packages are."""

SIDE = 64
"""Of a picture in its package, in pixels."""

VERSIONS: Mapping[str, str] = {
    "emoji-datasource-google": "16.0.0",
    "emoji-datasource-twitter": "16.0.0",
    "emojibase-data": "17.0.0",
}
"""Package -> the version that is read."""

_LABELS = "emojibase-data/en/data.json"

_PAINTED = 64
"""Cover from which on a pixel counts as painted."""

_HINT = (
    f"npm install --ignore-scripts --no-save --prefix FOLDER {' '.join(f'{name}@{v}' for name, v in VERSIONS.items())}"
    f" && export {FOLDER}=FOLDER"
)


@dataclass(frozen=True)
class Pins:
    """What the files must be.

    Attributes:
        files: file below the packages' folder -> its sha256.
        pictures: style -> sha256 over the pictures used, one after the other in the order of the names.
    """

    files: Mapping[str, str]
    pictures: Mapping[Style, str]


_TABLE = "1d602e65be88772bf8cc368ce16b855d719eeddbafe128d471b80203f494d29f"  # one table, in both packages

PINS = Pins(
    {
        "emoji-datasource-google/emoji.json": _TABLE,
        "emoji-datasource-twitter/emoji.json": _TABLE,
        _LABELS: "ed014f1049bd370c5794f815850156196ac382850f51c3e9f6a9e83553fb3f01",
    },
    {
        "google": "a79c0cf5e26ee548a72e4e36ced3df0749bd8ea2ad35a7191d16570f361779d2",
        "twitter": "8125642ec1a263ab446220e272c81e5e59521a29a89a93e5b48e45b88f8de388",
    },
)


def find_packages(folder: Path | None = None) -> Path:
    """The folder with the unpacked packages, each under its own name.

    Args:
        folder: that one, or what npm was given as its prefix; without it, what the environment says.

    Raises:
        DataError: it is not said or not there, or a package is missing or is of another version.
    """
    said = folder or (Path(os.environ[FOLDER]) if os.environ.get(FOLDER) else None)
    if said is None:
        raise DataError("nothing says where the emoji packages are", where=FOLDER, hint=_HINT)
    home = said / "node_modules" if (said / "node_modules").is_dir() else said
    for name, version in VERSIONS.items():
        found = _json(home / name / "package.json")
        if not isinstance(found, dict) or found.get("version") != version:
            raise DataError(f"is not version {version} of {name}", where=str(home / name / "package.json"), hint=_HINT)
    return home


def load_pictures(style: Style, folder: Path | None = None, pins: Pins = PINS) -> list[Picture]:
    """The pictures of one style, in the order of the names.

    Args:
        style: who drew them.
        folder: as in :func:`find_packages`.
        pins: what the files must be.

    Raises:
        DataError: a package is missing, or a file is another than the pins say.
    """
    home = find_packages(folder)
    for name in (f"emoji-datasource-{style}/emoji.json", _LABELS):
        _same(home / name, hashlib.sha256(_bytes(home / name)).hexdigest(), pins.files[name])
    paths = picture_paths(home, style)
    _same(paths[0].parent, digest(paths), pins.pictures[style])
    return [_open(path) for path in paths]


def measure(folder: Path) -> Pins:
    """The pins that the packages in a folder have; for a new version, to be compared with what npm says of it."""
    home = find_packages(folder)
    files = {name: hashlib.sha256(_bytes(home / name)).hexdigest() for name in PINS.files}
    return Pins(files, {style: digest(picture_paths(home, style)) for style in STYLES})


def picture_paths(home: Path, style: Style) -> list[Path]:
    """The files of the pictures, in the order of the names.

    Raises:
        DataError: a name is not in the tables, or has no picture of the style.
    """
    labels, table = home / _LABELS, home / f"emoji-datasource-{style}" / "emoji.json"
    code = {row["label"]: row["hexcode"] for row in _json(labels)}
    # One table leaves out the selector of coloured pictures, the other writes it.
    image = {row["unified"].removesuffix("-FE0F"): row["image"] for row in _json(table) if row[f"has_img_{style}"]}
    paths = []
    for name in NAMES:
        if name not in code:
            raise DataError(f"there is no emoji {name!r}", where=str(labels), hint=_HINT)
        if code[name].removesuffix("-FE0F") not in image:
            raise DataError(f"there is no picture of {name!r}", where=str(table), hint=_HINT)
        file = image[code[name].removesuffix("-FE0F")]
        paths.append(home / f"emoji-datasource-{style}" / "img" / style / str(SIDE) / file)
    return paths


def digest(paths: list[Path]) -> str:
    """The sha256 over files, one after the other."""
    found = hashlib.sha256()
    for path in paths:
        found.update(hashlib.sha256(_bytes(path)).digest())
    return found.hexdigest()


def _same(path: Path, found: str, wanted: str) -> None:
    if found != wanted:
        raise DataError(f"does not hold what the pinned version does: its sha256 is {found}", where=str(path), hint=_HINT)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=str(path), hint=_HINT) from error


def _json(path: Path) -> Any:
    try:
        return json.loads(_bytes(path))
    except ValueError as error:
        raise DataError("is not JSON", where=str(path), hint=_HINT) from error


def _open(path: Path) -> Picture:
    """A picture, cut to what is painted; the files' digest stands for their form."""
    with pillow().open(path) as opened:
        pixels = np.asarray(opened.convert("RGBA"))
    rows, columns = (np.flatnonzero((pixels[..., 3] >= _PAINTED).any(axis)) for axis in (1, 0))
    return np.ascontiguousarray(pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
