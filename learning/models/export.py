"""A model as an ONNX graph, its batch, image and text sizes dynamic."""

from __future__ import annotations

from contextlib import nullcontext

import onnx_ir as ir

from inarch.frontends.fx import OPSET, from_torch
from inarch.learning.models.deform_conv import as_operator, translations
from inarch.learning.models.glip import Glip
from inarch.learning.models.registry import Model

BATCH, LENGTH = 2, 9
"""Sizes of the example that is followed; any size above one would do."""


def export_model(model: Model, *, opset: int = OPSET, deform_conv: bool = True) -> ir.Model:
    """Export a model.

    Args:
        model: as :func:`~inarch.learning.models.registry.build` makes it.
        opset: of ai.onnx; see :data:`~inarch.frontends.fx.OPSET` for the default.
        deform_conv: write deformable convolutions as DeformConv (ONNX Runtime since 1.25); else as GridSample and a product,
            which older ones run, at about half the speed.

    Returns:
        The graph, every parameter under its name in the module.

    Raises:
        ModelError: torch cannot export it.
    """
    signature = model.signature
    height, width = _example_size(model)
    with as_operator() if deform_conv else nullcontext():
        return from_torch(
            model,
            kwargs=model.example(BATCH, height, width, LENGTH),
            dynamic_shapes=signature.dynamic_shapes(),
            input_names=list(signature.inputs),
            output_names=signature.outputs,
            axis_names=signature.inputs,
            opset=opset,
            translations=translations() if deform_conv else None,
        )


def _example_size(model: Model) -> tuple[int, int]:
    """A height and a width of which no map has one row or column of cells or windows: torch takes a size of 1 for a constant."""
    if isinstance(model, Glip):
        vision = model.config.vision
        window = vision.window if vision.kind == "swin" else 1
        step = 32 * max(window + 1, 2 ** (model.config.levels - 2))
        return step, step + 32
    stride = model.config.vision.stride
    return 4 * stride, 6 * stride
