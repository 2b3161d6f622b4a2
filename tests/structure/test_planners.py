"""Planners on synthetic sites and weights: what they keep, that the lowering stores it, and what they find."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from inarch.structure.errors import InarchError
from inarch.structure.lowered import LoweredPlan, ResolvedPlan
from inarch.structure.lowering import lower
from inarch.structure.plan import dump_plan, lint_plan
from inarch.structure.planners import METHODS, OptionError, PlanResult, UnreachableError, make_plan
from inarch.structure.planners.budget import Draft, Rules, spend
from inarch.structure.planners.magnitude import weakest
from inarch.structure.planners.matching import match_units
from inarch.structure.planners.weights import energies, rows, tied_sites
from inarch.structure.resolve import lint_against, resolve
from inarch.structure.sites import Member, Site, SiteTable

WIDTH = 48
Weights = dict[str, npt.NDArray[np.float32]]


def ffn(name: str, hidden: int = 256, width: int = WIDTH, gated: bool = False) -> Site:
    factors = (("hidden", hidden),)
    members = {"up": Member("up", f"{name}.up", 0, 0, (hidden, width), factors, True)}
    if gated:
        members["gate"] = Member("gate", f"{name}.gate", 0, 0, (hidden, width), factors, True)
    members["up_bias"] = Member("up_bias", f"{name}.up_bias", 0, 0, (hidden,), factors)
    members["down"] = Member("down", f"{name}.down", 0, 0, (hidden, width), factors, False)
    return Site(name, "ffn", members, {"hidden": hidden})


def msa(
    name: str,
    heads: int = 8,
    per_head: int = 32,
    width: int = WIDTH,
    frozen: dict[str, str] | None = None,
    uniform: frozenset[str] = frozenset(),
    rider: bool = False,
    group: int = 1,
) -> Site:
    """An MSA with packed q, k, v; ``group`` query heads a key head."""
    n = heads * per_head
    query = (("head", heads), ("group", group), ("qk", per_head)) if group > 1 else (("head", heads), ("qk", per_head))
    key, value = (("head", heads), ("qk", per_head)), (("head", heads), ("vo", per_head))
    out = (("head", heads), ("group", group), ("vo", per_head)) if group > 1 else value
    rows_ = (group + 2) * n
    members: dict[str, Member] = {}
    start = 0
    for role, factors, size in (("q", query, group * n), ("k", key, n), ("v", value, n)):
        members[role] = Member(role, f"{name}.qkv", 0, start, (rows_, width), factors, True)
        members[f"{role}_bias"] = Member(f"{role}_bias", f"{name}.qkv_bias", 0, start, (rows_,), factors)
        start += size
    members["o"] = Member("o", f"{name}.o", 1, 0, (width, group * n), out, True)
    if rider:
        members["rider:bias"] = Member("rider:bias", f"{name}.table", 1, 0, (49, heads), (("head", heads),))
    sizes = {"head": heads, "qk": per_head, "vo": per_head}
    return Site(name, "msa", members, sizes, frozen or {}, uniform=uniform)


def model(sites: Sequence[Site], rest: int = 0, seed: int = 0) -> tuple[SiteTable, Weights]:
    """A table of sites with random weights, and ``rest`` parameters that belong to none."""
    generator = np.random.default_rng(seed)
    weights: Weights = {}
    for site in sites:
        for member in site.members.values():
            if member.param not in weights:
                weights[member.param] = generator.standard_normal(member.shape).astype(np.float32)
    parameters = sum(w.size for w in weights.values()) + rest
    return SiteTable(tuple(sites), (), parameters, 4 * parameters), weights


def towers(layers: int = 4) -> list[Site]:
    return [site for t in ("text", "vision") for i in range(layers) for site in (msa(f"{t}.{i}.attn"), ffn(f"{t}.{i}.ffn"))]


@dataclass(frozen=True)
class Options:
    keep: float = 0.5
    method: str = "similarity"
    minimum: float = 0.125
    share_fraction: float = 0.5
    block: int | None = None
    prefer: str | None = None


def run(table: SiteTable, weights: Mapping[str, npt.NDArray[np.generic]], options: Options) -> PlanResult:
    return make_plan(table, weights.__getitem__, name="test", **asdict(options))


def lowered(result: PlanResult, table: SiteTable) -> tuple[ResolvedPlan, LoweredPlan]:
    assert lint_plan(result.plan) == []
    assert lint_against(result.plan, table) == []
    resolved = resolve(result.plan, table)
    return resolved, lower(table, resolved)


def readers_by_root(resolved: ResolvedPlan) -> dict[tuple[str, str], dict[str, set[int]]]:
    """(base, axis) -> reader -> the base units that it reads."""
    found: dict[tuple[str, str], dict[str, set[int]]] = {}
    for number, name in enumerate(resolved.names):
        for axis, decided in resolved.axes[name].items():
            for unit in np.flatnonzero((decided.root_site != number) & ~decided.pruned):
                base = resolved.names[int(decided.root_site[unit])]
                found.setdefault((base, axis), {}).setdefault(name, set()).add(int(decided.root_unit[unit]))
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("keep", [0.9, 0.65, 0.4])
def test_stores_what_was_asked_for(method: str, keep: float) -> None:
    table, weights = model(towers(), rest=20_000)
    result = run(table, weights, Options(keep, method))
    resolved, plan = lowered(result, table)
    assert abs(plan.stored / table.parameters - keep) <= 0.01
    assert abs(plan.stored - plan.planned) <= 0.01 * plan.planned
    assert result.stored == plan.stored
    assert result.planned == plan.planned
    assert result.plan.expect is not None
    assert result.plan.expect.parameters == plan.planned
    assert result.kept_model == pytest.approx(plan.stored / table.parameters)
    own = sum(site.parameters for site in table.sites)
    assert result.kept_sites == pytest.approx(1 - (table.parameters - plan.stored) / own)
    assert result.kept_sites < result.kept_model
    for name in resolved.names:
        for axis in resolved.axes[name].values():
            kept = (~axis.pruned).reshape(table[name].heads, -1).sum(axis=1)
            assert set(kept[kept > 0]) == {kept.max()}, "one count a head"
            assert kept.sum() % 16 == 0
            assert kept.sum() >= 0.125 * axis.pruned.size


@pytest.mark.parametrize("method", METHODS)
def test_keeping_everything_changes_nothing(method: str) -> None:
    table, weights = model(towers(2))
    result = run(table, weights, Options(1.0, method))
    _, plan = lowered(result, table)
    assert result.kept_model == result.kept_sites == 1.0
    assert not any(site.touched for site in plan.sites)


def test_fractions_may_be_numpys() -> None:
    table, weights = model(towers(2))
    keep: Any = np.float32(0.75)
    assert run(table, weights, Options(keep)).plan == run(table, weights, Options(0.75)).plan


@pytest.mark.parametrize("method", METHODS)
def test_same_input_same_plan(method: str) -> None:
    table, weights = model(towers(2))
    assert dump_plan(run(table, weights, Options(0.6, method)).plan) == dump_plan(run(table, weights, Options(0.6, method)).plan)


@pytest.mark.parametrize("method", METHODS)
def test_refuses_what_it_cannot_reach_and_reaches_what_it_names(method: str) -> None:
    table, weights = model(towers(2), rest=100_000)
    with pytest.raises(UnreachableError) as caught:
        run(table, weights, Options(0.1, method))
    reachable = caught.value.reachable
    assert reachable > 100_000 / table.parameters
    assert f"{reachable:.4f}" in str(caught.value)
    result = run(table, weights, Options(reachable, method))
    assert abs(result.kept_model - reachable) <= 0.01


def test_a_model_without_sites_says_so() -> None:
    table, weights = model([], rest=100)
    with pytest.raises(UnreachableError, match="is the smallest") as caught:
        run(table, weights, Options(0.5, "magnitude"))
    assert caught.value.hint == "no site of this model can be changed: it has none, or their weights are tied"


@pytest.mark.parametrize(
    "wrong",
    [
        Options(keep=0.0),
        Options(keep=1.01),
        Options(keep=float("nan")),
        Options(method="guess"),
        Options(minimum=0.0),
        Options(share_fraction=1.5),
        Options(block=1),
        Options(block=5),
    ],
)
def test_options_out_of_range(wrong: Options) -> None:
    table, weights = model([ffn("a")])
    with pytest.raises(OptionError):
        run(table, weights, wrong)


def test_nested_reader_sets_and_few_segments() -> None:
    table, weights = model(towers(), rest=1000)
    result = run(table, weights, Options(0.6, "similarity", share_fraction=1.0))
    resolved, plan = lowered(result, table)
    found = readers_by_root(resolved)
    assert {axis for _, axis in found} == {"hidden", "qk", "vo"}
    for readers in found.values():
        sets = sorted(readers.values(), key=len)
        assert all(small <= large for small, large in itertools.pairwise(sets))
    assert plan.legalised == ()
    assert all(segment.width % 16 == 0 and segment.width >= 64 for segment in plan.segments)
    for site in plan.sites:
        for group in site.groups:
            assert all(len(blocks) <= 4 for blocks in group.blocks.values())


@pytest.mark.parametrize("prefer", ["size", "latency"])
def test_plans_for_a_preference(prefer: str) -> None:
    table, weights = model(towers(), rest=1000)
    result = run(table, weights, Options(0.6, share_fraction=0.5, prefer=prefer))
    plan = lower(table, resolve(result.plan, table), prefer=prefer)
    assert plan.segments
    assert plan.legalised == ()
    assert abs(plan.stored / table.parameters - 0.6) <= 0.01
    assert result.plan.provenance["prefer"] == prefer


def test_cross_modal_and_layer_wise_bases() -> None:
    table, weights = model(towers(), rest=1000)
    result = run(table, weights, Options(0.6, "similarity", share_fraction=1.0))
    bases = {s.base for site in result.plan.sites.values() for axis in site.axes.values() for s in axis.share}
    assert bases == {f"text.{i}.{kind}" for i in (0, 2) for kind in ("attn", "ffn")}
    readers = {n for n, site in result.plan.sites.items() if any(axis.share for axis in site.axes.values())}
    assert {"text.1.ffn", "vision.0.ffn", "vision.1.ffn"} <= readers


def permuted_copies(noise: float) -> tuple[SiteTable, Weights, dict[str, npt.NDArray[np.int64]]]:
    """Two-layer towers; each vision site is the first text site's, its heads and units permuted, with noise added."""
    sites = [s for t in ("text", "vision") for s in (msa(f"{t}.0.attn"), ffn(f"{t}.0.ffn"))]
    table, weights = model(sites, seed=3)
    generator = np.random.default_rng(7)
    planted: dict[str, npt.NDArray[np.int64]] = {}
    for base, reader in ((sites[0], sites[2]), (sites[1], sites[3])):
        heads = generator.permutation(base.heads)
        for axis in (a for a in base.axes if a != "head"):
            size = base.axes[axis].per_head
            inside = np.stack([generator.permutation(size) for _ in range(base.heads)])
            planted[f"{reader.name}:{axis}"] = (heads[:, None] * size + inside).reshape(-1)
        for role, member in reader.members.items():
            if not member.is_matrix:
                continue
            axis = "hidden" if base.kind == "ffn" else ("qk" if role in "qk" else "vo")
            source = base.members[role].index(axis)[:, 0]
            target = member.index(axis)[:, 0][planted[f"{reader.name}:{axis}"]]
            theirs = np.moveaxis(weights[base.members[role].param], member.axis, 0)[source]
            mine = np.moveaxis(weights[member.param], member.axis, 0)
            mine[target] = theirs + noise * generator.standard_normal(theirs.shape).astype(np.float32)
    return table, weights, planted


