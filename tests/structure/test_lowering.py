"""Lowering alone: tables and plans made here, checked by naive rules written apart from the code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inarch.structure.cost import DEFAULT_COST, CostTable, Limits
from inarch.structure.errors import LoweringError
from inarch.structure.lowered import LoweredPlan, ResolvedAxis, ResolvedPlan
from inarch.structure.lowering import lower, planned_parameters
from inarch.structure.sites import Member, Site, SiteTable

# ------------------------------------------------------------------ tables


def ffn(name: str, hidden: int, width: int = 8, *, gated: bool = False, frozen: bool = False, up: str | None = None) -> Site:
    members = [
        Member("up", up or f"{name}.up", 1, 0, (width, hidden), (("hidden", hidden),)),
        Member("up_bias", f"{name}.up_bias", 0, 0, (hidden,), (("hidden", hidden),)),
        Member("down", f"{name}.down", 0, 0, (hidden, width), (("hidden", hidden),)),
    ]
    if gated:
        members.append(Member("gate", f"{name}.gate", 0, 0, (hidden, width), (("hidden", hidden),), transposed=True))
    return Site(name, "ffn", {m.role: m for m in members}, {"hidden": hidden}, frozen={"hidden": "an operator"} if frozen else {})


def msa(
    name: str,
    heads: int,
    qk: int,
    vo: int | None = None,
    width: int = 8,
    *,
    group: int = 1,
    rotary: bool = False,
    second: bool = False,
    rider: str = "",
    frozen: Sequence[str] = (),
) -> Site:
    vo = qk if vo is None else vo
    pair = (("pair", 2),) if rotary else ()
    times = 2 if rotary else 1

    def rows(role: str, factors: tuple[tuple[str, int], ...]) -> Member:
        size = int(np.prod([n for _, n in factors]))
        return Member(role, f"{name}.{role}", 0, 0, (size, width), factors, transposed=True)

    many = (("group", group),) if group > 1 else ()
    members = [
        rows("q", (("head", heads), *many, *pair, ("qk", qk))),
        rows("k", (("head", heads), *pair, ("qk", qk))),
        rows("v", (("head", heads), ("vo", vo))),
        Member("o", f"{name}.o", 0, 0, (heads * group * vo, width), (("head", heads), *many, ("vo", vo))),
        Member("q_bias", f"{name}.q_bias", 0, 0, (heads * group * times * qk,), (("head", heads), *many, *pair, ("qk", qk))),
        Member("v_bias", f"{name}.v_bias", 0, 0, (heads * vo,), (("head", heads), ("vo", vo))),
    ]
    sizes = {"head": heads, "qk": qk, "vo": vo}
    if second:
        sizes["vo2"] = vo
        members.append(rows("v2", (("head", heads), ("vo2", vo))))
        members.append(Member("o2", f"{name}.o2", 0, 0, (heads * vo, width), (("head", heads), ("vo2", vo))))
    if "head" in rider:
        members.append(Member("rider:bias", f"{name}.bias", 1, 0, (5, heads), (("head", heads),)))
    if "inside" in rider:
        members.append(Member("rider:scale", f"{name}.scale", 0, 0, (qk,), (("qk", qk),)))
    uniform = frozenset({"qk"}) if rotary else frozenset[str]()
    return Site(name, "msa", {m.role: m for m in members}, sizes, dict.fromkeys(frozen, "an operator"), uniform=uniform)


def table_of(*sites: Site, around: int = 1000) -> SiteTable:
    """A table whose parameters are every distinct parameter once, and some around."""
    shapes = {m.param: m.shape for site in sites for m in site.members.values()}
    total = around + sum(int(np.prod(shape)) for shape in shapes.values())
    return SiteTable(sites, (), total, 4 * total)


class Draft:
    """A resolved plan in the making; sharing is followed to the root at once, so share with bases that are done."""

    def __init__(self, table: SiteTable) -> None:
        self.table = table
        self.pruned: dict[tuple[str, str], np.ndarray] = {}
        self.root: dict[tuple[str, str], np.ndarray] = {}
        self.names = tuple(site.name for site in table.sites)
        for number, site in enumerate(table.sites):
            for axis in units_of(site):
                size = site.axes[axis].size
                self.pruned[site.name, axis] = np.zeros(size, bool)
                self.root[site.name, axis] = np.stack([np.full(size, number), np.arange(size)], axis=1)

    def prune(self, site: str, axis: str, units: Iterable[int]) -> Draft:
        units = np.asarray(list(units), int)
        self.pruned[site, axis][units] = True
        self.root[site, axis][units] = np.stack([np.full(len(units), self.names.index(site)), units], axis=1)
        return self

    def share(self, site: str, axis: str, units: Iterable[int], base: str, base_units: Iterable[int]) -> Draft:
        self.root[site, axis][list(units)] = self.root[base, axis][list(base_units)]
        return self

    def heads(self, site: str, keep: Iterable[int]) -> Draft:
        """Prune every head but these."""
        one = self.table[site]
        gone = sorted(set(range(one.heads)) - set(keep))
        for axis in units_of(one):
            size = one.axes[axis].per_head
            self.prune(site, axis, [h * size + j for h in gone for j in range(size)])
        return self

    def resolved(self) -> ResolvedPlan:
        axes: dict[str, dict[str, ResolvedAxis]] = {name: {} for name in self.names}
        for (site, axis), pruned in self.pruned.items():
            root = self.root[site, axis].astype(np.int64)
            axes[site][axis] = ResolvedAxis(pruned, root[:, 0].copy(), root[:, 1].copy())
        return ResolvedPlan(self.names, axes)

    def lower(self, cost: CostTable = DEFAULT_COST, prefer: str | None = None) -> LoweredPlan:
        return check(self.table, self.resolved(), lower(self.table, self.resolved(), cost, prefer), cost.limits(prefer))


def units_of(site: Site) -> list[str]:
    return [axis for axis in site.axes if axis != "head"]


def limits(multiple: int = 1, least: int = 1, most: int = 4, rounding: float = 0.125) -> CostTable:
    one = Limits(multiple=multiple, rounding=rounding, min_segment=least, max_segments=most)
    return DEFAULT_COST.model_copy(update={"balanced": one})


LOOSE = limits()


# ------------------------------------------------------------ naive rules


def living_heads(site: Site, resolved: ResolvedPlan) -> set[int]:
    if site.kind == "ffn":
        return set() if resolved.axes[site.name]["hidden"].pruned.all() else {0}
    alive = set(range(site.heads)) if "head" in site.frozen else set()
    for h in range(site.heads):
        for axis in ("vo", "vo2"):
            if axis in site.axes:
                size = site.axes[axis].per_head
                if any(not resolved.axes[site.name][axis].pruned[h * size + j] for j in range(size)):
                    alive.add(h)
    return alive


def wanted(site: Site, axis: str, resolved: ResolvedPlan) -> set[int]:
    size = site.axes[axis].per_head
    pruned = resolved.axes[site.name][axis].pruned
    return {h * size + j for h in living_heads(site, resolved) for j in range(size) if not pruned[h * size + j]}


def naive_planned(table: SiteTable, resolved: ResolvedPlan) -> int:
    """Every number of every parameter, one by one: what the plan counts is a set of (parameter, place on the axis)."""
    total = table.parameters
    for counted in (False, True):
        places: set[tuple[str, int]] = set()
        widths: dict[str, int] = {}
        for number, site in enumerate(table.sites):
            alive = living_heads(site, resolved)
            for member in site.members.values():
                widths[member.param] = member.width
                keep = None
                for axis in units_of(site):
                    if not member.has(axis):
                        if any(name == axis for name, _ in member.factors):
                            size = site.axes[axis].per_head
                            keep = [member.start + j for j in {u % size for u in wanted(site, axis, resolved)}]
                        continue
                    if member.is_matrix:
                        units = {
                            int(resolved.axes[other.name][axis].root_unit[u])
                            for other in table.sites
                            if axis in other.axes
                            for u in wanted(other, axis, resolved)
                            if resolved.axes[other.name][axis].root_site[u] == number
                        }
                    else:
                        units = wanted(site, axis, resolved)
                    keep = [int(p) for u in units for p in member.index(axis)[u]]
                if keep is None:
                    keep = [int(p) for h in alive for p in member.index("head")[h]]
                if not counted:
                    keep = member.positions.tolist()
                places |= {(member.param, p) for p in keep}
        inside = sum(widths[param] for param, _ in places)
        total += inside if counted else -inside
    return total


def naive_stored(table: SiteTable, lowered: LoweredPlan) -> int:
    """Sum the blocks."""
    shapes = {m.param: m.shape for site in table.sites for m in site.members.values()}
    total = table.parameters - sum(int(np.prod(shape)) for shape in shapes.values())
    total += sum(
        s.width * sum(m.size // axis.size * m.width for m in site.on(s.axis) if m.is_matrix)
        for s in lowered.segments
        for site in [table[next(iter(s.readers))]]
        for axis in [site.axes[s.axis]]
    )
    whole: set[str] = set()
    for site, low in zip(table.sites, lowered.sites, strict=True):
        for member in site.members.values():
            if not low.touched:
                whole.add(member.param)
                continue
            for group in low.groups:
                for axis, blocks in group.blocks.items():
                    for block in blocks:
                        if member.has(axis) and not (member.is_matrix and block.segment):
                            total += block.units.size * member.size // site.axes[axis].size * member.width
                        elif not member.has(axis) and any(name == axis for name, _ in member.factors):
                            total += block.units.shape[1] * member.width
                if [name for name, _ in member.factors] == ["head"]:
                    total += len(group.heads) * member.width
    return total + sum(int(np.prod(shapes[param])) for param in whole)


def check(table: SiteTable, resolved: ResolvedPlan, lowered: LoweredPlan, limit: Limits) -> LoweredPlan:
    """Everything that must hold of any lowering."""
    assert [site.name for site in lowered.sites] == [site.name for site in table.sites]
    segments = {segment.id: segment for segment in lowered.segments}
    assert len(segments) == len(lowered.segments)
    seen: Counter[tuple[str, str]] = Counter()
    for site, low in zip(table.sites, lowered.sites, strict=True):
        alive = living_heads(site, resolved)
        fixed = "head" in site.frozen
        stored_heads = [h for group in low.groups for h in group.heads]
        assert len(set(stored_heads)) == len(stored_heads)
        frozen_ffn = site.kind == "ffn" and "hidden" in site.frozen
        assert set(stored_heads) == (set(range(site.heads)) if fixed or frozen_ffn else alive)
        if fixed:
            assert [group.heads for group in low.groups] == [tuple(range(site.heads))]
        for axis in units_of(site):
            size = site.axes[axis].per_head
            stored: Counter[int] = Counter()
            for group in low.groups:
                assert list(group.blocks) == units_of(site)
                assert group.blocks[axis]
                kept = np.concatenate([block.units for block in group.blocks[axis]], axis=1)
                for block in group.blocks[axis]:
                    assert block.units.shape[0] == len(group.heads)
                    assert block.units.shape[1] > 0
                    assert (block.units // size == np.array(group.heads)[:, None]).all()
                    stored.update(block.units.ravel().tolist())
                    if block.segment is not None:
                        seen[block.segment, site.name] += 1
                        assert segments[block.segment].axis == axis
                        assert block.units.ravel().tolist() == segments[block.segment].readers[site.name].tolist()
                if site.kind == "msa" and (
                    axis in site.uniform or any(m.factors == ((axis, size),) for m in site.members.values())
                ):
                    for block in group.blocks[axis]:
                        assert (block.units % size == block.units[0] % size).all()
                        assert (np.diff(block.units[0]) > 0).all()
                if site.axes[axis].frozen is not None:
                    assert len(group.blocks[axis]) == 1
                    assert kept.tolist() == [[h * size + j for j in range(size)] for h in group.heads]
            want = wanted(site, axis, resolved)
            assert want <= set(stored)
            assert max(stored.values(), default=1) == 1
            assert sum(len(group.blocks[axis]) for group in low.groups) <= limit.max_segments
        own = all(
            not axis.pruned.any() and (axis.root_site == i).all() and (axis.root_unit == np.arange(len(axis.root_unit))).all()
            for i in [table.sites.index(site)]
            for axis in resolved.axes[site.name].values()
        )
        assert low.touched == (low.shared or not own)
        if not low.touched:
            assert [group.heads for group in low.groups] == [tuple(range(site.heads))]
            for axis in units_of(site):
                assert [block.units.ravel().tolist() for block in low.groups[0].blocks[axis]] == [
                    list(range(site.axes[axis].size))
                ]
    for segment in lowered.segments:
        assert len(segment.readers) >= 2
        assert all(len(units) == segment.width for units in segment.readers.values())
        assert all(seen[segment.id, reader] == 1 for reader in segment.readers)
        roots = {
            tuple(
                zip(
                    resolved.axes[reader][segment.axis].root_site[units].tolist(),
                    resolved.axes[reader][segment.axis].root_unit[units].tolist(),
                    strict=True,
                )
            )
            for reader, units in segment.readers.items()
        }
        assert len(roots) == 1
        assert all(set(units.tolist()) <= wanted(table[r], segment.axis, resolved) for r, units in segment.readers.items())
    assert lowered.parameters == table.parameters
    assert lowered.planned == naive_planned(table, resolved) == planned_parameters(table, resolved)
    assert lowered.stored == naive_stored(table, lowered)
    assert lowered.stored >= lowered.planned
    assert lowered.stored - lowered.planned == sum(entry.parameters for entry in lowered.legalised)
    assert all(entry.parameters > 0 and entry.units >= 0 for entry in lowered.legalised)
    return lowered


def shapes(lowered: LoweredPlan, site: str, axis: str) -> list[list[tuple[int, int, bool]]]:
    """Per group, its blocks as (heads, units a head, shared)."""
    one = next(low for low in lowered.sites if low.name == site)
    return [[(*block.units.shape, block.segment is not None) for block in group.blocks[axis]] for group in one.groups]


def reasons(lowered: LoweredPlan) -> dict[str, int]:
    total: Counter[str] = Counter()
    for entry in lowered.legalised:
        total[entry.reason] += entry.parameters
    return dict(total)


# ------------------------------------------------------------------ fuzz


def random_table(rng: np.random.Generator) -> SiteTable:
    sites: list[Site] = []
    kinds = ["ffn", "gated", "msa", "differ", "gqa", "rotary", "bi", "mixed"]
    kind = kinds[int(rng.integers(len(kinds)))]
    hidden = int(rng.choice([4, 9, 16, 40]))
    heads, size = [(1, 4), (2, 4), (3, 6), (4, 8), (5, 3)][int(rng.integers(5))]
    for n in range(int(rng.integers(2, 6))):
        frozen = [f for f in ("head", "qk", "vo") if rng.random() < 0.06]
        rider = ["", "", "head", "inside", "head inside"][int(rng.integers(5))]
        one = kind if kind != "mixed" else kinds[int(rng.integers(len(kinds) - 1))]
        if one in ("ffn", "gated"):
            extra = int(rng.choice([0, 0, 8]))
            tied = "tied.up" if rng.random() < 0.1 else None
            sites.append(
                ffn(f"s{n}", hidden + (0 if tied else extra), gated=one == "gated", frozen=bool(rng.random() < 0.06), up=tied)
            )
        elif one == "differ":
            h, d = [(heads, size * 2), (heads * 2, size), (heads * 4, size), (max(1, heads * 2 // 3), size * 3)][
                int(rng.integers(4))
            ]
            sites.append(msa(f"s{n}", h, d, frozen=frozen, rider=rider.replace("inside", "")))
        elif one == "bi":
            sites.append(msa(f"s{n}", heads, size, second=True, frozen=frozen))
        else:
            sites.append(
                msa(
                    f"s{n}",
                    heads,
                    size,
                    int(rng.choice([size, size + 2])),
                    group=2 if one == "gqa" else 1,
                    rotary=one == "rotary",
                    frozen=frozen,
                    rider=rider,
                )
            )
    return table_of(*sites)


def prune_randomly(draft: Draft, rng: np.random.Generator) -> None:
    for site in draft.table.sites:
        style = rng.choice(
            ["none", "units", "counts", "heads", "prefix", "all", "axis"], p=[0.3, 0.15, 0.2, 0.15, 0.1, 0.02, 0.08]
        )
        if style == "heads":
            draft.heads(site.name, np.flatnonzero(rng.random(site.heads) < 0.6).tolist())
        for axis in units_of(site):
            size = site.axes[axis].per_head
            every = np.arange(site.axes[axis].size)
            if style == "units":
                draft.prune(site.name, axis, every[rng.random(len(every)) < rng.choice([0.1, 0.5, 0.9])])
            elif style == "counts":
                gone = int(rng.integers(0, size + 1))
                for h in range(site.heads):
                    draft.prune(site.name, axis, h * size + rng.permutation(size)[:gone])
            elif style == "prefix":
                draft.prune(site.name, axis, every[int(rng.integers(0, len(every) + 1)) :])
            elif style == "all" or (style == "axis" and rng.random() < 0.4):
                draft.prune(site.name, axis, every)


def lengths(site: Site, axis: str) -> dict[str, int]:
    return {m.role: m.size // site.axes[axis].size * m.width for m in site.on(axis) if m.is_matrix}


def share_randomly(draft: Draft, rng: np.random.Generator) -> None:
    sites = draft.table.sites
    nested = bool(rng.random() < 0.4)
    orders: dict[tuple[str, str], np.ndarray] = {}
    for n, reader in enumerate(sites):
        if not n or rng.random() < 0.15:
            continue
        base = sites[0 if nested else int(rng.integers(n))]
        if base.kind != reader.kind:
            continue
        style = rng.choice(["whole", "heads", "inside", "random", "prefix"])
        heads = rng.permutation(base.heads) if style == "heads" else np.arange(base.heads)
        fraction = rng.random()
        for axis in units_of(reader):
            if axis not in base.axes or lengths(base, axis) != lengths(reader, axis):
                continue
            a, b = base.axes[axis], reader.axes[axis]
            count = min(a.size, b.size)
            units, base_units = np.arange(count), np.arange(count)
            if nested:
                order = orders.setdefault((base.name, axis), rng.permutation(a.size) if style != "whole" else np.arange(a.size))
                order = order[order < b.size][: int(fraction * count) + 1]
                units, base_units = order, order
            elif style == "heads" and a.per_head == b.per_head and a.heads == b.heads:
                base_units = (heads[:, None] * a.per_head + np.arange(a.per_head)).ravel()
                some = rng.random(a.heads) < fraction
                units, base_units = units[np.repeat(some, a.per_head)], base_units[np.repeat(some, a.per_head)]
            elif style == "inside" and a.per_head == b.per_head and a.heads == b.heads:
                each = [rng.permutation(a.per_head)[: int(fraction * a.per_head) + 1] for _ in range(a.heads)]
                base_units = np.concatenate([h * a.per_head + one for h, one in enumerate(each)])
                units = np.concatenate([h * a.per_head + rng.permutation(a.per_head)[: len(one)] for h, one in enumerate(each)])
            elif style == "random":
                base_units = rng.permutation(a.size)[:count]
                some = rng.random(count) < fraction
                units, base_units = units[some], base_units[some]
            elif style == "prefix":
                units, base_units = units[: int(fraction * count) + 1], base_units[: int(fraction * count) + 1]
            good = ~draft.pruned[reader.name, axis][units] & ~draft.pruned[base.name, axis][base_units]
            draft.share(reader.name, axis, units[good].tolist(), base.name, base_units[good].tolist())


COSTS = [LOOSE, limits(4, 4, 3), limits(16, 8, 4), limits(8, 1, 2), limits(1, 1, 1), DEFAULT_COST]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32 - 1), cost=st.sampled_from(COSTS))
def test_any_plan_is_lowered_to_what_it_asks(seed: int, cost: CostTable) -> None:
    rng = np.random.default_rng(seed)
    draft = Draft(random_table(rng))
    prune_randomly(draft, rng)
    share_randomly(draft, rng)
    draft.lower(cost)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_identity_plan_touches_nothing(seed: int) -> None:
    table = random_table(np.random.default_rng(seed))
    lowered = Draft(table).lower()
    assert not any(site.touched for site in lowered.sites)
    assert lowered.stored == lowered.planned == lowered.parameters == table.parameters
    assert lowered.segments == ()
    assert lowered.legalised == ()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), cost=st.sampled_from(COSTS))
def test_lowering_is_deterministic_and_leaves_its_input_alone(seed: int, cost: CostTable) -> None:
    rng = np.random.default_rng(seed)
    draft = Draft(random_table(rng))
    prune_randomly(draft, rng)
    share_randomly(draft, rng)
    resolved = draft.resolved()
    before = {k: (v.pruned.copy(), v.root_site.copy(), v.root_unit.copy()) for s in resolved.axes.values() for k, v in s.items()}
    first, second = lower(draft.table, resolved, cost), lower(draft.table, resolved, cost)
    assert first.legalised == second.legalised
    assert [s.id for s in first.segments] == [s.id for s in second.segments]
    for one, two in zip(first.segments, second.segments, strict=True):
        assert {k: v.tolist() for k, v in one.readers.items()} == {k: v.tolist() for k, v in two.readers.items()}
    after = {k: (v.pruned, v.root_site, v.root_unit) for s in resolved.axes.values() for k, v in s.items()}
    assert all((a == b).all() for k in before for a, b in zip(before[k], after[k], strict=True))


# --------------------------------------------------------------- pruning


def test_pruned_ffn_units_are_left_out_in_natural_order() -> None:
    lowered = Draft(table_of(ffn("a", 64))).prune("a", "hidden", range(1, 64, 2)).lower()
    (block,) = lowered.sites[0].groups[0].blocks["hidden"]
    assert block.units.tolist() == [list(range(0, 64, 2))]
    assert lowered.stored == lowered.planned == lowered.parameters - 32 * 17


def test_a_width_is_brought_to_a_multiple_with_the_first_pruned_units() -> None:
    lowered = Draft(table_of(ffn("a", 64))).prune("a", "hidden", range(30, 64)).lower()
    (block,) = lowered.sites[0].groups[0].blocks["hidden"]
    assert block.units.tolist() == [list(range(32))]
    assert [(e.site, e.axis, e.reason, e.units, e.parameters) for e in lowered.legalised] == [("a", "hidden", "multiple", 2, 34)]


def test_nothing_left_of_an_ffn_or_of_an_msa_leaves_no_groups() -> None:
    draft = Draft(table_of(ffn("a", 8), msa("b", 2, 4))).prune("a", "hidden", range(8)).prune("b", "vo", range(8))
    lowered = draft.lower()
    assert [site.groups for site in lowered.sites] == [(), ()]
    assert all(site.touched for site in lowered.sites)
    assert lowered.stored == 1000


def test_a_head_without_values_goes_with_its_queries_and_keys() -> None:
    lowered = Draft(table_of(msa("a", 4, 16))).prune("a", "vo", range(16, 32)).lower()
    assert [group.heads for group in lowered.sites[0].groups] == [(0, 2, 3)]
    assert lowered.stored == lowered.planned == lowered.parameters - 16 * (4 * 8 + 2)


def test_heads_keep_one_zero_unit_where_all_queries_are_pruned() -> None:
    lowered = Draft(table_of(msa("a", 2, 8))).prune("a", "qk", range(16)).lower(LOOSE)
    assert shapes(lowered, "a", "qk") == [[(2, 1, False)]]
    assert reasons(lowered) == {"zero-unit": 2 * 17}


def test_a_second_value_path_keeps_a_zero_unit_where_only_the_first_lives() -> None:
    lowered = Draft(table_of(msa("a", 2, 8, second=True))).prune("a", "vo2", range(16)).prune("a", "vo", range(8)).lower(LOOSE)
    assert [group.heads for group in lowered.sites[0].groups] == [(1,)]
    assert shapes(lowered, "a", "vo2") == [[(1, 1, False)]]


def test_heads_times_units_are_rounded_not_units() -> None:
    draft = Draft(table_of(msa("a", 8, 32)))
    for axis in ("qk", "vo"):
        draft.prune("a", axis, [h * 32 + j for h in range(8) for j in range(19, 32)])
    assert shapes(draft.lower(), "a", "qk") == [[(8, 20, False)]]


def test_heads_with_unequal_counts_keep_zeros_or_part() -> None:
    table = table_of(msa("a", 4, 8))
    close, apart = Draft(table), Draft(table)
    for axis in ("qk", "vo"):
        close.prune("a", axis, [7])
        apart.prune("a", axis, [*range(1, 8), *range(9, 16)])
    assert shapes(close.lower(limits(least=4)), "a", "qk") == [[(4, 8, False)]]
    assert reasons(close.lower(limits(least=4))) == {"head-counts": 17 + 17}
    assert shapes(apart.lower(limits(least=4)), "a", "qk") == [[(2, 1, False)], [(2, 8, False)]]
    assert shapes(apart.lower(limits(least=4, most=1)), "a", "qk") == [[(4, 8, False)]]


def test_a_group_of_heads_has_to_save_as_much_as_a_segment() -> None:
    draft = Draft(table_of(msa("a", 4, 8)))
    for axis in ("qk", "vo"):
        draft.prune("a", axis, [5, 6, 7])
    assert shapes(draft.lower(limits(least=64)), "a", "qk") == [[(4, 8, False)]]
    assert shapes(draft.lower(limits(least=1)), "a", "qk") == [[(1, 5, False)], [(3, 8, False)]]


# ---------------------------------------------------------------- frozen


def test_frozen_heads_stay_in_one_group_with_zeros() -> None:
    lowered = Draft(table_of(msa("a", 4, 8, frozen=["head"]))).heads("a", [0, 2]).lower(LOOSE)
    assert [group.heads for group in lowered.sites[0].groups] == [(0, 1, 2, 3)]
    assert reasons(lowered) == {"frozen": 2 * 8 * 34}


def test_a_frozen_axis_is_stored_whole_while_heads_may_go() -> None:
    lowered = Draft(table_of(msa("a", 4, 8, frozen=["qk"]))).prune("a", "qk", [1]).heads("a", [0, 1]).lower(LOOSE)
    assert [group.heads for group in lowered.sites[0].groups] == [(0, 1)]
    assert shapes(lowered, "a", "qk") == [[(2, 8, False)]]
    assert reasons(lowered) == {"frozen": 17}


def test_a_frozen_ffn_keeps_its_zeros_even_where_all_is_pruned() -> None:
    lowered = Draft(table_of(ffn("a", 8, frozen=True))).prune("a", "hidden", range(8)).lower()
    assert shapes(lowered, "a", "hidden") == [[(1, 8, False)]]
    assert lowered.stored == lowered.parameters


def test_a_frozen_axis_is_shared_whole_or_not() -> None:
    table = table_of(msa("a", 4, 8), msa("b", 4, 8, frozen=["qk"]))
    whole, part = Draft(table), Draft(table)
    for axis in ("qk", "vo"):
        whole.share("b", axis, range(8, 24), "a", range(8, 24))
        part.share("b", axis, range(8, 12), "a", range(8, 12))
    assert shapes(whole.lower(LOOSE), "b", "qk") == [[(2, 8, True)], [(2, 8, False)]]
    # Only the first half of one head is shared, which the values can be and the frozen queries cannot.
    lowered = part.lower(LOOSE)
    assert shapes(lowered, "b", "qk") == [[(1, 8, False)], [(3, 8, False)]]
    assert shapes(lowered, "b", "vo") == [[(1, 4, True), (1, 4, False)], [(3, 8, False)]]
    assert reasons(lowered) == {"frozen": 4 * 16}


# --------------------------------------------------------------- sharing


def both(draft: Draft, reader: str, units: Iterable[int], base: str, base_units: Iterable[int]) -> Draft:
    units, base_units = list(units), list(base_units)
    return draft.share(reader, "qk", units, base, base_units).share(reader, "vo", units, base, base_units)


def test_a_whole_ffn_is_one_segment_in_natural_order() -> None:
    lowered = Draft(table_of(ffn("a", 40), ffn("b", 40))).share("b", "hidden", range(40), "a", range(40)).lower()
    (segment,) = lowered.segments
    assert {name: units.tolist() for name, units in segment.readers.items()} == {"a": list(range(40)), "b": list(range(40))}
    assert shapes(lowered, "b", "hidden") == [[(1, 40, True)]]
    assert lowered.stored == lowered.planned == lowered.parameters - 40 * 16


def test_a_prefix_of_an_ffn_makes_two_blocks() -> None:
    lowered = Draft(table_of(ffn("a", 128), ffn("b", 128))).share("b", "hidden", range(50), "a", range(50)).lower()
    for site in "ab":
        assert shapes(lowered, site, "hidden") == [[(1, 48, True), (1, 80, False)]]
    assert reasons(lowered) == {"multiple": 2 * 16}


def test_the_reader_follows_the_order_of_the_base() -> None:
    lowered = Draft(table_of(ffn("a", 8), ffn("b", 8))).share("b", "hidden", [7, 0, 3], "a", [1, 5, 2]).lower(LOOSE)
    (segment,) = lowered.segments
    assert {name: units.tolist() for name, units in segment.readers.items()} == {"a": [1, 2, 5], "b": [7, 3, 0]}


def test_chains_share_the_root() -> None:
    draft = Draft(table_of(*(ffn(name, 8) for name in "abc")))
    draft.share("b", "hidden", range(8), "a", range(8)).share("c", "hidden", range(4), "b", range(4, 8))
    lowered = draft.lower(LOOSE)
    assert [(sorted(s.readers), s.width) for s in lowered.segments] == [(["a", "b", "c"], 4), (["a", "b"], 4)]
    assert lowered.stored == lowered.planned


def test_readers_share_what_the_base_has_dropped() -> None:
    """The base's head is dead, though its queries are read: they are stored for the readers alone."""
    draft = Draft(table_of(*(msa(name, 2, 8) for name in "abc"))).prune("a", "vo", range(8))
    for reader in "bc":
        draft.share(reader, "qk", range(8), "a", range(8))
    lowered = draft.lower(LOOSE)
    assert [sorted(s.readers) for s in lowered.segments] == [["b", "c"]]
    assert [group.heads for group in lowered.sites[0].groups] == [(1,)]
    assert lowered.stored == lowered.planned


