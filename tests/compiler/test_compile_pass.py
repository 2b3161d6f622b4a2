"""Compiling inside someone's onnx_ir pipeline."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

import inarch
from inarch.structure.plan import FORMAT, ModelRef, Plan

from tests.tools.conftest import two_ffns


@pytest.fixture
def model() -> ir.Model:
    return ir.from_proto(two_ffns())


def weights(model: ir.Model) -> dict[str, bytes]:
    found = {}
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None
        found[name] = np.ascontiguousarray(value.const_value.numpy()).tobytes()
    return found


def test_it_runs_between_other_passes(model: ir.Model) -> None:
    plan = inarch.make_plan(model, keep=0.6, method="similarity")
    before = weights(model)
    result = ir.passes.Sequential(RemoveUnusedNodesPass(), inarch.CompilePass(plan), RemoveUnusedNodesPass())(model)
    assert result.modified
    assert weights(model) == before
    assert inarch.verify(model, plan, result.model).ok
    alone = inarch.compile(model, plan).model
    assert weights(result.model) == weights(alone)


def test_a_plan_that_changes_nothing_modifies_nothing(model: ir.Model) -> None:
    table = inarch.discover(model).table
    plan = Plan(format=FORMAT, model=ModelRef(name="m", fingerprint=table.fingerprint), sites={})
    assert not inarch.CompilePass(plan)(model).modified


def test_a_plan_for_another_model_stops_the_pipeline(model: ir.Model) -> None:
    plan = Plan(format=FORMAT, model=ModelRef(name="m", fingerprint="0" * 64), sites={})
    with pytest.raises(inarch.InarchError, match="another model"):
        inarch.CompilePass(plan)(model)
    with pytest.raises(ir.passes.PassError) as caught:
        ir.passes.Sequential(inarch.CompilePass(plan))(model)
    assert isinstance(caught.value.__cause__, inarch.InarchError)
