"""One plan serves every export of a model: sites bind by name, or by their place, and their units are the same units."""

from __future__ import annotations

import numpy as np
import pytest

from inarch.compiler.compile import compile_model

from tests.exporters.cases import CASES
from tests.exporters.check import feeds_of
from tests.exporters.export import How
from tests.exporters.pairs import exported, found
from tests.exporters.plans import COST, handwritten, inner
from tests.zoo.check import run_all


@pytest.mark.parametrize("make", [handwritten, inner], ids=lambda make: make.__name__)
@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("detr", How(dynamo=True, opset=18, optimize=False), How(dynamo=False, opset=17)),
        ("detr", How(dynamo=True, opset=20), How(dynamo=False, opset=17)),
        ("bert-sdpa", How(dynamo=True, opset=23), How(dynamo=False, opset=17)),
        ("chunked", How(dynamo=True, opset=18, optimize=False), How(dynamo=False, opset=17)),
    ],
    ids=str,
)
def test_a_plan_for_one_export_serves_another(name: str, one: How, other: How, make: object) -> None:
    table = found(name, one).table
    assert table.fingerprint == found(name, other).table.fingerprint
    plan = handwritten(table) if make is handwritten else inner(table)
    outputs = []
    for how in (one, other):
        model = exported(name, how)
        result = compile_model(model, plan, None, cost=COST)
        feeds = feeds_of(CASES[name], model)[:1]
        outputs.append(run_all(result.model, feeds)["on"][0])
        assert table.parameters - result.lowered.planned == pytest.approx(
            found(name, how).table.parameters - result.lowered.planned, abs=64
        )
    for first, second in zip(outputs[0].values(), outputs[1].values(), strict=True):
        np.testing.assert_allclose(first, second, rtol=0, atol=2e-5 * float(np.abs(first).max()))
