"""A weight that something else reads as well, which is no site, stays whole: what is counted is what the file holds."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from inarch.compiler.compile import compile_model
from inarch.compiler.reference import apply_by_values, carry_over
from inarch.frontends.canonicalize import canonicalize
from inarch.structure.demand import planned_parameters
from inarch.structure.discover import discover
from inarch.structure.planners.weights import tied_sites
from inarch.structure.resolve import resolve
from inarch.structure.sites import SiteTable

from tests.contract.test_equivalence import SMALL_COST
from tests.zoo import ZooModel, build
from tests.zoo.check import inputs_of, mismatches, run_all
from tests.zoo.plans import random_plan

READERS = ("Identity", "Transpose", "ReduceMax", "Shape", "dead")


def read_elsewhere(zoo: ZooModel, roles: tuple[str, ...], reader: str) -> set[str]:
    """Let something else read members of the last site; returns their parameters."""
    graph = zoo.model.graph
    site = discover(canonicalize(zoo.model)).table.sites[-1]
    params = {site.members[role].param for role in roles}
    for name in sorted(params):
        dead = reader == "dead"
        node = ir.node("Neg" if dead else reader, [graph.initializers[name]])
        graph.append(node)
        if not dead:
            node.outputs[0].name = f"{name}.seen"
            graph.outputs.append(node.outputs[0])
    return params


def numbers(model: ir.Model) -> int:
    tensors = {id(value.const_value): value.const_value for value in model.graph.initializers.values()}
    return sum(tensor.size for tensor in tensors.values() if tensor is not None and tensor.dtype == ir.DataType.FLOAT)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("roles", [("up",), ("down", "up_bias")], ids="-".join)
def test_what_is_counted_is_what_the_file_holds(roles: tuple[str, ...], reader: str) -> None:
    zoo = build("encoder_relu", 0)
    params = read_elsewhere(zoo, roles, reader)
    discovery = discover(canonicalize(zoo.model))
    table = discovery.table
    stays = reader != "dead"
    assert table.held == (params if stays else set())
    assert (table.sites[-1].name in tied_sites(table)) == stays
    cases = inputs_of(zoo, 1)[:1]
    for number, style in enumerate(("prune-heads", "share-mixed", "prune-all")):
        plan = random_plan(np.random.default_rng(number), table, style, name="m")
        resolved = resolve(plan, table)
        result = compile_model(zoo.model, plan, cost=SMALL_COST, prefer="size")
        assert result.lowered.stored == numbers(result.model)
        assert result.lowered.planned == planned_parameters(table, resolved)
        assert result.lowered.stored - result.lowered.planned == sum(item.parameters for item in result.lowered.legalised)
        whole = sum(
            tensor.size for name in params if (tensor := discovery.model.graph.initializers[name].const_value) is not None
        )
        assert result.lowered.planned >= whole * stays
        applied = apply_by_values(discovery.model, table, resolved, discovery.uses)
        reference = carry_over(applied, discovery.model, zoo.model)
        assert not list(mismatches(run_all(reference, cases), run_all(result.model, cases))), style


def test_nothing_is_held_where_only_sites_read() -> None:
    for form in ("tied_layers", "tied_members", "packed_slice", "constant_weights", "transposed_weights", "layer_scale", "swin"):
        table: SiteTable = discover(canonicalize(build(form, 0).model)).table
        assert table.held == set(), form


def test_what_nothing_reads_is_not_counted() -> None:
    zoo = build("encoder_relu", 0)
    before = discover(canonicalize(zoo.model)).table
    tensor = ir.tensor(np.ones((7, 5), np.float32), name="unread")
    zoo.model.graph.initializers["unread"] = ir.Value(
        name="unread", shape=ir.Shape((7, 5)), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    table = discover(canonicalize(zoo.model)).table
    assert (table.parameters, table.bytes) == (before.parameters, before.bytes)
    result = compile_model(zoo.model, random_plan(np.random.default_rng(0), table, "prune-all", name="m"), cost=SMALL_COST)
    assert "unread" not in result.model.graph.initializers
    assert result.lowered.stored == numbers(result.model)
