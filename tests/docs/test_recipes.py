"""The Python of the recipes does what the pages say, on a small two-tower model that inarch compiled."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import inarch
from inarch.api import discover
from inarch.tools.benchmarks.sharing import half_shared
from inarch.tools.benchmarks.twin import OUTPUT, TwinEncoders
from inarch.tools.towers import save_model

from tests.docs.pages import blocks, work_in

ort = pytest.importorskip("onnxruntime")

RECIPES = Path(__file__).parents[2] / "docs" / "recipes"
BLOCKS = {"frozen-shapes.md": 3, "shared-bank.md": 4}
TINY = TwinEncoders(layers=2, width=64, heads=4, hidden=512)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``dense.onnx``, ``plan.json`` and ``compiled.onnx``."""
    folder = tmp_path_factory.mktemp("models")
    model = TINY.build()
    (total,) = (node for node in model.graph if node.outputs[0].name == OUTPUT)
    features = total.inputs[0]
    assert features is not None
    features.name = "text_features"
    save_model(model, folder / "dense.onnx")
    plan = half_shared(discover(folder / "dense.onnx").table, "dense")
    inarch.save_plan(plan, folder / "plan.json")
    inarch.compile(folder / "dense.onnx", plan, folder / "compiled.onnx")
    return folder


@pytest.fixture
def here(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with those files in it."""
    return work_in(tmp_path, models, monkeypatch)


def run(page: str) -> SimpleNamespace:
    """Run a page's blocks; what they left behind."""
    found = blocks(RECIPES / page, "python")
    assert len(found) == BLOCKS[page]
    names: dict[str, Any] = {"__name__": "page"}
    for number, block in enumerate(found, 1):
        exec(compile(block, f"{page}, block {number}", "exec"), names)
    return SimpleNamespace(**names)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, str, object]]:
    """What sessions were given with ``add_initializer``: their options, a name and a value."""
    seen: list[tuple[object, str, object]] = []
    original = ort.SessionOptions

    def add_initializer(self: object, name: str, value: object) -> None:
        seen.append((self, name, value))
        original.add_initializer(self, name, value)

    monkeypatch.setattr(ort, "SessionOptions", type("Watched", (original,), {"add_initializer": add_initializer}))
    return seen


def test_every_recipe_is_tested() -> None:
    assert {path.name for path in RECIPES.glob("*.md")} == set(BLOCKS)


def test_frozen_shapes(here: Path) -> None:
    names = run("frozen-shapes.md")
    assert names.verification.sharing.tensors
    assert names.shapes == {"text.x": [1, 16, TINY.width], "vision.x": [1, 16, TINY.width]}


def test_shared_bank(here: Path, given: list[tuple[object, str, object]]) -> None:
    names = run("shared-bank.md")
    assert len(names.plain.shared) > 1
    for name in names.plain.shared:
        (first, one), (second, other) = ((options, value) for options, known, value in given if known == name)
        assert first is not second
        assert one is other, "a weight was passed as two values"
