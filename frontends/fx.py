"""torch -> :class:`onnx_ir.Model`: a module, an exported program or an FX graph, with every parameter name and every tie kept.

It is torch's own exporter (dynamo, without its optimiser, which renames weights and undoes ties), followed by what keeps
parameters as they are: constants that no parameter takes part in are folded, equal nodes become one, and names that depend on how
torch came to the graph become numbers, so that a module, its exported program and that program's FX graph end as the same model.
"""

from __future__ import annotations

import io
import logging
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import partial
from typing import Any, Protocol, TypeGuard

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common
import torch
from onnxscript.optimizer import fold_constants
from torch import nn

from inarch.structure.errors import ModelError
from inarch.structure.nodes import every_node

OPSET = 20
"""The default. Below 20 a GELU is six nodes and below 19 there is no DeformConv. From 23 on torch writes attention as one
``Attention`` node, with masks that the standard broadcasts and ONNX Runtime 1.32 refuses."""

Translations = Mapping[Any, Callable[..., Any]]

AxisNames = Mapping[str, Mapping[int, str]]

_EXPORTER = ("pkg.torch", "pkg.onnxscript", "namespace")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_SYMBOL = re.compile(r"\b[su]\d+\b")


def is_program(source: object) -> TypeGuard[torch.export.ExportedProgram]:
    """Whether it is an exported program, which needs no example inputs."""
    return isinstance(source, torch.export.ExportedProgram)


def from_torch(
    source: nn.Module | torch.export.ExportedProgram,
    args: Sequence[Any] | torch.Tensor = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    axis_names: AxisNames | None = None,
    opset: int = OPSET,
    translations: Translations | None = None,
) -> ir.Model:
    """Turn a torch model into the graph that the rest of inarch works on.

    Args:
        source: a module, an FX graph module, or an exported program. It is not changed.
        args: example inputs of a module, by position, or one tensor; an exported program has its own.
        kwargs: example inputs, by name.
        dynamic_shapes: which axes may change, as ``torch.export.export`` takes them.
        input_names: names of the inputs; torch's own by default.
        output_names: names of the outputs; ``output_0`` and so on by default.
        axis_names: input name -> axis -> what its size is called in the model; ``32*height`` where it is a multiple.
        opset: of ai.onnx.
        translations: how operators of one's own are written, as ``custom_translation_table`` of ``torch.onnx.export``.

    Returns:
        The model. Its weights are copies, one for each tensor, however often it is tied: what happens to the module later does
        not change them, and while both live they take the memory twice.

    Raises:
        ModelError: example inputs are missing, or torch cannot export it; with torch's reason.
    """
    args = (args,) if isinstance(args, torch.Tensor) else tuple(args)
    if isinstance(source, torch.export.ExportedProgram):
        program = source
    elif not args and not kwargs:
        raise ModelError("a module is exported by running it", where=type(source).__name__, hint="give example inputs")
    else:
        with _quiet(), _explained(source):
            program = torch.export.export(
                source,
                args,
                dict(kwargs or {}),
                dynamic_shapes=dynamic_shapes,
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,  # sizes that torch cannot prove equal are no reason to refuse
            )
    write = partial(
        torch.onnx.export,
        program,
        dynamo=True,
        optimize=False,
        opset_version=opset,
        input_names=input_names,
        output_names=output_names,
        custom_translation_table=dict(translations or {}),
        verbose=False,
    )
    with _quiet(), _explained(source):
        try:
            exported = write()
        except Exception:  # the form of an attention that is to be differentiated may be one that torch cannot take apart
            with torch.no_grad():
                exported = write()
    if exported is None:
        hint = "torch.onnx.export(..., dynamo=True) has to work on it alone: try that first"
        raise ModelError("torch exported nothing", where=type(source).__name__, hint=hint)
    model = exported.model
    with _explained(source):
        parameters = _snapshot(model)
    with _quiet():
        _simplify(model, parameters)
    _rename(model, parameters, output_names, axis_names or {})
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings and log lines of the exporter, which speak of its own inner workings."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _explained(source: object) -> Iterator[None]:
    """Torch's many kinds of exception as one, with the first line of the innermost cause; without the graphs that it prints."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            yield
    except Exception as error:  # torch.export and the exporter raise whatever their parts raise
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        lines = [line.strip() for line in _COLOUR.sub("", str(cause)).splitlines() if line.strip()]
        reason = " ".join(lines[:3])[:500] or type(cause).__name__
        hint = "try torch.export.export on it: whatever that accepts, and torch.onnx can write, is accepted here"
        raise ModelError(f"torch cannot export it: {reason}", where=type(source).__name__, hint=hint) from error
    sys.stderr.write(said.getvalue())


def _snapshot(model: ir.Model) -> frozenset[ir.Value]:
    """Give every initializer a tensor of its own, where it was a view of the module's memory; returns the initializers."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None
        value.const_value = ir.Tensor(np.array(tensor.numpy(), order="C", copy=True), tensor.dtype, name=value.name)
    return frozenset(model.graph.initializers.values())


