"""The Python of docs/integrations.md does what the page says."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install 'inarch[torch]'")

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    for number, block in enumerate(blocks):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's exporter warns of its own parts
            exec(compile(block, f"block {number}", "exec"), names)
    assert {"compiled.onnx", "plan.json"} <= {path.name for path in tmp_path.iterdir()}
