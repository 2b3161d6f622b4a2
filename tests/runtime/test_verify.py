"""Everything in one call, with the sites that discovery finds."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from inarch.compiler.reference import apply_by_values
from inarch.frontends.canonicalize import canonicalize
from inarch.runtime.inputs import Case
from inarch.runtime.verify import site_values, verify
from inarch.structure.discover import discover
from inarch.structure.errors import ModelError, RuntimeFailure
from inarch.structure.plan import Plan
from inarch.structure.resolve import AxisDecision, build_plan, resolve

from tests.runtime.handmade import HIDDEN, array_of, encoder, nudge, replace_param

KEPT = np.array([unit for unit in range(HIDDEN) if unit not in (2, 9)])


def ffn_plan(model: ir.Model) -> Plan:
    """Two units pruned at the first FFN, four of the second one's shared with it."""
    table = discover(model).table
    first, second = (site.name for site in table.sites if site.kind == "ffn")
    four = np.arange(10, 14)
    decisions = {first: {"hidden": AxisDecision(keep=KEPT)}, second: {"hidden": AxisDecision(share=((first, four, four),))}}
    return build_plan(table, decisions, "encoder", {})


@pytest.fixture(scope="module")
def original() -> ir.Model:
    return encoder().model


@pytest.fixture(scope="module")
def plan(original: ir.Model) -> Plan:
    return ffn_plan(original)


@pytest.fixture(scope="module")
def compiled(original: ir.Model, plan: Plan) -> ir.Model:
    """By hand: the plan's values, and the pruned units really gone."""
    found = discover(original)
    model = apply_by_values(original, found.table, resolve(plan, found.table), found.uses)
    for name, axis in (("up.w", 1), ("up.b", 0), ("down.w", 0)):
        whole = f"layer.0.ffn.{name}"
        model = replace_param(model, whole, np.take(array_of(model, whole), KEPT, axis))
    return model


def test_what_the_plan_asks_for_is_verified(original: ir.Model, plan: Plan, compiled: ir.Model, tmp_path: Path) -> None:
    ir.save(original, tmp_path / "original.onnx")
    ir.save(compiled, tmp_path / "compiled.onnx", external_data="compiled.data")
    steps: list[str] = []
    result = verify(
        tmp_path / "original.onnx", plan, tmp_path / "compiled.onnx", progress=lambda what, done, total: steps.append(what)
    )
    assert result.ok
    assert len(result.cases) == 4
    assert result.dropped == ()
    assert not result.widened
    changed = [site for site, change in result.damage.sites.items() if change]
    assert changed == [site.name for site in discover(original).table.sites if site.kind == "ffn"]
    assert result.damage.ruined, "the original and the reference do differ here"
    assert len(dict.fromkeys(steps)) == 3
    json.dumps(result.to_json(), allow_nan=False)


def test_a_wrong_weight_is_found_at_its_site(original: ir.Model, plan: Plan, compiled: ir.Model) -> None:
    result = verify(original, plan, nudge(compiled, "layer.0.ffn.down.w"))
    assert not result.ok
    assert result.equivalence.first_site is not None
    assert result.equivalence.first_site.site == discover(original).table.sites[1].name


def test_the_original_is_not_what_the_plan_asks_for(original: ir.Model, plan: Plan) -> None:
    assert not verify(original, plan, original).ok


def test_the_users_inputs_are_used(original: ir.Model, plan: Plan, compiled: ir.Model, tmp_path: Path) -> None:
    feeds = {"input_ids": np.array([[4, 5, 6, 7]]), "attention_mask": np.ones((1, 4), np.int64)}
    np.savez(tmp_path / "mine.npz", allow_pickle=False, **feeds)
    assert verify(original, plan, compiled, inputs=tmp_path / "mine.npz").cases == ("inputs",)
    assert verify(original, plan, compiled, inputs=[Case("one", feeds)]).cases == ("one",)
    wide = {**feeds, "attention_mask": np.ones((1, 5), np.int64)}
    with pytest.raises(RuntimeFailure, match="none of the inputs"):
        verify(original, plan, compiled, inputs=[Case("wide", wide)])


def test_nan_in_a_changed_weight_is_refused(original: ir.Model, plan: Plan, compiled: ir.Model) -> None:
    with pytest.raises(ModelError, match=r"layer.0.ffn.up.w.* NaN or Inf"):
        verify(nudge(original, "layer.0.ffn.up.w", np.nan), plan, compiled)


def test_a_duplicated_tensor_fails_though_it_computes_the_same(original: ir.Model, plan: Plan, compiled: ir.Model) -> None:
    shared = compiled.clone()
    shared.metadata_props["inarch.shared"] = json.dumps(["layer.1.ffn.down.w"])
    assert verify(original, plan, shared).ok
    copied = shared.clone()
    array = array_of(copied, "layer.1.ffn.down.w")
    twin = ir.Value(name="twin", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(array.shape), const_value=ir.Tensor(array))
    copied.graph.register_initializer(twin)
    product = next(node for node in copied.graph if node.name == "layer.1.ffn.down")
    again = ir.Node("", "MatMul", [product.inputs[0], twin], name="again")
    half = ir.Value(name="half", type=ir.TensorType(ir.DataType.FLOAT), const_value=ir.Tensor(np.array(0.5, np.float32)))
    copied.graph.register_initializer(half)
    both = ir.Node("", "Add", [product.outputs[0], again.outputs[0]])
    mean = ir.Node("", "Mul", [both.outputs[0], half])
    product.outputs[0].replace_all_uses_with(mean.outputs[0])
    both.replace_input_with(0, product.outputs[0])
    copied.graph.insert_after(product, [again, both, mean])
    result = verify(original, plan, copied)
    assert result.equivalence.ok
    assert not result.sharing.ok
    assert not result.ok


def test_bf16_is_verified_as_fp32_where_there_is_only_a_cpu() -> None:
    model = encoder(dtype=ml_dtypes.bfloat16).model
    plan = ffn_plan(model)
    found = discover(model)
    compiled = apply_by_values(model, found.table, resolve(plan, found.table), found.uses)
    result = verify(model, plan, compiled)
    assert result.ok
    assert result.widened
    assert result.equivalence.precision == "fp32"
    wrong = verify(model, plan, nudge(compiled, "layer.1.ffn.down.w", 0.5))
    assert wrong.equivalence.first_site is not None
    assert wrong.equivalence.first_site.site == found.table.sites[3].name


def test_results_are_looked_at_past_the_residual(original: ir.Model) -> None:
    found = discover(canonicalize(original))
    assert [chain[-1] for site in found.table.sites for chain in site_values(found, site.name)] == [
        "layer.0.attn.sum", "layer.0.ffn.sum", "layer.1.attn.sum", "layer.1.ffn.sum",
    ]  # fmt: skip
