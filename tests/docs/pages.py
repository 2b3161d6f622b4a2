"""What tests of pages have in common: their blocks, and a working folder with files that were made once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, *fences: str) -> list[str]:
    """The text of a page's blocks with one of these words after the fence."""
    return [text for fence, text in _FENCE.findall(page.read_text(encoding="utf-8")) if fence in fences]


def prose(page: Path) -> str:
    """A page without its blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def work_in(folder: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder the working one, with copies of what was made once."""
    for path in made.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(folder)
    return folder
