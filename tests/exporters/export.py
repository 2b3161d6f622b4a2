"""torch's exporters as users call them."""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch

from tests.exporters.cases import Case


@dataclass(frozen=True)
class How:
    """An exporter and its options.

    Attributes:
        dynamo: the exporter of torch.export, else TorchScript's.
        opset: of the file.
        optimize: dynamo only: whether it folds constants and rewrites.
    """

    dynamo: bool
    opset: int
    optimize: bool = True

    def __str__(self) -> str:
        return f"{('dynamo' if self.optimize else 'dynamo-plain') if self.dynamo else 'torchscript'}-{self.opset}"


def build(case: Case) -> torch.nn.Module:
    """A case's module, the same at every call."""
    torch.manual_seed(0)
    module = case.build().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            # Fresh modules have biases of 0, norms of 1 and copies of one layer, which exporters fold away; trained ones do not.
            parameter.add_((0.1 if parameter.ndim == 1 else 0.02) * torch.randn_like(parameter))
    return module


def _size(name: str) -> object:
    """What torch.export calls a dynamic size: any, or a multiple where the name says so, as ``4*height`` does."""
    factor, _, rest = name.rpartition("*")
    return int(factor) * torch.export.Dim(rest, min=4, max=64) if factor else torch.export.Dim.DYNAMIC


def export(case: Case, how: How) -> ir.Model:
    """Build a case's module and export it."""
    inputs = case.inputs(np.random.default_rng(0), *case.shapes[0])
    arrays = tuple(torch.from_numpy(array) for array in inputs.values())
    names, outputs = list(inputs), list(case.outputs)
    module = build(case)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        file = Path(folder, "model.onnx")
        if how.dynamo:
            shapes = tuple({axis: _size(name) for axis, name in axes.items()} for axes in case.dynamic.values())
            torch.onnx.export(
                module,
                arrays,
                file,
                dynamo=True,
                external_data=False,
                optimize=how.optimize,
                opset_version=how.opset,
                dynamic_shapes=shapes,
                input_names=names,
                output_names=outputs,
                verbose=False,
            )
        else:
            axes = {given: dict(case.dynamic[name]) for name, given in zip(case.dynamic, names, strict=True)}
            torch.onnx.export(
                module,
                arrays,
                file,
                dynamo=False,
                opset_version=how.opset,
                dynamic_axes=axes,
                input_names=names,
                output_names=outputs,
            )
        return ir.from_proto(onnx.load(file))