def test_nested_readers_make_one_segment_each() -> None:
    draft = Draft(table_of(*(ffn(name, 256) for name in "abcd")))
    for name, count in zip("bcd", (192, 128, 64), strict=True):
        draft.share(name, "hidden", range(count), "a", range(count))
    lowered = draft.lower()
    assert shapes(lowered, "a", "hidden") == [[(1, 64, True)] * 3 + [(1, 64, False)]]
    assert lowered.stored == lowered.planned


def test_the_cheapest_segments_go_where_there_are_too_many() -> None:
    draft = Draft(table_of(*(ffn(name, 256) for name in "abcde")))
    for name, count in zip("bcde", (200, 168, 128, 64), strict=True):
        draft.share(name, "hidden", range(count), "a", range(count))
    lowered = draft.lower(limits())
    assert shapes(lowered, "a", "hidden") == [[(1, 64, True), (1, 64, True), (1, 40, True), (1, 88, False)]]
    assert reasons(lowered) == {"segment-limit": 32 * 16}


def test_very_many_reader_sets_still_share() -> None:
    rng = np.random.default_rng(0)
    draft = Draft(table_of(*(ffn(f"s{n}", 1024) for n in range(9))))
    for n in range(1, 9):
        some = np.flatnonzero(rng.random(1024) < 0.5).tolist()
        draft.share(f"s{n}", "hidden", some, "s0", some)
    lowered = draft.lower()
    assert lowered.parameters - lowered.stored >= 0.25 * (lowered.parameters - lowered.planned)


