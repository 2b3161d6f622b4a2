"""FFNs of 1x1 convolutions are said to be there, and not followed."""

from __future__ import annotations

import pytest

from inarch.structure.discover import discover

from tests.onnx_text import model_of

WEIGHTS = "float[16,4,1,1] w.up.weight, float[4,16,1,1] w.down.weight, float[16,4,3,3] wide, float[4,4,1,1] group"
GELU = """
    e0 = Div(a, root) e1 = Erf(e0) e2 = Add(e1, one) e3 = Mul(a, e2) b = Mul(e3, half)
"""


def reasons(body: str) -> list[str]:
    model = model_of(
        body,
        inputs="float[B,4,H,W] x",
        outputs="float[B,4,H,W] y",
        weights=WEIGHTS + ", float[1] root, float[1] one, float[1] half",
    )
    return [f"{item.name}: {item.reason}" for item in discover(model).table.rejected]


@pytest.mark.parametrize("activation", ["b = Relu(a)", "b0 = Sigmoid(a) b = Mul(a, b0)", GELU])
def test_an_ffn_of_convolutions_is_named(activation: str) -> None:
    (said,) = reasons(f"a = Conv(x, w.up.weight) {activation} c = Conv(b, w.down.weight) y = Add(x, c)")
    assert said == "w.up: it is made of 1x1 convolutions, which are not followed: export it with Linear layers"


@pytest.mark.parametrize(
    "body",
    [
        "a = Conv(x, w.up.weight) b = Relu(a) y = Conv(b, w.down.weight)",
        "a = Conv(x, w.up.weight) c = Conv(a, w.down.weight) y = Add(x, c)",
        "a = Conv <pads = [1, 1, 1, 1]> (x, wide) b = Relu(a) c = Conv(b, w.down.weight) y = Add(x, c)",
        "a = Conv(x, w.up.weight) b = Relu(a) p = GlobalAveragePool(b) c = Conv(p, w.down.weight) y = Add(x, c)",
    ],
    ids=["no residual", "no activation", "wide", "pooled"],
)
def test_what_is_none_is_not(body: str) -> None:
    assert reasons(body) == []
