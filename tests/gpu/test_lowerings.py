"""Every lowering on a GPU provider: what is compiled equals its reference there, runs there, and says what the CPU says.

The cases are the golden graphs of the rewrites, one each, and every form of the zoo with a plan of its own; the plans' styles
take turns, so that all of them are met.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from inarch.compiler.compile import compile_model
from inarch.compiler.reference import apply_by_values, carry_over
from inarch.runtime.equivalence import compare
from inarch.runtime.inputs import Case
from inarch.runtime.placement import Placement, measure_placement
from inarch.runtime.providers import short_name, software_device
from inarch.runtime.session import Session, SessionOptions
from inarch.structure.resolve import resolve

from tests.contract.test_equivalence import SMALL_COST, model_of
from tests.passes.case import COST
from tests.passes.test_golden import CASES
from tests.zoo import FORMS
from tests.zoo.check import inputs_of
from tests.zoo.plans import random_plan
from tests.zoo.styles import STYLES

pytestmark = pytest.mark.gpu

TOGETHER = 1e-4
"""How far a GPU and the CPU may be from each other, of an output's scale: their exp and erf are not one function."""

ON_THE_CPU = {name: {"Attention"} for name in ("fused_blocks", "attention_3d", "attention_4d", "attention_gqa")}
"""Heavy operators that WebGPU has no kernel for: onnxruntime 1.27 runs the Attention of opset 23 on the CPU."""

FUSED = ("contrib_mha", "contrib_attention", "contrib_cross")
"""Forms with MultiHeadAttention. WebGPU takes one that has a key_padding_mask, and refuses to run it."""

SHORT = 4
"""Tokens of those forms on a software driver: over SwiftShader, whose subgroups are 4 wide, onnxruntime 1.27 computes WebGPU's
flash attention (heads of 4, 8 ... units) wrong from 5 tokens on, in the original model too."""

SIZES = {"B": 2, "S": 3, "N": 5}
"""Of the golden graphs' dynamic axes."""


@dataclass(frozen=True)
class Compiled:
    """A model with its reference and inputs."""

    reference: ir.Model
    model: ir.Model
    cases: Sequence[Case]


def proved(provider: str, given: Compiled) -> Placement:
    """Where the compiled model ran, once it is shown to be right there."""
    report = compare(given.reference, given.model, given.cases, providers=(provider,))
    assert report.ok, [check for check in report.checks if not check.ok]
    feeds = given.cases[0].feeds
    with Session(given.reference) as host, Session(given.model, SessionOptions(providers=(provider,))) as device:
        want, got = host.run(feeds), device.run(feeds)
    for name, values in want.items():
        assert apart(values, got[name]) <= TOGETHER, name
    return measure_placement(given.model, feeds, provider)


def apart(want: npt.NDArray[Any], got: npt.NDArray[Any]) -> float:
    """Largest difference where both are finite, over the scale; rows that are masked as a whole are defined on neither."""
    if want.dtype.kind != "f":
        return float(np.count_nonzero(want != got))
    both = np.isfinite(want) & np.isfinite(got)
    assert both.any()
    return float(np.abs(want - got, where=both, out=np.zeros_like(want)).max()) / float(np.abs(want[both]).max())


@pytest.mark.parametrize("name", CASES)
def test_golden_graphs(provider: str, name: str) -> None:
    case = CASES[name]()
    compiled = compile_model(case.model, case.plan, None, cost=COST).model
    reference = apply_by_values(case.found.model, case.found.table, case.resolved, case.found.uses)
    rng = np.random.default_rng(0)
    feeds = {}
    for value in case.model.graph.inputs:
        shape = [size if isinstance(size, int) else SIZES[str(size.value)] for size in value.shape or ()]
        feeds[str(value.name)] = rng.standard_normal(shape, np.float32)
    placement = proved(provider, Compiled(reference, compiled, [Case(name, feeds)]))
    assert set(placement.strayed) == stray(provider, name)


@pytest.mark.parametrize(("number", "form"), list(enumerate(FORMS)))
def test_forms_of_the_zoo(provider: str, number: int, form: str) -> None:
    fused = form in FUSED and short_name(provider) == "webgpu"
    given = compiled_form(number, form, unmasked(form) if fused else 0)
    if fused and software_device(provider):
        given = replace(given, cases=[shortened(case) for case in given.cases])
    placement = proved(provider, given)
    assert set(placement.strayed) == stray(provider, form)


def test_a_mask_that_webgpu_refuses_is_told(provider: str) -> None:
    """ORT gives a packed Attention with a mask to the CPU; of the MultiHeadAttention that it becomes it says so when it runs."""
    if short_name(provider) != "webgpu":
        pytest.skip("only WebGPU refuses it")
    given = compiled_form(list(STYLES).index("prune-heads"), "contrib_attention", 0)
    report = compare(given.reference, given.model, given.cases[:1], providers=(provider,))
    assert not report.ok
    assert all("input `key_padding_mask` not implemented for webgpu" in check.reason for check in report.checks)


def shortened(case: Case) -> Case:
    """The case with its first tokens alone, on every axis of tokens."""
    return Case(case.name, {name: array[:, :SHORT] for name, array in case.feeds.items()})


def compiled_form(number: int, form: str, seed: int) -> Compiled:
    """A model of a form under a plan of the style whose turn it is."""
    zoo, discovery = model_of(form, seed)
    style = list(STYLES)[number % len(STYLES)]
    plan = random_plan(np.random.default_rng(number), discovery.table, style, name=form)
    compiled = compile_model(zoo.model, plan, None, cost=SMALL_COST, prefer="size").model
    applied = apply_by_values(discovery.model, discovery.table, resolve(plan, discovery.table), discovery.uses)
    cases = [Case(str(i), feeds) for i, feeds in enumerate(inputs_of(zoo, number))]
    return Compiled(carry_over(applied, discovery.model, zoo.model), compiled, cases)


def unmasked(form: str) -> int:
    """The first model of a form in which no key is masked by an input of the attention that marks padding."""
    masks = {"Attention": 3, "MultiHeadAttention": 4}
    for seed in range(20):
        nodes = [node for node in model_of(form, seed)[0].model.graph if node.op_type in masks]
        if all(len(node.inputs) <= masks[node.op_type] or node.inputs[masks[node.op_type]] is None for node in nodes):
            return seed
    raise AssertionError(f"no {form} without a mask")


def stray(provider: str, name: str) -> set[str]:
    """Heavy operators that are to run on the CPU."""
    return ON_THE_CPU.get(name, set()) if short_name(provider) == "webgpu" else set()
