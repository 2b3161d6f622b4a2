"""What a lowering decided, as data: it adds up to what is stored, and says of every unit beyond the plan why it is there."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest

from inarch.structure.cost import CostTable, Limits
from inarch.structure.decisions import SiteDecision, decision_data, decisions
from inarch.structure.discover import discover
from inarch.structure.lowered import LoweredPlan
from inarch.structure.lowering import lower
from inarch.structure.resolve import AxisDecision, build_plan, resolve
from inarch.structure.sites import SiteTable

from tests.onnx_text import attention, attention_weights, ffn, ffn_weights, model_of

Plan = dict[str, dict[str, AxisDecision]]


def model() -> ir.Model:
    """Two FFNs of 64 units and two MSAs of 4 heads of 8 units, 32 wide."""
    body = ffn("a", "x", "x1") + ffn("b", "x1", "x2") + attention("m", "x2", "x3", 4, 8) + attention("n", "x3", "y", 4, 8)
    weights = [ffn_weights(site, 32, 64) for site in "ab"] + [attention_weights(site, 32, 4, 8) for site in "mn"]
    return model_of(body, inputs="float[B,S,32] x", outputs="float[B,S,32] y", weights=", ".join(weights))


def decide(plan: Plan, **limits: float) -> tuple[dict[str, SiteDecision], LoweredPlan, SiteTable]:
    kept = Limits.model_validate({"multiple": 1, "rounding": 0.0, "min_segment": 1, "max_segments": 8} | limits)
    cost = CostTable(format="inarch.cost/1", description="", balanced=kept, size=kept, latency=kept)
    table = discover(model()).table
    lowered = lower(table, resolve(build_plan(table, plan, "model", {}), table), cost)
    return {decision.site: decision for decision in decisions(table, lowered)}, lowered, table


def units(count: int, start: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.arange(start, start + count, dtype=np.int64)


def shared(base: str, count: int) -> AxisDecision:
    return AxisDecision(share=((base, units(count), units(count)),))


HALF_SHARED: Plan = {
    "b.ffn": {"hidden": AxisDecision(keep=units(60), share=(("a.ffn", units(40), units(40)),))},
    "n.attn": {"head": shared("m.attn", 2)},
}


@pytest.mark.parametrize("limits", [{}, {"multiple": 16}, {"min_segment": 64}, {"max_segments": 1}])
def test_decisions_add_up_to_what_is_stored(limits: dict[str, float]) -> None:
    found, lowered, table = decide(HALF_SHARED, **limits)
    around = table.parameters - sum(decision.parameters for decision in found.values())
    once = sum(table[next(iter(s.readers))].unit_parameters(s.axis)[0] * s.width for s in lowered.segments)
    assert sum(decision.own for decision in found.values()) + once + around == lowered.stored
    for decision in found.values():
        for axis in decision.axes:
            assert axis.units == axis.dropped + sum(block.units for block in axis.blocks)


def test_blocks_name_their_readers_and_products_are_counted() -> None:
    found, _, _ = decide(HALF_SHARED)
    hidden = found["b.ffn"].axes[0]
    assert [(block.units, block.readers) for block in hidden.blocks] == [(40, ("a.ffn",)), (20, ())]
    assert hidden.dropped == 4
    assert (found["b.ffn"].dense_products, found["b.ffn"].products) == (2, 4)
    assert (found["n.attn"].dense_products, found["n.attn"].products) == (6, 12)
    assert [(block.heads, block.units) for block in found["n.attn"].axes[0].blocks] == [(2, 16), (2, 16)]
    assert found["b.ffn"].shared == 40 * 2 * 32


def test_a_segment_that_is_too_small_is_named_with_its_base_and_reason() -> None:
    found, _, _ = decide({"b.ffn": {"hidden": shared("a.ffn", 20)}}, min_segment=32)
    (entry,) = found["b.ffn"].legalised
    assert (entry.reason, entry.base, entry.units, entry.parameters) == ("segment-size", "a.ffn", 20, 20 * 2 * 32)
    axis = found["b.ffn"].axes[0]
    assert (axis.again, axis.zeros, len(axis.blocks)) == (20, 0, 1)
    assert not found["b.ffn"].shared


def test_zeros_have_no_base() -> None:
    found, _, _ = decide({"a.ffn": {"hidden": AxisDecision(keep=units(50))}}, multiple=16)
    (entry,) = found["a.ffn"].legalised
    assert (entry.reason, entry.base, entry.units) == ("multiple", None, 14)
    assert found["a.ffn"].axes[0].zeros == 14
    assert found["a.ffn"].changed
    assert not found["b.ffn"].changed


def test_a_site_of_which_nothing_is_left_has_no_blocks_and_no_products() -> None:
    found, _, _ = decide({"a.ffn": {"hidden": AxisDecision(keep=units(0))}})
    assert found["a.ffn"].axes[0].blocks == ()
    assert (found["a.ffn"].own, found["a.ffn"].products) == (0, 0)


def test_a_decision_is_plain_json_with_bytes() -> None:
    found, _, _ = decide({"b.ffn": {"hidden": shared("a.ffn", 20)}}, min_segment=32)
    data = json.loads(json.dumps(decision_data(found["b.ffn"], 4.0)))
    assert data["legalised"] == [
        {"axis": "hidden", "reason": "segment-size", "units": 20, "parameters": 1280, "base": "a.ffn", "bytes": 5120}
    ]
    assert data["axes"][0]["blocks"] == [{"heads": 1, "units": 64, "segment": None, "readers": []}]
