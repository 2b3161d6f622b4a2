"""``inarch export`` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from tests.tools.conftest import Run

pytest.importorskip("transformers", reason="transformers is not installed: pip install 'inarch[torch]'")


def test_presets_are_listed_with_their_sizes(inarch: Run) -> None:
    document = json.loads(inarch("export", "--list", "--json").out)
    assert document["presets"]["glip-t"] == 231_780_222
    assert "mdetr-r101" in inarch("export", "--list").out


@pytest.mark.parametrize("options", [[], ["--model", "mdetr-tiny"], ["--out", "m.onnx"], ["--opset", "11", "--list"]])
def test_what_is_missing_is_a_usage_error(inarch: Run, options: list[str]) -> None:
    done = inarch("export", *options)
    assert done.code == 2
    assert "Traceback" not in done.err


def test_an_unknown_preset_is_answered_with_the_nearest(inarch: Run, tmp_path: Path) -> None:
    done = inarch("export", "--model", "mdetr-tinny", "--out", tmp_path / "m.onnx")
    assert done.code == 2
    assert "mdetr-tiny" in done.err
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_checkpoint(inarch: Run, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_text("nothing of the kind")
    done = inarch("export", "--model", "mdetr-tiny", "--checkpoint", tmp_path / "weights.pth", "--out", tmp_path / "m.onnx")
    assert done.code == 2
    assert "weights.pth" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pth"]


def test_an_exported_model_goes_through_the_whole_command_line(
    inarch: Run, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from tests.learning import outlines

    model, plan, compiled = tmp_path / "m.onnx", tmp_path / "p.json", tmp_path / "c.onnx"
    with outlines.shared(tmp_path_factory):
        done = inarch("export", "--model", "mdetr-tiny", "--out", model, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["parameters"] > 300_000
    sizes = {dim.dim_param for value in onnx.load(model).graph.input for dim in value.type.tensor_type.shape.dim}
    assert {"batch", "8*height", "8*width", "length"} <= sizes
    sites = json.loads(inarch("inspect", model, "--json").out)["sites"]
    assert len(sites) == 2 * 4 + 2 * 4 + 2 * 2 + 2 * 3
    assert inarch("plan", "make", model, "--keep", "0.7", "-o", plan).code == 0
    assert inarch("compile", model, plan, "-o", compiled).code == 0
    done = inarch("verify", model, plan, compiled)
    assert done.code == 0, done.out + done.err