def relative_damage(result: PlanResult, table: SiteTable, weights: Weights) -> float:
    """||W - W of the plan|| / ||W|| over all matrices."""
    resolved = resolve(result.plan, table)
    changed = total = 0.0
    for name in resolved.names:
        for axis, decided in resolved.axes[name].items():
            for member in (m for m in table[name].on(axis) if m.is_matrix):
                own = rows(member, axis, weights.__getitem__)
                applied = own.copy()
                for root in np.unique(decided.root_site):
                    base = table[resolved.names[int(root)]].members[member.role]
                    here = decided.root_site == root
                    applied[here] = rows(base, axis, weights.__getitem__)[decided.root_unit[here]]
                applied[decided.pruned] = 0
                changed += float(np.square(own - applied).sum())
                total += float(np.square(own).sum())
    return float(np.sqrt(changed / total))


def test_similarity_finds_a_planted_permutation() -> None:
    table, weights, planted = permuted_copies(noise=0.01)
    # Members may stand in any order: they meet by role.
    last = table.sites[-1]
    turned = Site(last.name, last.kind, dict(list(last.members.items())[::-1]), last.sizes)
    table = SiteTable((*table.sites[:-1], turned), (), table.parameters, table.bytes)
    result = run(table, weights, Options(0.55, "similarity", share_fraction=1.0))
    resolved, _ = lowered(result, table)
    checked = 0
    for key, permutation in planted.items():
        name, axis = key.split(":")
        decided = resolved.axes[name][axis]
        base = resolved.names.index(name.replace("vision", "text"))
        units = np.flatnonzero(decided.root_site == base)
        assert np.array_equal(permutation[decided.root_unit[units]], units)
        checked += len(units)
    assert checked > 500
    assert relative_damage(result, table, weights) < 0.02
    assert relative_damage(run(table, weights, Options(0.55, "magnitude")), table, weights) > 0.4


