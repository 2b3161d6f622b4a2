"""What an import brings in, seen in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import inarch

ROOT = Path(__file__).resolve().parents[2]


def loaded_by(statement: str) -> set[str]:
    """Top-level packages in ``sys.modules`` after ``statement``, less those of a bare interpreter."""
    code = f"import sys; before = set(sys.modules); {statement}; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_importing_inarch_costs_only_the_standard_library() -> None:
    outside = loaded_by("import inarch") - set(sys.stdlib_module_names)
    assert outside == {"inarch"}


def test_reading_a_plan_needs_no_graph() -> None:
    loaded = loaded_by("import inarch; inarch.load_plan; inarch.Plan")
    assert "pydantic" in loaded
    assert not loaded & {"onnx", "onnx_ir", "onnxruntime", "torch", "scipy", "networkx"}


def test_the_compile_path_needs_neither_torch_nor_onnxruntime() -> None:
    modules = [
        ".".join(("inarch", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        for room in ("structure", "frontends", "passes", "compiler")
        for path in sorted((ROOT / room).rglob("*.py"))
        if path.relative_to(ROOT).as_posix() != "frontends/fx.py"
    ]
    assert "inarch.compiler.compile" in modules
    loaded = loaded_by(f"import {', '.join(modules)}")
    assert "onnx_ir" in loaded
    assert not loaded & {"torch", "onnxruntime", "transformers", "rich", "typer"}


def test_help_needs_no_graph() -> None:
    code = (
        "import sys; from inarch.tools.cli import main; code = main(['compile', '--help']);"
        "print([m for m in ('onnx', 'onnx_ir', 'onnxruntime', 'torch', 'scipy', 'networkx') if m in sys.modules]); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", sorted(inarch.__all__))
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(inarch, name) is not None
    assert name in dir(inarch)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'prune'"):
        getattr(inarch, "prune")  # noqa: B009 - mypy knows that the attribute is missing
