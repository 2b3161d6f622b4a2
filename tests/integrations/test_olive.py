"""The documented Olive workflow, run by Olive itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

import inarch

from tests.tools.conftest import two_ffns

pytest.importorskip("olive", reason="Olive is not installed: pip install olive-ai")

ROOT = Path(__file__).parents[2]


def test_the_documented_workflow_compiles_a_model(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    onnx.save(two_ffns(), model)
    plan = inarch.make_plan(model, keep=0.6, method="similarity")
    inarch.save_plan(plan, tmp_path / "plan.json")
    (tmp_path / "workflow.json").write_text((ROOT / "docs" / "examples" / "olive_workflow.json").read_text())
    package = subprocess.run([sys.executable, "-m", "inarch.tools.olive_pass"], capture_output=True, text=True, check=True)
    assert "InarchCompile" in json.loads(package.stdout)["passes"]
    (tmp_path / "package.json").write_text(package.stdout)
    command = [sys.executable, "-m", "olive", "run", "--config", "workflow.json", "--package-config", "package.json"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"OLIVE_DISABLE_TELEMETRY": "1"}, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    written = sorted((tmp_path / "olive-out").rglob("*.onnx"))
    assert len(written) == 1, done.stdout + done.stderr
    assert inarch.verify(model, plan, written[0]).ok
    assert written[0].stat().st_size < model.stat().st_size
