"""FFNs beside an attention, added to the residual stream one after the other, in any order."""

from __future__ import annotations

import pytest

from inarch.structure.discover import discover

from tests.onnx_text import ffn, ffn_weights, model_of


@pytest.mark.parametrize(
    "sums",
    [
        "s = Add(x, p) y = Add(s, q)",
        "s = Add(x, q) y = Add(s, p)",
        "s = Add(p, q) y = Add(s, x)",
        "s = Add(q, p) y = Add(x, s)",
    ],
)
def test_parallel_blocks_are_added_in_any_order(sums: str) -> None:
    weights = ", ".join(ffn_weights(site, 4, 8) for site in "ab")
    # Without the sums that they end with.
    bodies = [ffn(site, "h", "").rsplit("\n", 1)[0] for site in "ab"]
    body = "h = LayerNormalization(x, norm)" + "".join(bodies) + " " + sums.replace("p", "a.4").replace("q", "b.4")
    model = model_of(body, inputs="float[B,S,4] x", outputs="float[B,S,4] y", weights=weights + ", float[4] norm")
    table = discover(model).table
    assert [site.kind for site in table.sites] == ["ffn", "ffn"]
    assert not table.rejected
