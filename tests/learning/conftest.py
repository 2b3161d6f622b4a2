"""The models need torch and transformers, which are optional."""

from __future__ import annotations

import importlib.util

NEEDED = ("torch", "transformers", "onnxscript", "onnxruntime")

collect_ignore_glob = ["test_*.py"] if any(importlib.util.find_spec(name) is None for name in NEEDED) else []
