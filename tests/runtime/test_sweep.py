"""Cases of several sizes: rows are repeated, values of other sizes are made, and what cannot change is refused."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from inarch.runtime.inputs import Case
from inarch.runtime.session import Session
from inarch.runtime.sweep import Sweep, sweep_cases
from inarch.structure.errors import RuntimeFailure

from tests.runtime.handmade import VOCABULARY, Builder, encoder

OWN = Case("own", {"input_ids": np.array([[1, 2, 3], [4, 5, 6]]), "attention_mask": np.array([[1, 1, 1], [1, 1, 0]])})


def swept(sweep: Sweep, model: ir.Model | None = None, base: Case = OWN) -> tuple[Case, ...]:
    model = model or encoder().model
    with Session(model) as session:
        return sweep_cases(model, session, base, sweep)


def six_tokens() -> ir.Model:
    """A model whose position table holds six."""
    make = Builder(np.random.default_rng(0))
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", "sequence", 4]))
    y = make.op("Add", x, make.weight("positions", 1, 6, 4))
    y.type, y.shape = x.type, x.shape
    graph = ir.Graph([x], [y], nodes=make.nodes, initializers=list(make.params.values()), opset_imports={"": 20}, name="g")
    return ir.Model(graph, ir_version=10)


def test_no_sweep_is_the_case_itself() -> None:
    assert swept(Sweep()) == (OWN,)


def test_other_batches_repeat_the_users_rows() -> None:
    one, five = swept(Sweep(batches=(1, 5)))
    assert (one.name, five.name) == ("batch 1", "batch 5")
    assert one.feeds["input_ids"].tolist() == [[1, 2, 3]]
    assert five.feeds["input_ids"].tolist() == [[1, 2, 3], [4, 5, 6], [1, 2, 3], [4, 5, 6], [1, 2, 3]]
    assert five.feeds["attention_mask"][1].tolist() == [1, 1, 0]


def test_other_lengths_are_made_for_what_each_input_is() -> None:
    cases = swept(Sweep(batches=(1, 2), lengths=(5, 9)))
    assert [case.name for case in cases] == [f"batch {b}, length {n}" for b in (1, 2) for n in (5, 9)]
    last = cases[-1].feeds
    assert last["input_ids"].shape == last["attention_mask"].shape == (2, 9)
    assert 0 < last["input_ids"].min() <= last["input_ids"].max() < VOCABULARY
    assert set(last["attention_mask"].flat) == {0, 1}
    (alone,) = swept(Sweep(lengths=(5,)))
    assert alone.feeds["input_ids"].shape == (2, 5), "the batch stays the case's"


def test_what_the_model_does_not_have_or_run_is_refused() -> None:
    for too_many in (10**12, 10**20):
        with pytest.raises(RuntimeFailure, match=f"inputs of batch {too_many} cannot be made"):
            swept(Sweep(batches=(too_many,)))
    with pytest.raises(RuntimeFailure, match="no input of the model has an axis for image size that may change"):
        swept(Sweep(images=(64,)))
    with pytest.raises(RuntimeFailure, match=r"the model does not run at length 9: .*x \[2, 9, 4\]"):
        swept(Sweep(lengths=(6, 9)), six_tokens(), Case("own", {"x": np.ones((2, 6, 4), np.float32)}))
    fixed = encoder().model
    for value in fixed.graph.inputs:
        value.shape = ir.Shape([1, "sequence"])
    with pytest.raises(RuntimeFailure, match="no input of the model has an axis for batch that may change"):
        swept(Sweep(batches=(4,)), fixed)


def test_an_image_keeps_its_channels() -> None:
    x = ir.Value(name="pixels", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", 3, "height", "width"]))
    node = ir.node("GlobalAveragePool", [x])
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape(["batch", 3, 1, 1])
    model = ir.Model(ir.Graph([x], [y], nodes=[node], opset_imports={"": 20}, name="g"), ir_version=10)
    base = Case("own", {"pixels": np.ones((2, 3, 8, 12), np.float32)})
    small, large = swept(Sweep(images=(16, 32)), model, base)
    assert [case.feeds["pixels"].shape for case in (small, large)] == [(2, 3, 16, 16), (2, 3, 32, 32)]
    assert large.name == "image size 32"