def test_small_segments_are_private_unless_they_are_all_there_is() -> None:
    small = Draft(table_of(ffn("a", 64), ffn("b", 64))).share("b", "hidden", range(16), "a", range(16)).lower()
    assert small.segments == ()
    assert reasons(small) == {"segment-size": 16 * 16}
    assert not small.sites[0].touched
    assert small.sites[1].touched
    tiny = Draft(table_of(ffn("a", 6), ffn("b", 6))).share("b", "hidden", range(6), "a", range(6)).lower()
    assert [segment.width for segment in tiny.segments] == [6]


def test_some_heads_are_shared_in_any_order() -> None:
    draft = Draft(table_of(msa("a", 4, 16), msa("b", 4, 16)))
    both(draft, "b", [*range(48, 64), *range(16)], "a", [*range(16), *range(32, 48)])
    lowered = draft.lower()
    assert [group.heads for group in lowered.sites[0].groups] == [(0, 2), (1, 3)]
    assert [group.heads for group in lowered.sites[1].groups] == [(3, 0), (1, 2)]
    assert lowered.stored == lowered.planned


def test_units_inside_heads_are_shared() -> None:
    draft = Draft(table_of(msa("a", 4, 16), msa("b", 4, 16)))
    units = [h * 16 + j for h in range(4) for j in range(8)]
    both(draft, "b", units, "a", [u + 8 for u in units])
    lowered = draft.lower()
    for site in "ab":
        assert shapes(lowered, site, "qk") == shapes(lowered, site, "vo") == [[(4, 8, True), (4, 8, False)]]
    assert lowered.stored == lowered.planned