def test_part_of_the_saving_is_shared_the_rest_pruned() -> None:
    table, weights = model(towers(), rest=1000)
    result = run(table, weights, Options(0.6, "similarity", share_fraction=0.5))
    resolved = resolve(result.plan, table)
    shared = pruned = 0
    for number, name in enumerate(resolved.names):
        for axis, decided in resolved.axes[name].items():
            vectors, own = table[name].unit_parameters(axis)
            shared += vectors * int(((decided.root_site != number) & ~decided.pruned).sum())
            pruned += (vectors + own) * int(decided.pruned.sum())
    assert shared / (shared + pruned) == pytest.approx(0.5, abs=0.05)


def test_heads_split_differently_share() -> None:
    sites = [s for i in range(2) for s in (msa(f"text.{i}", 12, 32), msa(f"vision.{i}", 6, 64))]
    table, weights = model(sites)
    result = run(table, weights, Options(0.6, "similarity", share_fraction=1.0))
    resolved, plan = lowered(result, table)
    assert any(name.startswith("vision") for readers in readers_by_root(resolved).values() for name in readers)
    assert abs(plan.stored - plan.planned) <= 0.01 * plan.planned
    assert abs(result.kept_model - 0.6) <= 0.01 + 64 * 12 * 4 / table.parameters


