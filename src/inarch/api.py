"""The functions of the public face: what the command line does, from Python.

A *model* is a path, an ``onnx_ir.Model``, an ``onnx.ModelProto``, what ``torch.onnx.export`` returns, torch's
``ExportedProgram``, or an :class:`Example`: a torch module with inputs to follow it on. A *plan* is a path or a
:class:`~inarch.structure.plan.Plan`. Rooms are imported inside the functions, so that who compiles loads neither ONNX Runtime
nor torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import onnx
import onnx_ir as ir

if TYPE_CHECKING:
    from inarch.compiler.compile import CompileResult
    from inarch.runtime.given import GivenInputs
    from inarch.runtime.verify import Verification
    from inarch.structure.cost import CostTable
    from inarch.structure.discover import Discovery
    from inarch.structure.plan import Plan
    from inarch.structure.planners import PlanResult, Progress


@dataclass(frozen=True)
class Example:
    """A torch module (an FX graph module is one) with inputs to follow it on.

    Attributes:
        module: the module; it is not changed, and its weights are copied when it is read.
        args: inputs by position, or one tensor.
        kwargs: inputs by name.
        dynamic_shapes: which axes may change, as ``torch.export.export`` takes them; all are fixed by default.
        options: further options of :func:`inarch.frontends.fx.from_torch`.
    """

    module: Any
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    dynamic_shapes: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)


class _OnnxProgram(Protocol):
    """What ``torch.onnx.export(..., dynamo=True)`` returns."""

    @property
    def model(self) -> ir.Model: ...


class _ExportedProgram(Protocol):
    """What ``torch.export.export`` returns."""

    @property
    def graph_module(self) -> Any: ...


AnyModel: TypeAlias = str | os.PathLike[str] | ir.Model | onnx.ModelProto | _OnnxProgram | _ExportedProgram | Example


def open_model(model: AnyModel) -> ir.Model:
    """The graph of anything that holds a model; what was given is not changed. Weights in files are mapped and not read.

    Raises:
        ModelError: the file or the message is no valid ONNX model, or torch cannot export the module.
        InarchError: it is nothing that holds a model.
    """
    if isinstance(model, ir.Model):
        return model
    if isinstance(model, str | os.PathLike):
        from inarch.frontends.onnx_file import load_model

        return load_model(model)
    if isinstance(model, onnx.ModelProto):
        from inarch.frontends.onnx_file import read_proto

        return read_proto(model)
    if isinstance(model, Example):
        from inarch.frontends.fx import from_torch

        return from_torch(model.module, model.args, model.kwargs, dynamic_shapes=model.dynamic_shapes, **model.options)
    held = getattr(model, "model", None)
    if isinstance(held, ir.Model):
        return held
    if "torch" in sys.modules:
        from inarch.frontends.fx import from_torch, is_program

        if is_program(model):
            return from_torch(model)
    from inarch.structure.errors import InarchError

    kind = type(model).__name__
    hint = "a path, onnx_ir.Model, onnx.ModelProto, torch's ONNXProgram or ExportedProgram, or inarch.Example(module, inputs)"
    raise InarchError(f"a {kind} holds no model that can be read", hint=hint)


def _runnable(model: AnyModel) -> str | os.PathLike[str] | ir.Model:
    """A path as it is, anything else as a graph."""
    return model if isinstance(model, str | os.PathLike) else open_model(model)


def open_plan(plan: str | os.PathLike[str] | Plan) -> Plan:
    """The plan itself, or the one that the file holds.

    Raises:
        PlanError: the file is no valid plan.
        InarchError: it is neither a plan nor a path.
    """
    from inarch.structure.errors import InarchError
    from inarch.structure.plan import Plan, load_plan

    if isinstance(plan, Plan):
        return plan
    given: object = plan
    text = isinstance(given, str) and given.lstrip().startswith("{")
    if text or not isinstance(given, str | os.PathLike):
        what = "a plan's text" if text else f"a {type(given).__name__}"
        hint = "give an inarch.Plan or a file's path; inarch.structure.plan.parse_plan reads text"
        raise InarchError(f"{what} is no path of a plan", where="plan", hint=hint)
    return load_plan(plan)


def open_cost(cost: str | os.PathLike[str] | CostTable | None) -> CostTable:
    """The cost table itself, the one that the file holds, or the shipped one for None.

    Raises:
        InarchError: the file is no valid cost table.
    """
    from inarch.structure.cost import DEFAULT_COST, CostTable, load_cost

    if cost is None:
        return DEFAULT_COST
    return cost if isinstance(cost, CostTable) else load_cost(Path(cost))


def _as_path(source: object) -> str | os.PathLike[str] | None:
    """What is a path, as it is; None for what was read already."""
    return source if isinstance(source, str | os.PathLike) else None


def model_name(model: AnyModel) -> str:
    """What a plan calls the model: the file's name without its ending, or the graph's name."""
    if isinstance(model, str | os.PathLike):
        return Path(model).stem
    if isinstance(model, Example):
        return type(model.module).__name__
    name = model.graph.name if isinstance(model, ir.Model | onnx.ModelProto) else None
    return name or "model"


def discover(model: AnyModel) -> Discovery:
    """Find every MSA and FFN of a model, packed projections among them.

    Returns:
        ``.table`` lists the sites, and what looks like one and cannot be compiled, with the reason.

    Raises:
        ModelError: the file is no valid ONNX model.
    """
    from inarch.frontends.canonicalize import discover_canonical

    return discover_canonical(open_model(model))


def draft_plan(
    model: AnyModel,
    *,
    keep: float,
    method: str = "similarity",
    cost: str | os.PathLike[str] | CostTable | None = None,
    prefer: str | None = None,
    minimum: float = 0.125,
    share_fraction: float = 0.5,
    block: int | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> PlanResult:
    """:func:`make_plan` with what the plan keeps, and what it left alone.

    Args:
        out: where the plan is written; None writes nothing. The others are those of :func:`make_plan`.

    Raises:
        InarchError: as :func:`make_plan`, or the plan cannot be written there.
    """
    from inarch.compiler.values import parameter_tensors
    from inarch.frontends.mapped import sources_of
    from inarch.structure.files import refuse_to_replace
    from inarch.structure.plan import save_plan
    from inarch.structure.planners import make_plan

    opened = open_model(model)
    if out is not None:
        refuse_to_replace(Path(out), [*sources_of(opened), _as_path(cost)])
    found = discover(opened)
    tensors = parameter_tensors(found.model)
    result = make_plan(
        found.table,
        lambda name: tensors[name].numpy(),
        keep=keep,
        method=method,
        name=model_name(model),
        cost=open_cost(cost),
        prefer=prefer,
        minimum=minimum,
        share_fraction=share_fraction,
        block=block,
        progress=progress,
    )
    if out is not None:
        save_plan(result.plan, out)
    return result


def make_plan(
    model: AnyModel,
    *,
    keep: float,
    method: str = "similarity",
    cost: str | os.PathLike[str] | CostTable | None = None,
    prefer: str | None = None,
    minimum: float = 0.125,
    share_fraction: float = 0.5,
    block: int | None = None,
) -> Plan:
    """Make a plan from the weights alone, without training.

    Args:
        model: the model.
        keep: fraction of the whole model's parameters that stays, in (0, 1].
        method: ``magnitude``, ``similarity`` or ``uniform``.
        cost: a cost table or its file; the shipped one by default.
        prefer: as for :func:`compile`: ``size``, ``latency``, or None for the balance of both.
        minimum: fraction of each axis that always stays.
        share_fraction: similarity: how much of the saving comes from sharing, in [0, 1].
        block: similarity: most sites that share one base; by default 4, or as many as the cost table has segments.

    Raises:
        UnreachableError: the fraction cannot be reached; ``reachable`` is the smallest that can.
        InarchError: a bad model, cost table or option.
    """
    return draft_plan(
        model,
        keep=keep,
        method=method,
        cost=cost,
        prefer=prefer,
        minimum=minimum,
        share_fraction=share_fraction,
        block=block,
    ).plan


def compile(
    model: AnyModel,
    plan: str | os.PathLike[str] | Plan,
    out: str | os.PathLike[str] | None = None,
    *,
    cost: str | os.PathLike[str] | CostTable | None = None,
    prefer: str | None = None,
    progress: Progress | None = None,
) -> CompileResult:
    """Carry out a plan: prune, share and store each shared weight once.

    Args:
        model: the model; it is not changed.
        plan: the plan.
        out: where the compiled model is written, whole or not at all; None keeps it in memory.
        cost: a cost table or its file; the shipped one by default.
        prefer: ``size`` or ``latency`` moves the table's balance.
        progress: called with a step's name, what is done and what there is.

    Raises:
        InarchError: a bad model or plan, or a plan that is for another model.
    """
    from inarch.compiler.compile import compile_model
    from inarch.structure.files import refuse_to_replace

    if out is not None:
        refuse_to_replace(Path(out), [_as_path(plan), _as_path(cost)])
    return compile_model(
        open_model(model),
        open_plan(plan),
        None if out is None else Path(out),
        cost=open_cost(cost),
        prefer=prefer,
        progress=progress,
    )


def verify(
    original: AnyModel,
    plan: str | os.PathLike[str] | Plan,
    compiled: AnyModel,
    *,
    inputs: GivenInputs | None = None,
    seed: int = 0,
    provider: str = "cpu",
    threads: int = 0,
    progress: Progress | None = None,
) -> Verification:
    """Apply a plan by values only, and hold the compiled model against the result in ONNX Runtime.

    Args:
        original: the model that was compiled; for a torch module its export, see :func:`open_model`.
        plan: what it was compiled with.
        compiled: the result.
        inputs: an ``.npz`` file, or a mapping from input names to arrays, or several; made to fit the graph by default.
        seed: of the inputs that are made.
        provider: where ONNX Runtime runs: ``cpu``, ``cuda``, ``webgpu``, ``openvino``, or any other provider that it has.
        threads: intra-op threads; 0 leaves it to ONNX Runtime.
        progress: called with a step's name, what is done and what there is.

    Returns:
        ``.ok`` is the verdict; equivalence, sharing and damage stand beside it.

    Raises:
        InarchError: a bad model or plan, or ONNX Runtime is missing, has no such provider or refuses the original.
    """
    from inarch.runtime.providers import resolve_provider
    from inarch.runtime.verify import verify
    from inarch.structure.errors import InarchError

    if seed < 0:
        raise InarchError(f"{seed} is no seed", where="seed", hint="0 or more")
    return verify(
        _runnable(original),
        open_plan(plan),
        _runnable(compiled),
        inputs=inputs,
        seed=seed,
        providers=(resolve_provider(provider),),
        threads=threads,
        progress=progress,
    )
