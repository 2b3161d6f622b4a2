"""The contract for models that give out what exporters keep inside: hidden states, attention scores, sizes.

Any value of a model can be an output as well, mostly without type and shape, as surgery on a graph leaves it. Whatever its site
may then still do, the output keeps its name and its numbers.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from inarch.compiler.compile import compile_model
from inarch.compiler.reference import apply_by_values, carry_over
from inarch.frontends.canonicalize import canonicalize
from inarch.structure.demand import VALUE_AXES
from inarch.structure.discover import discover
from inarch.structure.resolve import AxisDecision, build_plan, resolve

from tests.contract.test_equivalence import SMALL_COST
from tests.zoo import build
from tests.zoo.check import inputs_of, mismatches, run_all
from tests.zoo.plans import random_plan

FORMS = ("packed_timm", "packed_bloom", "bi_attention", "decoder_cross", "wrapped", "rotary_interleaved")
STYLES = ("share-mixed", "prune-all")


def given_out(model: ir.Model, kinds: tuple[str, ...]) -> list[str]:
    """Make the last value of each kind an output as well; returns their names."""
    found = {node.op_type: node.outputs[0] for node in model.graph if not node.outputs[0].is_graph_output()}
    values = [found[kind] for kind in kinds if kind in found]
    for value in values:
        value.type, value.shape = None, None
    model.graph.outputs.extend(values)
    return [str(value.name) for value in values]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kinds", [("Shape",), ("MatMul", "Reshape"), ("Softmax", "Transpose")], ids="-".join)
def test_what_is_given_out_is_what_the_reference_gives(form: str, kinds: tuple[str, ...]) -> None:
    zoo = build(form, 1)
    names = given_out(zoo.model, kinds)
    discovery = discover(canonicalize(zoo.model))
    cases = inputs_of(zoo, 1)[:1]
    for number, style in enumerate(STYLES):
        plan = random_plan(np.random.default_rng(number), discovery.table, style, name=form)
        compiled = compile_model(zoo.model, plan, cost=SMALL_COST, prefer="size").model
        assert [value.name for value in compiled.graph.outputs][-len(names) :] == names
        applied = apply_by_values(discovery.model, discovery.table, resolve(plan, discovery.table), discovery.uses)
        reference = carry_over(applied, discovery.model, zoo.model)
        assert not list(mismatches(run_all(reference, cases), run_all(compiled, cases))), style


def test_a_bidirectional_attention_with_one_half_frozen_is_one_site() -> None:
    """The half whose values are given out is no second site with the projections of the first."""
    zoo = build("bi_attention", 0)
    whole = discover(canonicalize(zoo.model)).table
    two = next(site for site in whole.sites if "v2" in site.members)
    graph = zoo.model.graph
    product = next(node for node in graph if any(v is not None and v.name == two.members["v2"].param for v in node.inputs))
    graph.outputs.append(next(iter(product.outputs[0].consumers())).outputs[0])
    table = discover(canonicalize(zoo.model)).table
    weights = [member.param for site in table.sites for role, member in site.members.items() if not role.startswith("rider")]
    assert len(weights) == len(set(weights))


@pytest.mark.parametrize("form", ["decoder_cross", "packed_timm", "bi_attention"])
@pytest.mark.parametrize("heads", [slice(None), slice(1)], ids=["all", "first"])
def test_heads_without_values_keep_the_scores_that_something_else_reads(form: str, heads: slice) -> None:
    zoo = build(form, 1)
    given_out(zoo.model, ("Softmax",))
    discovery = discover(canonicalize(zoo.model))
    site = next(site for site in reversed(discovery.table.sites) if "head" in site.frozen)
    decisions: dict[str, AxisDecision] = {}
    for name in (name for name in site.axes if name in VALUE_AXES):
        units = np.arange(site.axes[name].size).reshape(site.heads, -1)
        decisions[name] = AxisDecision(np.delete(units, heads, axis=0).ravel())
    units = np.arange(site.axes["qk"].size).reshape(site.heads, -1)
    decisions["qk"] = AxisDecision(np.concatenate((units[0], units[1:, ::2].ravel())))
    plan = build_plan(discovery.table, {site.name: decisions}, form, {})
    compiled = compile_model(zoo.model, plan, cost=SMALL_COST, prefer="size").model
    applied = apply_by_values(discovery.model, discovery.table, resolve(plan, discovery.table), discovery.uses)
    reference = carry_over(applied, discovery.model, zoo.model)
    cases = inputs_of(zoo, 1)[:1]
    assert not list(mismatches(run_all(reference, cases), run_all(compiled, cases)))