def test_frozen_axes_stay() -> None:
    sites = [
        msa("a.0", frozen={"head": "why"}),
        msa("a.1", frozen={"head": "why"}),
        msa("b.0", frozen={"qk": "why"}),
        msa("b.1", frozen={"qk": "why"}),
        ffn("f.0"),
        ffn("f.1"),
    ]
    table, weights = model(sites)
    for method in METHODS:
        result = run(table, weights, Options(0.7, method))
        resolved, _ = lowered(result, table)
        for name in ("a.0", "a.1"):
            assert "head" not in result.plan.sites[name].axes or len(result.plan.sites[name].axes["head"].kept) == 8
            assert all((~axis.pruned).reshape(8, -1).any(axis=1).all() for axis in resolved.axes[name].values())
        for name in ("b.0", "b.1"):
            inside = (~resolved.axes[name]["qk"].pruned).reshape(8, -1)
            assert set(inside.sum(axis=1)) <= {0, 32}


def test_rotary_axes_keep_the_same_units_in_every_head() -> None:
    sites = [msa(f"a.{i}", uniform=frozenset({"qk"})) for i in range(4)]
    table, weights = model(sites)
    for method in METHODS:
        resolved, plan = lowered(run(table, weights, Options(0.6, method)), table)
        assert abs(plan.stored - plan.planned) <= 0.01 * plan.planned
        for number, name in enumerate(resolved.names):
            decided = resolved.axes[name]["qk"]
            kept = (~decided.pruned).reshape(8, 32)
            assert (kept[kept.any(axis=1)] == kept[kept.any(axis=1)][0]).all()
            foreign = decided.root_site != number
            assert np.array_equal(decided.root_unit[foreign] % 32, np.flatnonzero(foreign) % 32)


