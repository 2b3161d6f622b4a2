"""Torch and transformers are optional, and exports that take seconds run only where they are asked for: ``pytest -m heavy``."""

from __future__ import annotations

import importlib.util

import pytest

NEEDED = ("torch", "transformers", "onnxscript", "onnxruntime")

collect_ignore_glob = ["test_*.py"] if any(importlib.util.find_spec(name) is None for name in NEEDED) else []


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "heavy: exports for seconds; runs only where -m names it")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "heavy" in str(config.getoption("markexpr")):
        return
    heavy = [item for item in items if item.get_closest_marker("heavy") is not None]
    if heavy:
        config.hook.pytest_deselected(items=heavy)
        items[:] = [item for item in items if item not in heavy]
