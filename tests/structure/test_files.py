"""Files are whole or not there, and nothing is left beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from inarch.structure.files import whole


def test_a_file_takes_the_others_place_when_it_is_done(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("before")
    with whole(path) as draft:
        draft.write_text("after")
        assert path.read_text() == "before"
        assert draft.parent == tmp_path
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def spoil(path: Path) -> None:
    with whole(path) as draft:
        draft.write_text("half")
        raise RuntimeError("half of it")


def fill(path: Path, text: str = "after") -> None:
    with whole(path) as draft:
        draft.write_text(text)


def test_what_goes_wrong_leaves_what_stood_there(tmp_path: Path) -> None:
    path, folder = tmp_path / "a.json", tmp_path / "folder"
    path.write_text("before")
    folder.mkdir()
    with pytest.raises(RuntimeError, match="half of it"):
        spoil(path)
    with pytest.raises(FileNotFoundError), whole(path):
        pass  # nothing was written
    with pytest.raises(FileNotFoundError):
        fill(tmp_path / "none" / "a.json")
    with pytest.raises(IsADirectoryError):
        fill(folder)
    assert path.read_text() == "before"
    assert sorted(tmp_path.iterdir()) == [path, folder]