def test_grouped_queries_and_head_tables() -> None:
    sites = [msa(f"a.{i}", heads=4, group=2) for i in range(3)] + [msa(f"s.{i}", rider=True) for i in range(3)]
    table, weights = model(sites)
    for method in METHODS:
        result = run(table, weights, Options(0.6, method))
        _, plan = lowered(result, table)
        assert abs(plan.stored / table.parameters - 0.6) <= 0.02
        assert abs(plan.stored - plan.planned) <= 0.01 * plan.planned


def test_tied_and_non_finite_sites_are_left_alone() -> None:
    tied = ffn("b.1")
    up = tied.members["up"]
    members = dict(tied.members) | {"up": Member("up", "b.0.up", 0, 0, up.shape, up.factors, True)}
    sites = [ffn("a.0"), ffn("a.1"), ffn("a.2"), ffn("b.0"), Site("b.1", "ffn", members, tied.sizes), ffn("c.0")]
    table, weights = model(sites)
    assert tied_sites(table) == {"b.0", "b.1"}
    weights["c.0.down"][3, 3] = np.inf
    for method in METHODS:
        result = run(table, weights, Options(0.8, method))
        resolved, plan = lowered(result, table)
        touched = {site.name for site in plan.sites if site.touched}
        assert touched
        assert touched <= {"a.0", "a.1", "a.2"}
        assert [note.split(":")[0] for note in result.notes] == ["b.0", "b.1", "c.0"]
        assert len(resolved.names) == 6


def test_half_precision_shares_only_with_its_like() -> None:
    table, weights = model([ffn("a.0"), ffn("a.1"), ffn("a.2"), ffn("a.3")])
    half = {name: value.astype(np.float16) if name[2] in "13" else value for name, value in weights.items()}
    result = run(table, half, Options(0.8, share_fraction=1.0))
    pairs = {(n, s.base) for n, site in result.plan.sites.items() for axis in site.axes.values() for s in axis.share}
    assert pairs <= {("a.2", "a.0"), ("a.3", "a.1")}
    assert pairs


def test_magnitude_prunes_the_weakest_units_and_heads() -> None:
    table, weights = model([ffn("f"), msa("m")], seed=5)
    weak_units = np.arange(0, 256, 2)
    weights["f.up"][weak_units] *= 0.01
    weights["f.down"][weak_units] *= 0.01
    site = table["m"]
    for role, axis in (("q", "qk"), ("k", "qk"), ("v", "vo"), ("o", "vo")):
        member = site.members[role]
        index = member.index(axis).reshape(8, 32)[[1, 4]].reshape(-1)
        np.moveaxis(weights[member.param], member.axis, 0)[index] *= 0.01
    share_of = {s.name: s.parameters / table.parameters for s in table.sites}
    keep = 1 - 0.5 * share_of["f"] - 0.25 * share_of["m"]
    result = run(table, weights, Options(keep, "magnitude"))
    resolved = resolve(result.plan, table)
    assert np.array_equal(np.flatnonzero(resolved.axes["f"]["hidden"].pruned), weak_units)
    gone = resolved.axes["m"]["vo"].pruned.reshape(8, 32).all(axis=1)
    assert np.array_equal(np.flatnonzero(gone), [1, 4])
    assert relative_damage(result, table, weights) < 0.01


