"""Every export: the sites that its architecture implies are found, and plans on them compile to what the reference computes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from inarch.compiler.values import parameter_tensors
from inarch.structure.plan import Plan
from inarch.structure.planners import make_plan

from tests.exporters import plans
from tests.exporters.cases import CASES
from tests.exporters.check import compiled_and_wrong, feeds_of, wrong_sites
from tests.exporters.pairs import REFUSED, Pair, exported, found, pairs

DEEP = {"detr", "bert-eager", "llama-eager", "windows", "albert-eager", "fusion"}
"""Models on which every kind of plan is tried; on the others one by hand is, and the rest on request."""


def _param(values: tuple[Any, ...], name: str, heavy: bool) -> Any:
    return pytest.param(*values, id=name, marks=[pytest.mark.heavy] if heavy else [])


def _plans() -> Iterator[Any]:
    for pair, heavy in pairs():
        name, how = pair
        for kind in ("handwritten", "magnitude", "similarity", "inner", "nothing left"):
            always = kind == "handwritten" or (name in DEEP and how.opset > 13)
            yield _param((pair, kind), f"{name}@{how}-{kind}", heavy or not always)


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest) -> Pair:
    """A model and an exporter; tests of one pair run one after the other, so that each is exported once."""
    name, how = request.param
    return name, how


@pytest.mark.parametrize("pair", [_param((p,), f"{p[0]}@{p[1]}", heavy) for p, heavy in pairs()], indirect=True)
def test_sites(pair: Pair) -> None:
    name, how = pair
    assert not wrong_sites(CASES[name], found(*pair).table, ties=not (how.dynamo and how.optimize))


@pytest.mark.parametrize(("pair", "kind"), list(_plans()), indirect=["pair"])
def test_compiled_equals_reference(pair: Pair, kind: str) -> None:
    name, how = pair
    model = exported(*pair)
    feeds = feeds_of(CASES[name], model)
    if (name, str(how)) in REFUSED:
        assert not feeds, "ONNX Runtime runs it by now"
        pytest.skip("ONNX Runtime does not run the exporter's file")
    assert len(feeds) >= 2
    result, wrong = compiled_and_wrong(model, found(*pair), plan_of(kind, pair), feeds)
    assert not wrong
    assert result.lowered.stored < found(*pair).table.parameters


def plan_of(kind: str, pair: Pair) -> Plan:
    """A plan for an exported model."""
    table = found(*pair).table
    by_hand = {"handwritten": plans.handwritten, "inner": plans.inner, "nothing left": plans.nothing_left}
    if kind in by_hand:
        return by_hand[kind](table)
    tensors = parameter_tensors(found(*pair).model)
    keep = 0.65 if kind == "magnitude" else 0.7
    return make_plan(table, lambda name: tensors[name].numpy(), keep=keep, method=kind, name="exported", cost=plans.COST).plan
