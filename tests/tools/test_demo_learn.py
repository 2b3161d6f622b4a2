"""The demo of the whole way, on a handful of scenes and steps: every chapter runs, and what it promises holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from inarch.structure.plan import load_plan
from inarch.tools.cli import main
from inarch.tools.demo import Demo
from inarch.tools.report_collect import collect

if TYPE_CHECKING:
    from inarch.learning.config import LearnConfig


@pytest.fixture(autouse=True, scope="module")
def smaller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The demo's model is the tests' small one."""
    from inarch.learning.models import registry

    from tests.learning import outlines, tiny

    with pytest.MonkeyPatch.context() as patch, outlines.shared(tmp_path_factory):
        patch.setattr(registry, "PRESETS", {**registry.PRESETS, "mdetr-tiny": tiny.MDETR})
        yield


def test_the_whole_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo = Demo(tmp_path, 0.7, "easy", (3, 6, 2), 0, quiet=False, scenes=200, held_out=30)
    found = demo.run()
    said = capsys.readouterr().out
    assert found["ok"], said
    assert "equivalent" in said
    assert found["agreement"]["relative"] < 1e-5
    assert abs(found["stored"] / found["parameters"] - 0.7) < 0.02
    assert load_plan(tmp_path / "plan.json").expect is not None
    for name in ("config.json", "curves.png", "structure.png", "compiled.onnx", "small/model.onnx", "dense/model.onnx"):
        assert (tmp_path / name).stat().st_size > 0, name
    assert " ".join(said.split()).endswith(f"report: {tmp_path / 'report.html'}")
    page = collect(tmp_path)
    assert page.state == "equivalent"
    assert not page.missing
    assert page.accuracy[0].samples == 30 * 4
    assert [chart.most > 0 for chart in page.damage] == [False, True]  # trained under the plan, and not
    assert {bar.model for bar in page.speed[0].latency[0].bars} == {"dense", "pruned", "shared", "compiled"}
    assert page.examples[0].examples


def test_a_run_that_was_begun_keeps_its_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from inarch.learning import precision, runs

    begun: list[LearnConfig] = []

    def stopped(config: LearnConfig, folder: Path, **_: object) -> None:
        begun.append(config)
        (folder / "config.json").write_text(config.model_dump_json(), encoding="utf-8")
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "learn", stopped)
    for faster in ("bf16", "no"):
        monkeypatch.setattr(precision, "faster_precision", lambda shop, faster=faster: faster)
        with pytest.raises(KeyboardInterrupt):
            Demo(tmp_path, 0.7, "easy", (3, 6, 2), 0, quiet=True, scenes=200, held_out=30).run()
    assert [config.precision for config in begun] == ["bf16", "bf16"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "3,6"], "three numbers"),
        (["--steps", "a,b,c"], "--steps: 'a,b,c' is not a list of numbers of steps"),
        (["--keep", "1.5"], "structure.keep"),
        (["--keep", "0.01"], "out of reach"),
        (["--level", "odd"], "there is no level"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    from inarch.learning import precision

    monkeypatch.delattr(precision, "_seconds")
    assert main(["demo", *options, "--out", str(tmp_path / "demo")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "demo").exists()


def test_another_run_in_the_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"seed": 7}), encoding="utf-8")
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "another run is here" in capsys.readouterr().err
