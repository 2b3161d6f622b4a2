"""What ``make test-gpu`` needs is found, or named; nothing here needs a GPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.gpu.run import DRIVER, LOADER, Unready, environment, folders, has_gpu


@pytest.fixture
def chromium(tmp_path: Path) -> Path:
    place = tmp_path / "chromium"
    place.mkdir()
    for name in (DRIVER, LOADER):
        (place / name).touch()
    return place


def test_chromiums_driver_is_used_where_there_is_no_gpu(chromium: Path) -> None:
    found = environment({"HOME": "/home"}, [chromium], gpu=False, loader=True)
    driver = str(chromium / DRIVER)
    assert found == {"HOME": "/home", "VK_DRIVER_FILES": driver, "VK_ICD_FILENAMES": driver, "XDG_RUNTIME_DIR": "/tmp"}


def test_a_gpus_own_driver_and_the_users_choice_come_first(chromium: Path) -> None:
    assert "VK_DRIVER_FILES" not in environment({}, [chromium], gpu=True, loader=True)
    given = {"VK_ICD_FILENAMES": "/mine.json", "XDG_RUNTIME_DIR": "/run"}
    assert environment(given, [chromium], gpu=False, loader=True) == given


def test_chromiums_loader_stands_in_for_the_systems(chromium: Path) -> None:
    found = environment({"LD_LIBRARY_PATH": "/lib"}, [chromium], gpu=False, loader=False)
    assert found["LD_LIBRARY_PATH"] == f"{chromium}{os.pathsep}/lib"


def test_what_is_missing_is_said_with_what_to_install(tmp_path: Path, chromium: Path) -> None:
    with pytest.raises(Unready, match="apt-get install chromium libvulkan1"):
        environment({}, [tmp_path], gpu=False, loader=True)
    (chromium / LOADER).unlink()
    with pytest.raises(Unready, match="libvulkan1"):
        environment({}, [chromium], gpu=False, loader=False)


def test_folders_and_devices_are_looked_for(tmp_path: Path) -> None:
    (tmp_path / "chromium-1").mkdir()
    (tmp_path / "chromium-2").touch()
    assert folders([f"{tmp_path}/chromium-*", f"{tmp_path}/none"]) == [tmp_path / "chromium-1"]
    assert not has_gpu(tmp_path)
    (tmp_path / "dri").mkdir()
    (tmp_path / "dri" / "renderD128").touch()
    assert has_gpu(tmp_path)
