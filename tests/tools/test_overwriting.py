"""What a command reads is never what it writes: not the plan, not the cost table, not the model's data, and no device."""

from __future__ import annotations

import os
import shutil
import stat
import threading
from pathlib import Path

import onnx
import pytest

from inarch.compiler import writer
from inarch.structure.cost import DEFAULT_COST, save_cost

from tests.tools.conftest import Run, two_ffns
from tests.tools.test_hostile import refused

COMMANDS = {
    "compile over the plan": ("compile MODEL PLAN -o PLAN", "plan.json"),
    "compile over the cost table": ("compile MODEL PLAN --cost COST -o COST", "cost.json"),
    "compile over the data": ("compile MODEL PLAN -o DATA", "weights.bin"),
    "compile over a link to the model": ("compile MODEL PLAN -o LINK", "link.onnx"),
    "plan over the model": ("plan make MODEL --keep 0.7 -o MODEL", "model.onnx"),
    "plan over the data": ("plan make MODEL --keep 0.7 -o DATA", "weights.bin"),
    "plan over the cost table": ("plan make MODEL --keep 0.7 --cost COST -o COST", "cost.json"),
    "int8 over the data": ("quantize MODEL --to int8 --pairs 0 -o DATA", "weights.bin"),
    "fp16 over the model": ("quantize MODEL --to fp16 --pairs 0 -o MODEL", "model.onnx"),
    "report over the plan": ("report FOLDER -o PLAN", "plan.json"),
    "predictions over the model": ("evaluate MODEL --task scenes --predictions MODEL", "model.onnx"),
    "export over the checkpoint": ("export --model mdetr-tiny --checkpoint DATA -o DATA", "weights.bin"),
}


@pytest.mark.parametrize(("command", "named"), COMMANDS.values(), ids=COMMANDS)
def test_no_input_is_replaced(inarch: Run, plan: Path, tmp_path: Path, command: str, named: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    paths = {name: folder / f"{name.lower()}.onnx" for name in ("MODEL", "LINK")}
    paths |= {"DATA": folder / "weights.bin", "PLAN": folder / "plan.json", "COST": folder / "cost.json", "FOLDER": folder}
    onnx.save(two_ffns(), paths["MODEL"], save_as_external_data=True, location="weights.bin", size_threshold=0)
    paths["LINK"].symlink_to(paths["MODEL"])
    shutil.copy(plan, paths["PLAN"])
    save_cost(DEFAULT_COST, paths["COST"])
    refused(inarch, folder, [paths.get(word, word) for word in command.split()], named, "a file that is read")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes")
def test_no_device_is_replaced(inarch: Run, model: Path, plan: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reports: list[list[str | Path]] = [["compile", model, plan], ["quantize", model, "--to", "int8", "--pairs", "0"]]
    for arguments in reports:
        done = inarch(*arguments, "-o", pipe)
        assert done.code == 2
        assert "a device or a pipe" in " ".join(done.err.split())
        assert stat.S_ISFIFO(pipe.stat().st_mode)
    # A plan goes through a pipe as it comes.
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    assert inarch("plan", "make", model, "--keep", "0.7", "-o", pipe).code == 0
    reader.join()
    assert read[0].startswith("{")
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_word_is_found_wherever_it_lies(tmp_path: Path) -> None:
    path, chunk = tmp_path / "a.onnx", 1 << 20
    for at in (0, chunk - 3, chunk, 2 * chunk - 1):
        path.write_bytes(bytes(at) + b"m.0123.data" + bytes(chunk))
        assert writer._says(path, b"m.0123.data")
        assert not writer._says(path, b"m.0124.data")