def test_heads_that_share_more_are_grouped_apart() -> None:
    draft = Draft(table_of(msa("a", 8, 16), msa("b", 8, 16)))
    units = [h * 16 + j for h in range(8) for j in range(16 if h < 4 else 4)]
    both(draft, "b", units, "a", units)
    lowered = draft.lower(limits(16, 16))
    assert shapes(lowered, "b", "vo") == [[(4, 16, True)], [(4, 4, True), (4, 12, False)]]
    assert lowered.stored == lowered.planned
    assert shapes(draft.lower(limits(16, 16, 2)), "b", "vo") == [[(4, 16, True)], [(4, 16, False)]]


def test_a_unit_shared_across_paired_heads_is_private() -> None:
    draft = Draft(table_of(msa("a", 2, 16), msa("b", 2, 16)))
    both(draft, "b", range(32), "a", [*range(15), 31, *range(16, 31), 15])
    lowered = draft.lower(LOOSE)
    assert shapes(lowered, "b", "vo") == [[(2, 15, True), (2, 1, False)]]
    assert reasons(lowered) == {"pairing": 2 * 2 * 16}


def test_one_root_used_twice_by_a_site_is_stored_twice() -> None:
    draft = Draft(table_of(ffn("a", 8), ffn("b", 8))).share("b", "hidden", range(4), "a", range(4))
    draft.root["b", "hidden"][5] = (0, 0)
    lowered = draft.lower(LOOSE)
    assert [segment.width for segment in lowered.segments] == [4]
    assert reasons(lowered) == {"pairing": 16}


