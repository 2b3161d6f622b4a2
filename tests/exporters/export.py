"""torch's exporters as users call them."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch

from tests.exporters.cases import Case, Inputs


@dataclass(frozen=True)
class How:
    """An exporter and its options.

    Attributes:
        dynamo: the exporter of torch.export, else TorchScript's.
        opset: of the file.
        optimize: dynamo only: whether it folds constants and rewrites.
        static: export fixed shapes.
    """

    dynamo: bool
    opset: int
    optimize: bool = True
    static: bool = False

    def __str__(self) -> str:
        kind = ("dynamo" if self.optimize else "dynamo-plain") if self.dynamo else "torchscript"
        return f"{kind}-{self.opset}" + ("-static" if self.static else "")


def export(case: Case, how: How, seed: int = 0) -> ir.Model:
    """Build a case's module and export it."""
    torch.manual_seed(seed)
    module = case.build().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            # Fresh modules have biases of 0 and norms of 1, which exporters fold away; trained ones do not.
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return export_module(module, case, how)


def export_module(module: torch.nn.Module, case: Case, how: How) -> ir.Model:
    """Export a module with a case's inputs."""
    rng = np.random.default_rng(0)
    inputs = case.inputs(rng, *case.shapes[0])
    dynamic = {} if how.static else {name: dict(case.dynamic[name]) for name in case.dynamic}
    names = list(case.dynamic)
    arrays = tuple(torch.from_numpy(array) for array in inputs.values())
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        if how.dynamo:
            shapes = tuple(
                {axis: torch.export.Dim.DYNAMIC for axis in dynamic.get(name, {})} or None for name in names
            )
            program = torch.onnx.export(
                module,
                arrays,
                dynamo=True,
                optimize=how.optimize,
                opset_version=how.opset,
                dynamic_shapes=shapes,
                input_names=list(inputs),
                output_names=list(case.outputs),
                verbose=False,
            )
            assert program is not None
            # By way of bytes, as from a file: initializers are aliases of torch's memory.
            return ir.from_proto(onnx.ModelProto.FromString(program.model_proto.SerializeToString()))
        buffer = io.BytesIO()
        renamed = {given: dynamic.get(name, {}) for name, given in zip(names, inputs, strict=True)}
        torch.onnx.export(
            module,
            arrays,
            buffer,
            dynamo=False,
            opset_version=how.opset,
            dynamic_axes={k: v for k, v in renamed.items() if v} or None,
            input_names=list(inputs),
            output_names=list(case.outputs),
        )
        return ir.from_proto(onnx.ModelProto.FromString(buffer.getvalue()))
