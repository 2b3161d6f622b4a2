"""Compiling as a pass of Olive, whose workflows are JSON files.

Olive finds passes in a *package configuration*: its own knows its own passes only; another is given with ``--package-config``.
One that knows ``InarchCompile`` as well is printed by::

    python -m inarch.tools.olive_pass > package.json
    olive run --config workflow.json --package-config package.json

In the workflow::

    "passes": {"share": {"type": "InarchCompile", "plan": "plan.json"}}
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.pass_config import ParamCategory, PassConfigParam

import inarch


class InarchCompile(Pass):
    """Share and prune what a plan says; the result is a new model, and the input is not changed."""

    @classmethod
    def _default_config(cls, accelerator_spec: Any) -> dict[str, PassConfigParam]:
        return {
            "plan": PassConfigParam(
                type_=str, required=True, category=ParamCategory.PATH, description="A plan for the model, inarch.plan/1."
            ),
            "prefer": PassConfigParam(
                type_=str, default_value=None, description="'size' or 'latency' moves the cost table's balance."
            ),
            "cost": PassConfigParam(
                type_=str,
                default_value=None,
                category=ParamCategory.PATH,
                description="A cost table, inarch.cost/1, in place of the shipped one.",
            ),
        }

    def _run_for_config(self, model: ONNXModelHandler, config: Any, output_model_path: str) -> ONNXModelHandler:
        source = Path(model.model_path)
        target = Path(resolve_onnx_path(output_model_path, source.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        inarch.compile(source, config.plan, target, cost=config.cost, prefer=config.prefer)
        # A folder, since the weights lie beside the model.
        return ONNXModelHandler(model_path=str(target.parent), onnx_file_name=target.name)


def package_config() -> dict[str, Any]:
    """Olive's package configuration with our pass added."""
    document: dict[str, Any] = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text(encoding="utf-8"))
    document["passes"]["InarchCompile"] = {
        "module_path": f"inarch.tools.olive_pass.{InarchCompile.__name__}",
        "supported_providers": ["*"],
        "supported_accelerators": ["*"],
        "supported_precisions": ["*"],
    }
    return document


if __name__ == "__main__":
    json.dump(package_config(), sys.stdout, indent=2)
