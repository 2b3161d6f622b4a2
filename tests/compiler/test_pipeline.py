"""The pipeline: its order, truthful passes, a verifier around every one, and the face that the passes show to others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest

from inarch.compiler.pipeline import passes_for, run_pipeline
from inarch.compiler.values import SiteValues
from inarch.passes.refresh_shapes import RefreshShapes
from inarch.passes.registry import available, load
from inarch.passes.rewrite import Workpiece
from inarch.passes.stored import Stored
from inarch.structure.errors import PassError
from inarch.structure.lowering import lower
from inarch.structure.plan import Plan
from inarch.structure.resolve import resolve

from tests.contract.test_equivalence import SMALL_COST, model_of
from tests.passes.case import Case, case_of, ffns, keep, proto, share
from tests.zoo.plans import random_plan


def names_of(passes: list[ir.passes.InPlacePass]) -> list[str]:
    return [str(vars(type(step))["name"]) for step in passes]


def sharing() -> Case:
    return case_of(ffns("a", "b", "c"), {"b.ffn": {"hidden": share("a.ffn", "0-3")}, "c.ffn": {"hidden": keep("0-4")}})


def drawn(form: str, style: str) -> tuple[ir.Model, Workpiece, Plan]:
    """A copy of a canonical zoo model and the work of a random plan."""
    _, found = model_of(form, 0)
    plan = random_plan(np.random.default_rng(3), found.table, style)
    resolved = resolve(plan, found.table)
    work = Workpiece(lower(found.table, resolved, SMALL_COST, "size"), Stored(SiteValues(found.model, found.table, resolved)))
    return found.model.clone(), work, plan


@pytest.mark.parametrize(
    ("form", "style"),
    [
        ("two_tower", "share-mixed"),
        ("two_tower", "prune-all"),
        ("encoder_torchscript", "empty-hidden"),
        ("packed_timm", "share-heads"),
        ("attention_3d", "prune-inside-equal"),
        ("tied_layers", "share-prefix"),
    ],
)
def test_a_pass_says_it_modified_the_model_exactly_where_it_did(form: str, style: str) -> None:
    model, work, _ = drawn(form, style)
    for step in passes_for(work):
        before = proto(model)
        result = step(model)
        assert result.model is model
        assert result.modified == (proto(model) != before), vars(type(step))["name"]
    for step in passes_for(work)[3:]:
        assert not step(model).modified, "cleaned up once, there is nothing left to clean"


def test_passes_without_work_change_nothing() -> None:
    case = case_of(ffns("a"), {})
    model, work = case.copy()
    before = proto(model)
    modified = run_pipeline(model, passes_for(work)[:4])
    assert not modified
    assert proto(model) == before


def test_the_pipeline_runs_in_the_registrys_order_and_tells_its_progress() -> None:
    case = sharing()
    model, work = case.copy()
    told: list[tuple[str, int, int]] = []
    assert run_pipeline(model, passes_for(work), lambda *step: told.append(step))
    names = names_of(passes_for(work))
    assert [info.name for info in available()] == names
    assert told == [*((name, i, len(names)) for i, name in enumerate(names)), ("passes", len(names), len(names))]
    assert not case.wrong(model)


def test_every_registered_pass_is_an_onnx_ir_pass_with_its_name_and_a_summary() -> None:
    for info in available():
        kind = load(info.name)
        assert issubclass(kind, ir.passes.PassBase)
        assert vars(kind)["name"] == info.name
        assert info.summary.endswith(".")
    with pytest.raises(KeyError):
        load("no-such-pass")


def test_the_passes_fit_in_somebodys_own_pipeline() -> None:
    """Sequential and PassManager of onnx_ir, among passes of others, and twice over."""
    case = sharing()
    model, work = case.copy()
    own = ir.passes.Sequential(Clean(), *passes_for(work), Clean())
    result = ir.passes.PassManager([own], steps=1)(model)
    assert result.modified
    assert not case.wrong(result.model)


@dataclass(frozen=True)
class Clean(ir.passes.InPlacePass):
    """Changes nothing."""

    name: ClassVar[str] = "clean"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return ir.passes.PassResult(model, modified=False)


@dataclass(frozen=True)
class Vandal(ir.passes.InPlacePass):
    """Breaks the model in one way."""

    how: str
    name: ClassVar[str] = "vandal"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        first = next(iter(graph))
        if self.how == "output":
            graph.outputs[0].name = "other"
        elif self.how == "weight":
            value = graph.initializers["a.down.weight"]
            value.const_value = ir.tensor(np.zeros((3, 5), np.float32))
            value.shape = ir.Shape([3, 5])
        elif self.how == "order":
            graph.remove(first)
            graph.append(first)
        elif self.how == "refusal":
            raise PassError("cannot be applied", where="node x")
        elif self.how == "foreign":
            raise ir.passes.PassError("of another house")
        return ir.passes.PassResult(model, modified=True)


@pytest.mark.parametrize("how", ["output", "weight", "order", "refusal", "foreign"])
def test_a_pass_that_breaks_the_model_is_named(how: str) -> None:
    model = ffns("a")
    with pytest.raises(PassError) as caught:
        run_pipeline(model, [RefreshShapes(), Vandal(how)])
    assert how == "refusal" or "vandal" in str(caught.value)


def test_a_model_that_was_broken_before_is_not_blamed_on_a_pass() -> None:
    model = ffns("a")
    Vandal("order").call(model)
    with pytest.raises(PassError) as caught:
        run_pipeline(model, [Clean()])
    assert "clean" not in str(caught.value)
