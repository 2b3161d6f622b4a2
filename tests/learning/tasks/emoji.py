"""Packages of emoji with plain rectangles in them, for those who have not fetched the real ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from inarch.learning.tasks.sprites.package import STYLES, VERSIONS
from inarch.learning.tasks.sprites.words import NAMES


def colour(number: int, style: str) -> tuple[int, int, int]:
    """Another one for every concept, bright in one style and dark in the other."""
    parts = number % 4, number // 4 % 4, number // 16
    low = 170 if style == "google" else 10
    return low + 25 * parts[0], low + 25 * parts[1], low + 25 * parts[2]


def write(path: Path, document: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")


def make_packages(home: Path) -> Path:
    """Packages of plain rectangles with clear margins, in the proportions 1:1, 2:1 and 1:2."""
    from PIL import Image

    codes = {name: f"1F{number:03X}" for number, name in enumerate(NAMES)}
    for name, version in VERSIONS.items():
        write(home / name / "package.json", {"name": name, "version": version})
    write(home / "emojibase-data/en/data.json", [{"label": name, "hexcode": code} for name, code in codes.items()])
    for style in STYLES:
        folder = home / f"emoji-datasource-{style}"
        # Some codes have the selector of coloured pictures in this table alone.
        rows = [
            {"unified": code + "-FE0F" * (n % 2), "image": f"{code.lower()}.png"} | {f"has_img_{s}": True for s in STYLES}
            for n, code in enumerate(codes.values())
        ]
        write(folder / "emoji.json", rows)
        (folder / "img" / style / "64").mkdir(parents=True)
        for number, code in enumerate(codes.values()):
            pixels = np.zeros((64, 64, 4), np.uint8)
            wide, high = ((40, 40), (40, 20), (20, 40))[number % 3]
            pixels[10 : 10 + high, 15 : 15 + wide] = (*colour(number, style), 255)
            Image.fromarray(pixels).save(folder / "img" / style / "64" / f"{code.lower()}.png")
    return home
