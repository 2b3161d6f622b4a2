"""What reads the parameters that no site has."""

from __future__ import annotations

import pytest

from inarch.structure.demand import outside
from inarch.structure.discover import discover
from inarch.structure.parameters import read_outside

from tests.onnx_text import ffn, ffn_weights, model_of

TABLE, NORM = "float[10,4] table", "float[4] scale, float[4] bias"


def read(body: str, weights: str, *, outputs: str = "float[B,S,4] y") -> dict[str, int]:
    """Of an embedding with an FFN behind it, and of what else is said."""
    body = f"embedded = Gather (table, x) {body} {ffn('l', 'z', 'y')}"
    weights = f"{TABLE}, {ffn_weights('l', 4, 8)}" + (f", {weights}" if weights else "")
    discovery = discover(model_of(body, inputs="int64[B,S] x", outputs=outputs, weights=weights))
    assert len(discovery.table.sites) == 1
    found = dict(read_outside(discovery.model, discovery.table))
    assert sum(found.values()) == outside(discovery.table)
    return found


@pytest.mark.parametrize(
    ("body", "weights", "found"),
    [
        ("z = Identity (embedded)", "", {"Gather": 40, "Add": 4}),
        ("z = LayerNormalization (embedded, scale, bias)", NORM, {"Gather": 40, "LayerNormalization": 8, "Add": 4}),
        ("turned = Transpose <perm = [1, 0]> (square) z = MatMul (embedded, turned)", "float[4,4] square", {"MatMul": 16}),
        ("some = Gather (rows, first) z = Mul (embedded, some)", "float[3,4] rows, int64 first = {1}", {"Mul": 12}),
        ("z = Add (embedded, l.down.bias)", "", {"Gather": 40, "Add": 4}),
    ],
)
def test_by_operator(body: str, weights: str, found: dict[str, int]) -> None:
    assert read(body, weights) == {"Gather": 40, "Add": 4} | found


def test_what_several_operators_read_has_all_of_their_names() -> None:
    body = "z = Identity (embedded) turned = Transpose <perm = [1, 0]> (table) scores = MatMul (z, turned)"
    assert read(body, "", outputs="float[B,S,4] y, float[B,S,10] scores") == {"Gather+MatMul": 40, "Add": 4}


def test_what_is_given_out_says_so() -> None:
    found = read("z = Identity (embedded)", "float[3] given", outputs="float[B,S,4] y, float[3] given")
    assert found == {"Gather": 40, "Add": 4, "the graph's interface": 3}