def _simplify(model: ir.Model, parameters: frozenset[ir.Value]) -> None:
    """Fold what no parameter takes part in, merge equal nodes, drop what is not read."""

    def may_fold(node: ir.Node) -> bool | None:
        return False if any(value in parameters for value in node.inputs) else None

    fold_constants(model, should_fold=may_fold)
    common = onnx_ir.passes.common
    for step in (common.CommonSubexpressionEliminationPass(), common.RemoveUnusedNodesPass(), common.IdentityEliminationPass()):
        step(model)
    model.graph.sort()


def _rename(model: ir.Model, parameters: frozenset[ir.Value], output_names: Sequence[str] | None, axis_names: AxisNames) -> None:
    """Number nodes, values and sizes in the order of the graph, and drop what the exporter noted on its way there."""
    graph = model.graph
    if output_names is None:
        for number, value in enumerate(graph.outputs):
            value.name = f"output_{number}"
    public = {*graph.inputs, *graph.initializers.values(), *graph.outputs}
    folded = [v for node in graph for v in node.inputs if v is not None and v.is_initializer() and v not in parameters]
    for number, value in enumerate(dict.fromkeys(folded)):
        value.name = f"constant_{number}"
    counts: Counter[str] = Counter()
    for node in every_node(graph):
        node.name = f"{node.op_type}_{counts[node.op_type]}"
        counts[node.op_type] += 1
        node.doc_string = None
        _forget(node)
        for place, value in enumerate(node.outputs):
            _forget(value)
            if value not in public:
                value.name = f"{node.name}.{place}"
                if value.shape is not None:
                    value.shape = ir.Shape([size if isinstance(size, int) else None for size in value.shape])
    for value in (*graph.inputs, *graph.initializers.values()):
        _forget(value)
    _forget(graph)
    _forget(model)
    model.producer_name, model.producer_version = "inarch", None
    graph.name = "main_graph"
    _rename_sizes(graph, axis_names)


class _Noted(Protocol):
    @property
    def metadata_props(self) -> dict[str, str]: ...


def _forget(thing: _Noted) -> None:
    for key in [key for key in thing.metadata_props if key.startswith(_EXPORTER)]:
        del thing.metadata_props[key]


def _rename_sizes(graph: ir.Graph, axis_names: AxisNames) -> None:
    """Sizes of inputs get the names that were asked for, or d0, d1, ...; those of outputs theirs, or a name of their own."""
    names: dict[str, str] = {}
    for value in graph.inputs:
        for axis, size in enumerate(value.shape or ()):
            factor, star, name = axis_names.get(str(value.name), {}).get(axis, "").rpartition("*")
            text = _symbolic(size)
            for symbol in _SYMBOL.findall(text):
                if name and _SYMBOL.sub("", text) == factor + star:
                    names.setdefault(symbol, name)
                names.setdefault(symbol, f"d{len(names)}")
    for value in (*graph.inputs, *graph.outputs):
        if value.shape is None:
            continue
        sizes: list[int | str] = []
        for axis, size in enumerate(value.shape):
            if isinstance(size, int):
                sizes.append(size)
                continue
            text = _symbolic(size)
            found = _SYMBOL.findall(text)
            known = len(found) == 1 and found[0] in names and not set(text) & set(" +-()/")
            sizes.append(text.replace(found[0], names[found[0]]) if known else f"{value.name}.{axis}")
        value.shape = ir.Shape(sizes)


def _symbolic(size: int | ir.SymbolicDim) -> str:
    """A size as torch spells it; empty where it is a number."""
    return "" if isinstance(size, int) else str(size.value)
