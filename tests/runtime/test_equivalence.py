"""Equal models pass, others fail at the right site; what rounding costs is told from what a change costs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from inarch.compiler.reference import apply_by_values
from inarch.runtime.equivalence import EquivalenceReport, compare
from inarch.runtime.inputs import Case, make_cases
from inarch.runtime.precision import depth, precision_of, stored_in
from inarch.runtime.session import Session
from inarch.structure.errors import RuntimeFailure

from tests.runtime.handmade import HIDDEN, WIDTH, Handmade, array_of, encoder, masked, nudge, plan_of, replace_param


@pytest.fixture(scope="module")
def built() -> Handmade:
    return encoder()


@pytest.fixture(scope="module")
def cases(built: Handmade) -> tuple[Case, ...]:
    with Session(built.model) as session:
        return make_cases(built.model, session).cases


def check(built: Handmade, compiled: ir.Model, cases: tuple[Case, ...], reference: ir.Model | None = None) -> EquivalenceReport:
    return compare(reference or built.model, compiled, cases, site_outputs=built.chains())


def test_an_equal_model_passes(built: Handmade, cases: tuple[Case, ...]) -> None:
    report = check(built, built.model.clone(), cases)
    assert report.ok
    assert [item.output for item in report.outputs] == ["hidden", "pooled"]
    assert all(item.max_abs == 0 for item in report.outputs)
    ran = {(item.case, item.level) for item in report.checks}
    assert ran == {(case.name, level) for case in cases for level in ("off", "all")}
    assert report.first_site is None
    assert report.precision == "fp32"
    json.dumps(report.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("param", "site"),
    [
        ("layer.0.attn.v.w", "layer.0.attn"),
        ("layer.0.ffn.down.w", "layer.0.ffn"),
        ("layer.1.attn.o.w", "layer.1.attn"),
        ("layer.1.ffn.up.b", "layer.1.ffn"),
    ],
)
def test_one_changed_weight_fails_at_its_site(built: Handmade, cases: tuple[Case, ...], param: str, site: str) -> None:
    report = check(built, nudge(built.model, param), cases)
    assert not report.ok
    assert report.first_site is not None
    assert report.first_site.site == site
    assert report.searched == 4


def test_two_sites_that_end_in_one_sum_are_told_apart(built: Handmade, cases: tuple[Case, ...]) -> None:
    together = {site: [[f"layer.1.{site}.{last}", "layer.1.ffn.sum"]] for site, last in (("attn", "o"), ("ffn", "down"))}
    report = compare(built.model, nudge(built.model, "layer.1.ffn.down.w"), cases, site_outputs=together)
    assert report.first_site is not None
    assert (report.first_site.site, report.first_site.value) == ("ffn", "layer.1.ffn.down")


def test_a_change_that_no_site_made_is_named_after_none(built: Handmade, cases: tuple[Case, ...]) -> None:
    compiled = built.model.clone()
    node = next(node for node in compiled.graph if node.outputs[0].name == "hidden")
    node.replace_input_with(0, node.inputs[0])
    extra = ir.Node("", "Neg", [node.inputs[0]])
    compiled.graph.insert_before(node, extra)
    node.replace_input_with(0, extra.outputs[0])
    report = check(built, compiled, cases)
    assert not report.ok
    assert report.first_site is None
    assert [item.output for item in report.outputs if not item.ok] == ["hidden"]


def pruned_by_hand(built: Handmade, site: str, kept: list[int]) -> ir.Model:
    """The FFN really smaller, its units in another order."""
    model = built.model
    for name, axis in ((f"{site}.up.w", 1), (f"{site}.up.b", 0), (f"{site}.down.w", 0)):
        model = replace_param(model, name, np.take(array_of(model, name), kept, axis))
    return model


def test_a_really_pruned_model_equals_its_reference(built: Handmade, cases: tuple[Case, ...]) -> None:
    gone = [1, 5, 30]
    resolved = plan_of(built.table, pruned={("layer.0.ffn", "hidden"): gone})
    reference = apply_by_values(built.model, built.table, resolved, built.uses)
    kept = [unit for unit in reversed(range(HIDDEN)) if unit not in gone]
    assert check(built, pruned_by_hand(built, "layer.0.ffn", kept), cases, reference).ok
    report = check(built, pruned_by_hand(built, "layer.0.ffn", kept[1:]), cases, reference)
    assert not report.ok
    assert report.first_site is not None
    assert report.first_site.site == "layer.0.ffn"


def test_not_finite_where_the_reference_is_fails(built: Handmade, cases: tuple[Case, ...]) -> None:
    report = check(built, nudge(built.model, "layer.1.ffn.down.b", np.inf), cases)
    assert not report.ok
    assert "not finite at" in report.outputs[0].reason
    json.dumps(report.to_json(), allow_nan=False)


def test_where_the_reference_is_not_finite_nothing_is_compared(built: Handmade, cases: tuple[Case, ...]) -> None:
    reference = nudge(built.model, "layer.1.ffn.down.b", np.nan)  # one channel of sixteen is NaN
    assert check(built, built.model, cases, reference).ok
    assert not check(built, nudge(built.model, "layer.1.ffn.down.b", at=4), cases, reference).ok


def test_a_reference_that_is_finite_nowhere_shows_nothing(built: Handmade, cases: tuple[Case, ...]) -> None:
    reference = replace_param(built.model, "layer.1.ffn.down.b", np.full(WIDTH, np.nan, np.float32))
    report = check(built, reference, cases, reference)
    assert not report.ok
    assert "nothing was compared" in report.outputs[0].reason


def test_a_compiled_model_that_does_not_run_fails_with_the_reason(built: Handmade, cases: tuple[Case, ...]) -> None:
    broken = replace_param(built.model, "layer.0.ffn.down.w", np.ones((HIDDEN + 1, WIDTH), np.float32))
    report = check(built, broken, cases)
    assert not report.ok
    assert "ONNX Runtime" in report.outputs[0].reason


def test_a_lost_output_and_a_changed_shape_fail(built: Handmade, cases: tuple[Case, ...]) -> None:
    lost = built.model.clone()
    lost.graph.outputs.pop()
    assert [item.reason for item in check(built, lost, cases).outputs] == ["", "the compiled model has no such output"]
    shaped = built.model.clone()
    node = next(node for node in shaped.graph if node.outputs[0].name == "pooled")
    node.attributes["keepdims"] = ir.AttrInt64("keepdims", 1)
    node.outputs[0].shape = None
    pooled = check(built, shaped, cases).outputs[1]
    assert (pooled.ok, pooled.reason) == (False, "shape [1, 1, 16] instead of [1, 16]")


def test_integers_have_to_be_equal() -> None:
    def model(axis: int) -> ir.Model:
        x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", 5]))
        node = ir.Node("", "ArgMax", [x], [ir.AttrInt64("axis", axis), ir.AttrInt64("keepdims", 0)])
        node.outputs[0].name = "best"
        node.outputs[0].type = ir.TensorType(ir.DataType.INT64)
        return ir.Model(ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 20}, name="g"), ir_version=10)

    feeds = (Case("square", {"x": np.eye(5, dtype=np.float32)[[4, 2, 0, 1, 3]]}),)
    assert compare(model(1), model(1), feeds).ok
    report = compare(model(1), model(0), feeds)
    assert not report.ok
    assert "differ" in report.outputs[0].reason


def test_a_reference_that_cannot_run_is_refused(built: Handmade, cases: tuple[Case, ...]) -> None:
    broken = replace_param(built.model, "layer.0.ffn.down.w", np.ones((HIDDEN + 1, WIDTH), np.float32))
    with pytest.raises(RuntimeFailure, match="ONNX Runtime"):
        check(built, built.model, cases, broken)


def test_unreadable_files_are_refused(built: Handmade, cases: tuple[Case, ...], tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x07garbage")
    with pytest.raises(RuntimeFailure, match="cannot be read"):
        compare(built.model, tmp_path / "broken.onnx", cases)
    with pytest.raises(RuntimeFailure):
        compare(built.model, tmp_path / "missing.onnx", cases)


def test_depth_and_precision_are_the_models(built: Handmade) -> None:
    assert depth(built.model) == 2 * (4 + 2)  # q or k, scores, weights, o; up, down
    assert precision_of(built.model).name == "fp32"
    assert precision_of(encoder(dtype=np.float16).model).name == "fp16"


def test_weights_that_are_cast_before_their_products_are_what_they_are_cast_to() -> None:
    model = encoder().model
    for value in list(model.graph.initializers.values()):
        assert value.const_value is not None
        stored = ir.Value(name=f"{value.name}.half", const_value=ir.tensor(value.const_value.numpy().astype(np.float16)))
        model.graph.initializers[f"{value.name}.half"] = stored
        cast = ir.node("Cast", [stored], {"to": int(ir.DataType.FLOAT)})
        cast.outputs[0].name = f"{value.name}.single"
        model.graph.insert_before(model.graph[0], cast)
        value.replace_all_uses_with(cast.outputs[0])
        del model.graph.initializers[str(value.name)]
    assert (precision_of(model).name, stored_in(model)) == ("fp32", "fp16")


def test_empty_outputs_show_nothing() -> None:
    def model(slope: float) -> ir.Model:
        x = ir.Value(name="x", shape=ir.Shape(["n"]), type=ir.TensorType(ir.DataType.FLOAT))
        node = ir.node("LeakyRelu", [x], {"alpha": slope})
        node.outputs[0].name = "y"
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        return ir.Model(ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 20}, name="g"), ir_version=10)

    empty = Case("empty", {"x": np.zeros(0, np.float32)})
    report = compare(model(0.1), model(0.2), [empty])
    assert not report.ok
    assert report.outputs[0].reason == "every output is empty in every case, so nothing was compared"
    assert compare(model(0.1), model(0.1), [empty, Case("full", {"x": -np.ones(3, np.float32)})]).ok


@pytest.mark.parametrize("fill", [-3.0e38, 5e4, -1e9])
def test_what_a_mask_writes_is_no_scale(fill: float) -> None:
    case = Case("masked", {"x": np.array([-3.0, 2.0, 200.0, -1.0, 300.0], np.float32)})
    assert compare(masked(0.1, fill), masked(0.1, fill), [case]).ok
    report = compare(masked(0.1, fill), masked(0.101, fill), [case])
    assert not report.ok
    assert report.outputs[0].tolerance < 1e-4
    assert not compare(masked(0.1, fill), masked(0.1, fill / 2), [case]).ok


def test_an_output_that_was_always_empty_shows_nothing_beside_others() -> None:
    def model(slope: float) -> ir.Model:
        return ir.from_onnx_text(
            f"""<ir_version: 10, opset_import: ["" : 20]>
            g (float[n] x) => (float[m, 1] scores, int64[1] count, float[0] never)
            <int64[1] none = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}}>
            {{ steep = LeakyRelu<alpha = {slope!r}>(x)  kept = NonZero(steep)  turned = Transpose(kept)
               scores = Cast<to = 1>(turned)  picked = Shape(kept)  count = Slice(picked, one, two)
               never = ConstantOfShape(none) }}"""
        )

    empty = Case("empty", {"x": np.zeros(3, np.float32)})
    report = compare(model(0.1), model(0.2), [empty])
    assert {item.output: item.ok for item in report.outputs} == {"scores": False, "count": True, "never": True}
    assert compare(model(0.1), model(0.1), [empty, Case("full", {"x": np.ones(3, np.float32)})]).ok


def test_half_precision_has_its_own_tolerance() -> None:
    half = encoder(dtype=np.float16)
    with Session(half.model) as session:
        some = make_cases(half.model, session).cases[:2]
    assert check(half, half.model, some).ok
    assert not check(half, nudge(half.model, "layer.1.ffn.down.b", 1.0), some).ok
