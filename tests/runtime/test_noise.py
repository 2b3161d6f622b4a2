"""Noise where ONNX Runtime rounds the same at every level: two right answers pass, a wrong one does not."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from inarch.runtime import equivalence
from inarch.runtime.equivalence import compare
from inarch.runtime.inputs import Case
from inarch.runtime.noise import shaken

from tests.runtime.handmade import Builder

WIDTH, LEFT = 256, 0.1
CASE = Case("one", {"x": np.random.default_rng(1).normal(size=(8, WIDTH)).astype(np.float32)})


def cancelling(left: float, *, turned: bool = False, wrong: float = 0.0) -> ir.Model:
    """x U - x (U - left D): large terms of which little is left, with the sums the other way round, or with one wrong weight."""
    make = Builder(np.random.default_rng(0))
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", WIDTH]))
    rng = np.random.default_rng(2)
    first, other = (rng.normal(size=(WIDTH, 16)).astype(np.float32) for _ in range(2))
    weight = np.concatenate((first, np.float32(left) * other - first))
    weight[3, 3] += wrong
    order = np.arange(2 * WIDTH)[::-1] if turned else np.arange(2 * WIDTH)
    picked = make.op("Gather", make.op("Concat", x, x, axis=1), make.param("order", order.astype(np.int64)), axis=1)
    y = make.op("MatMul", make.op("Mul", picked, make.param("s", np.ones(1, np.float32))), make.param("W", weight[order].copy()))
    y.type, y.shape = x.type, ir.Shape(["n", 16])
    graph = ir.Graph([x], [y], nodes=make.nodes, initializers=list(make.params.values()), opset_imports={"": 20}, name="g")
    return ir.Model(graph, ir_version=10)


def test_another_order_of_sums_is_right_where_rounding_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    report = compare(cancelling(LEFT), cancelling(LEFT, turned=True), [CASE])
    assert report.ok
    assert 0 < report.checks[0].max_abs <= report.checks[0].tolerance
    assert not compare(cancelling(LEFT), cancelling(LEFT, turned=True, wrong=1e-3), [CASE]).ok
    # It is the weights' last bits that show it: ONNX Runtime's levels do not.
    monkeypatch.setattr(equivalence, "_SHAKES", 0)
    assert not compare(cancelling(LEFT), cancelling(LEFT, turned=True), [CASE]).ok


@pytest.mark.parametrize("wrong", [1e-3, 1e-2])
def test_a_model_that_rounds_finely_is_held_to_it(wrong: float) -> None:
    assert compare(cancelling(1.0), cancelling(1.0, turned=True), [CASE]).ok
    assert not compare(cancelling(1.0), cancelling(1.0, turned=True, wrong=wrong), [CASE]).ok


def test_only_last_bits_of_matrices_change() -> None:
    model, eps = cancelling(LEFT), 2.0**-23
    first, other = shaken(model, eps, 0), shaken(model, eps, 1)
    for name, value in model.graph.initializers.items():
        one, two, own = (np.asarray(m.graph.initializers[name].const_value) for m in (first, other, model))
        assert value.const_value is not None
        if own.ndim < 2:
            assert (one == own).all()
            continue
        assert one.dtype == own.dtype
        assert 0 < np.abs(one / own - 1).max() <= 2 * eps
        assert (one != two).any()


def test_a_narrow_matrix_that_is_cast_has_last_bits_of_what_it_is_cast_to() -> None:
    model, eps = cancelling(LEFT), 2.0**-23
    weight = model.graph.initializers["W"]
    assert weight.const_value is not None
    weight.const_value = ir.tensor(weight.const_value.numpy().astype(np.float16), name="W")
    weight.dtype = ir.DataType.FLOAT16
    (product,) = (node for node, _ in weight.uses())
    cast = ir.node("Cast", [weight], {"to": int(ir.DataType.FLOAT)})
    product.replace_input_with(1, cast.outputs[0])
    model.graph.insert_before(product, cast)
    changed = shaken(model, eps, 0).graph.initializers["W"]
    one, own = np.asarray(changed.const_value), np.asarray(weight.const_value).astype(np.float32)
    assert one.dtype == np.float32
    assert changed.dtype == ir.DataType.FLOAT
    assert 0 < np.abs(one / own - 1).max() <= 2 * eps
    assert compare(model, model, [CASE]).ok
