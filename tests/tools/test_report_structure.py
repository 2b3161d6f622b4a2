"""The sharing map's data: every unit is somewhere, and what is saved adds up."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from inarch.structure.errors import PlanError
from inarch.structure.plan import Plan, dump_plan
from inarch.structure.resolve import AxisDecision, build_plan
from inarch.structure.sites import Member, Site, SiteTable
from inarch.tools.report_structure import MAX_BASES, Segment, structure_of

WIDTH = 16


def ffn(name: str, hidden: int = 64, width: int = WIDTH) -> Site:
    factors = (("hidden", hidden),)
    members = {
        "up": Member("up", f"{name}.up.weight", 1, 0, (width, hidden), factors),
        "up_bias": Member("up_bias", f"{name}.up.bias", 0, 0, (hidden,), factors),
        "down": Member("down", f"{name}.down.weight", 0, 0, (hidden, width), factors),
    }
    return Site(name, "ffn", members, {"hidden": hidden})


def msa(name: str, heads: int = 4, dim: int = 8, width: int = WIDTH) -> Site:
    inner = heads * dim
    qk, vo = (("head", heads), ("qk", dim)), (("head", heads), ("vo", dim))
    members = {
        "q": Member("q", f"{name}.q.weight", 1, 0, (width, inner), qk),
        "k": Member("k", f"{name}.k.weight", 1, 0, (width, inner), qk),
        "v": Member("v", f"{name}.v.weight", 1, 0, (width, inner), vo),
        "o": Member("o", f"{name}.o.weight", 0, 0, (inner, width), vo),
    }
    return Site(name, "msa", members, {"head": heads, "qk": dim, "vo": dim})


def table_of(*sites: Site) -> SiteTable:
    inside = sum(site.parameters for site in sites)
    return SiteTable(sites, (), inside + 1000, 4 * (inside + 1000))


def plan_of(table: SiteTable, decisions: Mapping[str, Mapping[str, AxisDecision]]) -> Plan:
    return build_plan(table, decisions, "made", {})


def fates(segments: tuple[Segment, ...]) -> list[tuple[str, int, str | None]]:
    return [(segment.fate, segment.units, segment.base) for segment in segments]


TEXT, NEXT, VISION = "text.layer.0.ffn", "text.layer.1.ffn", "vision.layer.0.ffn"
FFNS = table_of(ffn(TEXT), ffn(NEXT), ffn(VISION))
SHARED = plan_of(
    FFNS,
    {
        VISION: {"hidden": AxisDecision(np.arange(40), [(TEXT, np.arange(24), np.arange(24))])},
        NEXT: {"hidden": AxisDecision(None, [(TEXT, np.arange(16), np.arange(16))])},
    },
)


def test_every_unit_has_one_fate() -> None:
    found = structure_of(SHARED, FFNS)
    text, other, vision = (site.lanes[0].segments for site in found.sites)
    assert fates(text) == [("base", 16, None), ("base", 8, None), ("private", 40, None)]
    assert [segment.readers for segment in text] == [(NEXT, VISION), (VISION,), ()]
    assert fates(other) == [("layer", 16, TEXT), ("private", 48, None)]
    assert fates(vision) == [("cross", 24, TEXT), ("private", 16, None), ("pruned", 24, None)]
    assert [site.modality for site in found.sites] == ["text", "text", "vision"]
    assert all(site.shares for site in found.sites)


def test_what_is_saved_is_what_the_plan_counts_less() -> None:
    found = structure_of(SHARED, FFNS)
    assert found.saved == {"pruned": 24 * (2 * WIDTH + 1), "cross": 24 * 2 * WIDTH, "layer": 16 * 2 * WIDTH}
    assert found.dense is not None
    assert found.planned == found.dense - sum(found.saved.values())
    assert [site.planned for site in found.sites] == [
        64 * (2 * WIDTH + 1),
        48 * 2 * WIDTH + 64,
        16 * 2 * WIDTH + 40,
    ]


def test_a_plan_alone_says_the_same_in_units() -> None:
    with_model, alone = structure_of(SHARED, FFNS), structure_of(SHARED)
    for one, other in zip(with_model.sites, alone.sites, strict=True):
        assert one.name == other.name
        assert [fates(lane.segments) for lane in one.lanes] == [fates(lane.segments) for lane in other.lanes]
    assert alone.dense is None
    assert alone.saved == {}
    assert alone.planned == with_model.planned  # the plan's own expectation
    assert {segment.parameters for site in alone.sites for lane in site.lanes for segment in lane.segments} == {None}


def test_a_chain_is_followed_to_its_root() -> None:
    units = np.arange(8)
    chain = {NEXT: TEXT, VISION: NEXT}
    plan = plan_of(FFNS, {name: {"hidden": AxisDecision(None, [(of, units, units)])} for name, of in chain.items()})
    text, other, vision = (site.lanes[0].segments for site in structure_of(plan, FFNS).sites)
    assert fates(vision)[0] == ("cross", 8, TEXT)
    assert fates(other)[0] == ("layer", 8, TEXT)
    assert text[0].readers == (NEXT, VISION)


def test_units_of_a_dead_head_are_gone_with_it() -> None:
    table = table_of(msa("text.layer.0.attention"))
    plan = plan_of(table, {"text.layer.0.attention": {"vo": AxisDecision(np.arange(8, 32))}})
    (site,) = structure_of(plan, table).sites
    assert {lane.axis: fates(lane.segments) for lane in site.lanes} == {
        "qk": [("private", 24, None), ("pruned", 8, None)],
        "vo": [("private", 24, None), ("pruned", 8, None)],
    }
    assert site.planned == site.dense * 3 // 4 if site.dense else False


def test_many_reader_sets_are_few_segments() -> None:
    readers = [f"vision.layer.{n}.ffn" for n in range(5)]
    table = table_of(ffn(TEXT), *(ffn(name) for name in readers))
    rng = np.random.default_rng(0)
    decisions = {}
    for name in readers:
        units = np.sort(rng.permutation(64)[:32])
        decisions[name] = {"hidden": AxisDecision(None, [(TEXT, units, units)])}
    base = structure_of(plan_of(table, decisions), table).sites[0].lanes[0]
    assert sum(segment.fate == "base" for segment in base.segments) == MAX_BASES + 1
    assert sum(segment.units for segment in base.segments) == 64
    assert set(base.segments[MAX_BASES].readers) == set(readers)


def test_a_plan_for_another_model_is_refused() -> None:
    with pytest.raises(PlanError):
        structure_of(SHARED, table_of(ffn(TEXT), ffn(NEXT), ffn(VISION, hidden=32)))


def large_table(layers: int = 24, width: int = 1024) -> SiteTable:
    """Two towers of 24 layers, 1,024 wide: 604 M parameters in sites."""
    sites = []
    for tower in ("text", "vision"):
        for layer in range(layers):
            sites.append(msa(f"{tower}.layer.{layer}.attention", heads=16, dim=64, width=width))
            sites.append(ffn(f"{tower}.layer.{layer}.ffn", hidden=4 * width, width=width))
    return table_of(*sites)


def large_plan(table: SiteTable) -> Plan:
    """Scattered pruning, and sharing without any order, everywhere."""
    rng = np.random.default_rng(0)
    decisions: dict[str, dict[str, AxisDecision]] = {}
    for site in table.sites:
        base = site.name.replace("vision", "text")
        if site.kind == "ffn" and base != site.name:
            size = site.axes["hidden"].size
            keep, taken = rng.permutation(size)[: size // 2], rng.permutation(size)[: size // 4]
            decisions[site.name] = {"hidden": AxisDecision(keep, [(base, np.sort(keep)[: size // 4], taken)])}
    return plan_of(table, decisions)


def test_a_plan_of_a_large_model_is_some_hundred_segments() -> None:
    table = large_table()
    assert table.parameters > 400e6
    plan = large_plan(table)
    assert len(dump_plan(plan)) > 300_000  # thousands of scattered ranges
    found = structure_of(plan, table)
    segments = [segment for site in found.sites for lane in site.lanes for segment in lane.segments]
    assert len(found.sites) == len(table.sites)
    assert len(segments) < 500