def test_uniform_takes_the_same_fraction_everywhere() -> None:
    table, weights = model(towers(), rest=1000)
    weights["text.0.ffn.up"] *= 100  # scale does not matter, nor does any other site's
    resolved = resolve(run(table, weights, Options(0.6, "uniform")).plan, table)
    fractions = [1 - axis.pruned.mean() for axes in resolved.axes.values() for axis in axes.values()]
    assert max(fractions) - min(fractions) <= 1 / 8


def test_large_matching_agrees_with_the_exact_one_on_a_permutation() -> None:
    generator = np.random.default_rng(1)
    base = [generator.standard_normal((300, 24)) for _ in range(2)]
    base = [b / np.linalg.norm(b, axis=1, keepdims=True) for b in base]
    permutation = generator.permutation(300)
    reader = [np.empty_like(b) for b in base]
    for b, r in zip(base, reader, strict=True):
        r[permutation] = b + 0.01 * generator.standard_normal(b.shape)
    reader = [r / np.linalg.norm(r, axis=1, keepdims=True) for r in reader]
    single = [b.astype(np.float32) for b in base], [r.astype(np.float32) for r in reader]
    for limit in (4096, 100):
        partner, distance = match_units(*single, limit=limit)
        assert np.array_equal(partner, permutation)
        assert 0 < distance.max() < 0.01
    noise = [generator.standard_normal((300, 24)).astype(np.float32) for _ in range(2)]
    partner, _ = match_units(single[0], noise, limit=64)
    assert np.array_equal(np.sort(partner), np.arange(300))


def test_energies_do_not_depend_on_scale() -> None:
    table, weights = model([ffn("a", gated=True)])
    before = energies(table["a"], weights.__getitem__)
    weights["a.up"] *= 1000
    after = energies(table["a"], weights.__getitem__)
    assert before is not None
    assert after is not None
    np.testing.assert_allclose(before["hidden"], after["hidden"], rtol=1e-5)
    assert before["hidden"].mean() == pytest.approx(1.0)


def test_spend_prefers_the_nearest_landing() -> None:
    table, weights = model([ffn("a")])
    measured = energies(table["a"], weights.__getitem__)
    assert measured is not None
    rules = Rules(multiple=16, segment=64, minimum=0.125)
    step = 16 * sum(table["a"].unit_parameters("hidden"))
    for goal, steps in ((0.4, 0), (0.6, 1), (3.4, 3), (3.6, 4)):
        draft = Draft(table["a"], measured, rules)
        assert spend([draft], goal * step, weakest) == steps * step
        assert draft.kept["hidden"] == 256 - 16 * steps


def test_says_where_steps_are_too_coarse() -> None:
    # Two heads of 64 that cannot be narrowed: a head more or less is half of the model.
    table, weights = model([msa("a", 2, 64, frozen={"qk": "why", "vo": "why"})])
    for keep, kept in ((0.7, 0.5), (0.8, 1.0)):
        result = run(table, weights, Options(keep, "magnitude"))
        assert result.kept_model == pytest.approx(kept)
        assert result.notes == (
            f"keeps {kept:.4f} of the model: in steps that can be stored, nothing nearer to {keep} was found",
        )
    assert run(table, weights, Options(0.5, "magnitude")).notes == ()


def test_progress_is_told() -> None:
    table, weights = model(towers(1))
    seen: list[tuple[str, int, int]] = []
    make_plan(
        table,
        weights.__getitem__,
        keep=0.7,
        method="similarity",
        name="test",
        progress=lambda what, done, total: seen.append((what, done, total)),
    )
    assert {what for what, _, _ in seen} == {"reading weights", "matching units"}
    assert all(0 <= done <= total for _, done, total in seen)
    assert seen[-1][1] == seen[-1][2]


def test_unreachable_is_a_refusal() -> None:
    assert issubclass(UnreachableError, InarchError)