@pytest.mark.parametrize("swap", [False, True])
def test_heads_of_different_sizes_share_whole_matrices(swap: bool) -> None:
    one, two = msa("a", 6, 64), msa("b", 12, 32)
    draft = Draft(table_of(*((two, one) if swap else (one, two))))
    reader, base = ("a", "b") if swap else ("b", "a")
    both(draft, reader, range(384), base, range(384))
    lowered = draft.lower()
    assert [segment.width for segment in lowered.segments] == [384, 384]
    for segment in lowered.segments:
        assert all(units.tolist() == list(range(384)) for units in segment.readers.values())
    assert lowered.stored == lowered.planned


@pytest.mark.parametrize(("heads", "other"), [(4, 3), (6, 4), (2, 6)])
def test_heads_whose_sizes_do_not_divide_share_whole_matrices(heads: int, other: int) -> None:
    draft = Draft(table_of(msa("a", heads, 48 // heads * 4), msa("b", other, 48 // other * 4)))
    both(draft, "b", range(192), "a", range(192))
    lowered = draft.lower()
    assert [segment.width for segment in lowered.segments] == [192, 192]
    assert all(units.tolist() == list(range(192)) for s in lowered.segments for units in s.readers.values())


def test_heads_of_different_sizes_share_parts() -> None:
    """12 x 32 reads the first four heads of 6 x 64, and half of every unit block of the others."""
    draft = Draft(table_of(msa("a", 6, 64), msa("b", 12, 32)))
    both(draft, "b", range(256), "a", range(256))
    rest = [h * 32 + j for h in range(8, 12) for j in range(16)]
    both(draft, "b", rest, "a", rest)
    lowered = draft.lower()
    assert shapes(lowered, "a", "vo") == [[(4, 64, True)], [(2, 32, True), (2, 32, False)]]
    assert shapes(lowered, "b", "vo") == [[(8, 32, True)], [(4, 16, True), (4, 16, False)]]
    assert lowered.stored == lowered.planned


def test_units_that_do_not_fit_heads_of_another_size_are_private() -> None:
    """Half of what a small head takes lies in one large head, half in another."""
    draft = Draft(table_of(msa("a", 2, 8), msa("b", 4, 4)))
    both(draft, "b", range(16), "a", [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15])
    lowered = draft.lower(LOOSE)
    assert 0 < lowered.parameters - lowered.stored < lowered.parameters - lowered.planned


def test_a_layer_chain_keeps_its_own_pairing_beside_a_reader_with_other_heads() -> None:
    """a and b share units in any order inside heads; c, with heads half as large, reads a in order."""
    draft = Draft(table_of(msa("a", 4, 8), msa("b", 4, 8), msa("c", 8, 4)))
    mixed = [h * 8 + j for h in range(4) for j in (3, 7, 0, 5, 1, 6, 2, 4)]
    both(draft, "b", range(32), "a", mixed)
    both(draft, "c", range(32), "a", range(32))
    lowered = draft.lower(LOOSE)
    assert [sorted(s.readers) for s in lowered.segments] == [["a", "b", "c"]] * 2
    assert lowered.stored == lowered.planned


def test_frozen_heads_share_only_all_in_order() -> None:
    table = table_of(msa("a", 4, 8), msa("b", 4, 8, frozen=["head"]))
    whole = both(Draft(table), "b", range(32), "a", range(32)).lower(LOOSE)
    assert shapes(whole, "b", "qk") == [[(4, 8, True)]]
    some = both(Draft(table), "b", range(16), "a", range(16)).lower(LOOSE)
    assert some.segments == ()
    assert set(reasons(some)) == {"frozen"}
    swapped = both(Draft(table), "b", range(32), "a", [*range(16, 32), *range(16)]).lower(LOOSE)
    assert shapes(swapped, "b", "qk") == [[(4, 8, True)]]
    assert swapped.sites[0].groups[0].heads == (2, 3, 0, 1)


# ---------------------------------------------------------------- rotary


def test_rotary_heads_keep_the_same_indices() -> None:
    draft = Draft(table_of(msa("a", 2, 8, rotary=True))).prune("a", "qk", [0, 1, 2, 9, 10, 11])
    lowered = draft.lower(limits(least=32))
    (block,) = lowered.sites[0].groups[0].blocks["qk"]
    assert (block.units % 8).tolist() == [[0, 3, 4, 5, 6, 7]] * 2
    assert reasons(lowered) == {"rotary": 2 * (2 * 2 * 8 + 2)}


def test_rotary_heads_share_the_indices_that_all_share() -> None:
    draft = Draft(table_of(msa("a", 2, 8, rotary=True), msa("b", 2, 8, rotary=True)))
    draft.share("b", "qk", [0, 1, 2, 8, 9, 11], "a", [0, 1, 2, 8, 9, 11])
    lowered = draft.lower(LOOSE)
    (segment,) = lowered.segments
    assert (segment.readers["a"] % 8).tolist() == [0, 1, 0, 1]
    assert reasons(lowered) == {"rotary": 2 * 2 * 2 * 8}


def test_rotary_readers_keep_ascending_order() -> None:
    draft = Draft(table_of(msa("a", 1, 8, rotary=True), msa("b", 1, 8, rotary=True)))
    draft.share("b", "qk", range(8), "a", [0, 1, 5, 2, 3, 4, 6, 7])
    (segment,) = draft.lower(LOOSE).segments
    assert segment.readers["b"].tolist() == [0, 1, 3, 4, 5, 6, 7]


# ------------------------------------------------------------ accounting


def test_an_untouched_tie_counts_once_and_a_fork_is_charged() -> None:
    table = table_of(ffn("a", 32, up="w"), ffn("b", 32, up="w"))
    assert Draft(table).lower().stored == table.parameters
    lowered = Draft(table).prune("a", "hidden", range(16)).lower()
    assert lowered.planned == table.parameters - 16 * (8 + 1)
    assert lowered.stored == lowered.planned + 16 * 8
    assert [(e.site, e.reason, e.parameters) for e in lowered.legalised] == [("a", "tied", 16 * 8)]


def test_riders_on_heads_and_on_in_head_indices_are_counted() -> None:
    table = table_of(msa("a", 4, 8, rider="head inside"))
    lowered = Draft(table).heads("a", [1, 2]).prune("a", "qk", [8, 16]).lower(LOOSE)
    assert lowered.parameters - lowered.stored == 2 * 8 * 34 + 2 * 5 + 2 * 17 + 1
    assert lowered.stored == lowered.planned


def test_preferences_change_what_is_shared() -> None:
    draft = Draft(table_of(ffn("a", 256), ffn("b", 256))).share("b", "hidden", range(65), "a", range(65))
    widths = {prefer: [s.width for s in draft.lower(prefer=prefer).segments] for prefer in (None, "size", "latency")}
    assert widths == {None: [64], "size": [65], "latency": []}


# ---------------------------------------------------------------- refusals


def test_a_plan_for_another_model_is_refused() -> None:
    resolved = Draft(table_of(ffn("a", 8))).resolved()
    with pytest.raises(LoweringError, match="another model"):
        lower(table_of(ffn("b", 8)), resolved)
    with pytest.raises(LoweringError, match="16 units"):
        lower(table_of(ffn("a", 16)), resolved)


def test_units_with_other_vectors_are_refused() -> None:
    draft = Draft(table_of(ffn("a", 8), ffn("b", 8, gated=True))).share("b", "hidden", [0], "a", [0])
    with pytest.raises(LoweringError, match="other lengths"):
        lower(draft.table, draft.resolved())


@pytest.mark.parametrize(
    "broken",
    [
        lambda low: replace(low, stored=low.stored + 1),
        lambda low: replace(low, planned=low.planned - 1),
        lambda low: replace(low, legalised=low.legalised[1:]),
        lambda low: replace(low, segments=()),
        lambda low: replace(low, sites=low.sites[::-1]),
        lambda low: replace(low, sites=(replace(low.sites[0], touched=False), *low.sites[1:])),
        lambda low: replace(low, sites=(replace(low.sites[0], groups=()), *low.sites[1:])),
    ],
)
def test_the_rules_above_notice_what_is_wrong(broken: Callable[[LoweredPlan], LoweredPlan]) -> None:
    draft = Draft(table_of(ffn("a", 64), ffn("b", 64))).share("b", "hidden", range(41), "a", range(41))
    lowered = draft.lower()
    with pytest.raises((AssertionError, KeyError)):
        check(draft.table, draft.resolved(), broken(lowered), DEFAULT_COST.balanced)
