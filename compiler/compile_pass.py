"""Compiling as one :mod:`onnx_ir` pass, for use in someone's pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from inarch.compiler.compile import compile_model
from inarch.structure.cost import CostTable
from inarch.structure.plan import Plan


@dataclass(frozen=True)
class CompilePass(ir.passes.FunctionalPass):
    """Carry out a plan on the model that comes by; the model itself is not changed, a new one is handed on.

    ::

        onnx_ir.passes.Sequential(RemoveUnusedNodesPass(), inarch.CompilePass(plan))(model)

    Attributes:
        plan: what is shared and what goes.
        cost: limits of the lowering; the shipped table by default.
        prefer: ``size`` or ``latency`` moves them.

    Calling it raises what :func:`inarch.compile` raises, an :class:`~inarch.structure.errors.InarchError`; a ``Sequential`` wraps
    it in its own ``PassError``.
    """

    name: ClassVar[str] = "compile"

    plan: Plan
    cost: CostTable | None = None
    prefer: str | None = None

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Compile; ``modified`` tells whether the plan changes any site."""
        result = compile_model(model, self.plan, cost=self.cost, prefer=self.prefer)
        return ir.passes.PassResult(result.model, modified=any(site.touched for site in result.lowered.sites))
