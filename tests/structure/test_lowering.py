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
    return Site(
        name, "ffn", {m.role: m for m in members}, {"hidden": hidden}, frozen={"hidden": "an operator"} if frozen else {}
    )


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
    return Site(name, "msa", {m.role: m for m in members}, sizes, {f: "an operator" for f in frozen}, uniform=uniform)


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
    alive = set()
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
                if site.kind == "msa" and (axis in site.uniform or any(m.factors == ((axis, size),) for m in site.members.values())):
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
        style = rng.choice(["none", "units", "counts", "heads", "prefix", "all", "axis"], p=[0.3, 0.15, 0.2, 0.15, 0.1, 0.02, 0.08])
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


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32 - 1), cost=st.sampled_from(COSTS))
def test_any_plan_is_lowered_to_what_it_asks(seed: int, cost: CostTable) -> None:
    rng = np.random.default_rng(seed)
    draft = Draft(random_table(rng))
    prune_randomly(draft, rng)
    share_randomly(draft, rng)
    draft.lower(cost)
