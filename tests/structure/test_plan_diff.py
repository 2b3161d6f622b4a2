from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from inarch.structure.plan import Plan, parse_plan
from inarch.structure.plan_diff import AxisDiff, Change, Pairing, PlanDiff, diff_plans

from tests.structure.plan_cases import Case, document_of, ffn, random_case, read, spell, table_of, text_of

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31)

Pairs = set[tuple[str, str, str, int, int]]


def plan_of(document: dict[str, Any]) -> Plan:
    return parse_plan(text_of(document))


def pairs_of(case: Case) -> Pairs:
    """(reader, axis, base, unit, base unit) of every pair that a plan writes."""
    return {
        (site, axis, entry["base"], unit, base_unit)
        for site, axis, _, entry in case.entries()
        for unit, base_unit in zip(read(entry["units"]), read(entry["base_units"]), strict=True)
    }


def pairs_in(found: tuple[AxisDiff, ...], which: str) -> Pairs:
    return {
        (axis.site, axis.axis, pairing.base, unit, base_unit)
        for axis in found
        for pairing in getattr(axis, which)
        for unit, base_unit in zip(read(pairing.units), read(pairing.base_units), strict=True)
    }


@few
@given(seeds)
def test_a_plan_does_not_differ_from_itself_however_it_is_written(seed: int) -> None:
    case = random_case(seed)
    other = copy.deepcopy(case.document)
    for site in other["sites"].values():
        for name, plan in list(site["axes"].items()):
            split = []
            for entry in reversed(plan["share"]):
                pairs = list(zip(read(entry["units"]), read(entry["base_units"]), strict=True))[::-1]
                for part in (pairs[::2], pairs[1::2]):
                    split.append({**entry, "units": spell(u for u, _ in part), "base_units": spell(b for _, b in part)})
            plan["share"] = split
            if not split and len(read(plan["keep"])) == plan["size"]:
                del site["axes"][name]
    assert diff_plans(plan_of(case.document), plan_of(other)) == PlanDiff()
    assert diff_plans(plan_of(case.document), plan_of(other)).same


@few
@given(seeds, seeds)
def test_every_unit_that_differs_is_found(seed: int, other_seed: int) -> None:
    old, new = random_case(seed), random_case(other_seed)
    found = diff_plans(plan_of(old.document), plan_of(new.document))
    for axis in found.axes:
        was, now = (set(read(c.document["sites"][axis.site]["axes"][axis.axis]["keep"])) for c in (old, new))
        assert set(read(axis.pruned)) == was - now
        assert set(read(axis.restored)) == now - was
    assert pairs_in(found.axes, "shared") == pairs_of(new) - pairs_of(old)
    assert pairs_in(found.axes, "unshared") == pairs_of(old) - pairs_of(new)


def test_what_is_reported() -> None:
    document = document_of(table_of(ffn("a", 6), ffn("b", 8)))
    old, new = copy.deepcopy(document), copy.deepcopy(document)
    old["sites"]["a"]["axes"]["hidden"] = {
        "size": 6,
        "keep": "0-4",
        "share": [{"base": "b", "units": "0-2", "base_units": "5-7"}],
    }
    new["sites"]["a"]["axes"]["hidden"] = {
        "size": 6,
        "keep": "0-3,5",
        "share": [{"base": "b", "units": "2,1,0", "base_units": "4,6,5"}],
    }
    new["sites"]["c"] = {"kind": "ffn"}
    new["model"]["name"] = "other"
    new["expect"]["bytes"] = 8
    new["provenance"]["lr"] = 0.5
    new["sites"]["b"]["members"]["up"]["param"] = "moved"
    found = diff_plans(plan_of(old), plan_of(new))
    assert found.added == ("c",)
    assert found.removed == ()
    assert found.axes == (
        AxisDiff("a", "hidden", "4", "5", unshared=(Pairing("b", "2", "7"),), shared=(Pairing("b", "2", "4"),)),
    )
    changed = {change.where: (change.old, change.new) for change in found.values}
    assert changed["model.name"] == ("random", "other")
    assert changed["expect.bytes"] == (28, 8)
    assert changed["provenance.lr"] == (None, 0.5)
    assert list(changed)[-1] == 'sites["b"].members.up'
    assert len(changed) == 4
    assert not found.same
    assert not found.same_decisions
    assert json.loads(json.dumps(found.as_json()))["axes"][0]["shared"] == [{"base": "b", "units": "2", "base_units": "4"}]


def test_the_order_of_sites_is_a_difference_but_no_decision() -> None:
    document = document_of(table_of(ffn("a", 6), ffn("b", 6)))
    turned = {**document, "sites": {n: document["sites"][n] for n in ("b", "a")}}
    found = diff_plans(plan_of(document), plan_of(turned))
    assert found.same_decisions
    assert found.values == (Change("sites", ["a", "b"], ["b", "a"]),)


def test_a_site_that_one_plan_leaves_out_counts_as_kept() -> None:
    document = document_of(table_of(ffn("a", 6), ffn("b", 6)))
    document["sites"]["a"]["axes"]["hidden"]["keep"] = "1-5"
    without = {**document, "sites": {"b": document["sites"]["b"]}}
    found = diff_plans(plan_of(document), plan_of(without))
    assert found.removed == ("a",)
    assert found.axes == (AxisDiff("a", "hidden", "", "0", (), ()),)
