"""A model with sizes fixed that were open: what some runtimes ask for, and what NPUs and browsers run faster.

Weights are not touched, so what is shared stays shared; they are written as the compiler writes them, each where ONNX Runtime can
map it. (ONNX Runtime's own ``make_dynamic_shape_fixed`` puts all of them into the .onnx file, from where they are copied.)
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from inarch.compiler.writer import WrittenModel, write_model
from inarch.frontends.onnx_file import load_model
from inarch.passes.refresh_shapes import RefreshShapes
from inarch.structure.errors import ModelError


def freeze_shapes(model: str | os.PathLike[str], sizes: Mapping[str, int], out: str | os.PathLike[str]) -> WrittenModel:
    """Write a model with some of its symbolic sizes fixed; sizes inside of the graph are inferred anew.

    Args:
        model: the model's file; it is not changed.
        sizes: symbol of an input's shape -> size; symbols that are left out stay open.
        out: the file to write.

    Raises:
        ModelError: the inputs have no such symbol, a size is below 1, or a file cannot be read or written.
    """
    loaded = load_model(Path(model))
    symbols = [str(size.value) for value in loaded.graph.inputs for size in value.shape or () if isinstance(size, ir.SymbolicDim)]
    for name, size in sizes.items():
        if name not in symbols:
            known = ", ".join(dict.fromkeys(symbols)) or "no symbol at all"
            raise ModelError(f"no input's shape has {name!r}; they have {known}", where=str(model))
        if size < 1:
            raise ModelError(f"{name!r} cannot be {size}", where=str(model), hint="a size is at least 1")
    for value in (*loaded.graph.inputs, *loaded.graph.outputs):
        if value.shape is not None:
            value.shape = ir.Shape([size if isinstance(size, int) else sizes.get(str(size.value), size) for size in value.shape])
    RefreshShapes()(loaded)
    return write_model(loaded, out)
