"""``make bench-models PROVIDER=...``: what is run, what is reported, and what is said where there is no device."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

from inarch.runtime import providers
from inarch.tools.benchmarks import models_device
from inarch.tools.benchmarks.watch import Watched
from inarch.tools.cli import app

CUDA = "CUDAExecutionProvider"


def said(command: str, provider: str) -> dict[str, Any]:
    """What a step would print."""
    if command == "verify":
        placement = {"counts": {CUDA: 90, "CPUExecutionProvider": 10}} if provider == "cuda" else None
        return {"ok": True, "equivalence": {"outputs": [{"relative": 1e-6}, {"relative": 3e-6}]}, "placement": placement}
    if command == "bench":
        row = {"dense": {"median": 4.0}, "compiled": {"median": 3.0}, "ratio": 0.75, "low": 0.7, "high": 0.8, "case": "batch 4"}
        memory = {"model_device": 2_000_000 if provider == "cuda" else None}
        return {"latency": [row], "dense": {"memory": memory}, "compiled": {"memory": memory}, "notes": ["weights are fp32"]}
    return {}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that were run, none of them really."""
    commands: list[list[str]] = []

    def watch(command: Sequence[str], accept: Sequence[int] = (0,)) -> Watched:
        assert list(command[1:3]) == ["-m", "inarch"]
        commands.append(list(command[3:]))
        provider = command[command.index("--provider") + 1] if "--provider" in command else "cpu"
        return Watched(1.0, 0, 0, json.dumps(said(command[3], provider)))

    monkeypatch.setattr(models_device, "watch", watch)
    monkeypatch.setattr(models_device, "save_inputs", lambda subject, path: path.touch())
    return commands


@pytest.mark.parametrize("provider", ["cuda", "cpu"])
def test_both_models_in_both_precisions(
    ran: list[list[str]], provider: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(providers, "missing_device", lambda name: "")
    assert models_device.main(["--provider", provider, "--out", str(tmp_path)]) == 0
    steps = [command[0] for command in ran]
    whole, half = ["export", "plan", "compile", "verify", "bench"], ["quantize", "compile", "verify", "bench"]
    assert steps == 2 * (whole + half)
    for command in ran:
        assert ("--provider" in command) == (command[0] in ("quantize", "verify", "bench"))
    text = (tmp_path / f"models-{provider}.md").read_text()
    assert capsys.readouterr().out.endswith(text)
    for model in ("mdetr-vit-b", "glip-t"):
        for precision in ("fp32", "fp16"):
            if provider == "cuda":
                assert f"| {model} | {precision} | yes | 3.0e-06 | 90 CUDA, 10 CPU | 2.0 MB | 2.0 MB |" in text
            else:
                assert f"| {model} | {precision} | yes | 3.0e-06 | - | - | - |" in text
            assert f"| {model} | {precision} | batch 4 | 4.00 | 3.00 | 0.750 | 0.700 to 0.800 |" in text
    about = json.loads((tmp_path / f"models-{provider}.json").read_text())["about"]
    assert about["provider"] == provider


def test_fp16_is_compiled_from_the_fp16_model_with_the_fp32_models_plan(tmp_path: Path) -> None:
    quantize, compile_, verify, bench = models_device.commands("glip-t", "fp16", tmp_path, 0.63, "cuda")
    dense, compiled, plan = (str(tmp_path / f"glip-t.{end}") for end in ("fp16.onnx", "fp16.compiled.onnx", "plan.json"))
    assert quantize[1] == str(tmp_path / "glip-t.onnx")
    assert compile_[1:4] == [dense, plan, "--out"]
    assert verify[1:4] == [dense, plan, compiled]
    assert bench[1:3] == [dense, compiled]


def test_every_command_is_one_that_the_command_line_knows(tmp_path: Path) -> None:
    """Parsed, and not run."""
    group: Any = typer.main.get_command(app)
    for precision in models_device.PRECISIONS:
        for name, *arguments in models_device.commands("glip-t", precision, tmp_path, 0.63, "cpu"):
            command = group.commands[name]
            if name == "plan":
                command, arguments = command.commands[arguments[0]], arguments[1:]
            command.make_context(name, arguments)


def test_a_model_that_is_not_equivalent_fails(
    ran: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(providers, "missing_device", lambda name: "")
    wrong = {**said("verify", "cuda"), "ok": False}
    found = [models_device.Found("glip-t", "fp32", wrong, said("bench", "cuda"))]
    monkeypatch.setattr(models_device, "measure", lambda *unused: found)
    assert models_device.main(["--provider", "cuda", "--out", str(tmp_path)]) == 1
    assert "| glip-t | fp32 | NO |" in capsys.readouterr().out
    assert not ran


def test_without_the_device_it_says_so_and_is_done(
    ran: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(providers, "missing_device", lambda name: f"this machine has no {name}")
    assert models_device.main(["--provider", "cuda", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "skipped: this machine has no cuda\n"
    assert models_device.main(["--provider", "cuda", "--has-device"]) == 1
    monkeypatch.setattr(providers, "missing_device", lambda name: "")
    assert models_device.main(["--provider", "cuda", "--has-device"]) == 0
    assert not ran
    assert not list(tmp_path.iterdir())
