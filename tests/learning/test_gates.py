"""Gates count what a plan counts, and are shaped as the lowering stores them."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inarch.frontends.canonicalize import canonicalize
from inarch.learning.families import Family, Sharing, families, usable
from inarch.learning.gates import Gates, GateSpace, Hard
from inarch.structure.cost import DEFAULT_COST
from inarch.structure.discover import discover
from inarch.structure.lowering import lower, planned_parameters
from inarch.structure.plan import Plan
from inarch.structure.resolve import build_plan, resolve
from inarch.structure.sites import SiteTable

from tests.learning.tables import Floats, drawn_logits, ffn, glip_like, mdetr_like, msa, odd_ones, splits, table_of, tied
from tests.zoo import build

MADE = {
    "mdetr": mdetr_like(96, 4, 384, 3),
    "mdetr-narrow": mdetr_like(48, 3, 80, 3, inner=24),
    "glip": glip_like(),
    "odd": odd_ones(),
    "tied": tied(),
    "finer": splits(64, 2, 8),
    "coarser": splits(64, 8, 2),
    "crossed": splits(96, 4, 6),
}
ZOO = ("gqa", "rotary_half", "rotary_interleaved", "bi_attention", "swin", "swin_constant_bias", "qk_norm", "t5", "tied_members")
FORMS = (*MADE, *ZOO, "two_tower", "head_splits")
SHARING: tuple[Sharing, ...] = ("joint", "cross", "layer", "none")


@cache
def table(form: str) -> SiteTable:
    return MADE[form] if form in MADE else discover(canonicalize(build(form, 0).model)).table


@cache
def space(
    form: str,
    sharing: Sharing = "joint",
    block: int = 2,
    prune: bool = True,
    least: float = 0.0,
    prefer: str | None = None,
    tied: bool = False,
) -> GateSpace:
    limits = DEFAULT_COST.limits(prefer)
    return GateSpace(table(form), families(table(form), sharing, block), limits, prune=prune, least=least, tied=tied)


def plan_of(gates: GateSpace, hard: Hard) -> Plan:
    return build_plan(gates.table, gates.decisions(hard), "test", {})


def signs(gates: GateSpace, made: Gates) -> Floats:
    """Logits that say what a structure is."""
    logits = np.full(gates.logits, -1, np.float32)
    for key, spec in gates.axes.items():
        logits[spec.keep][made.hard.keep[key]] = 1
        if spec.share is not None:
            logits[spec.share][made.hard.share[key]] = 1
    for group, where in zip(gates.groups, gates.head_slices, strict=True):
        if group.logits is not None:
            logits[group.logits][made.heads[where].numpy() > 0] = 1
    return logits


SPACES = st.builds(
    space,
    st.sampled_from(FORMS),
    st.sampled_from(SHARING),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([True, True, True, False]),
    st.sampled_from([0.0, 0.0, 0.2]),
    tied=st.sampled_from([False, False, True]),
)


PREFERRING = st.builds(space, st.sampled_from(tuple(MADE)), prefer=st.sampled_from(["size", "latency"]))


@st.composite
def gated(draw: st.DrawFn, spaces: st.SearchStrategy[GateSpace] = SPACES) -> tuple[GateSpace, Gates]:
    gates = draw(spaces)
    return gates, gates.gates(draw(drawn_logits(gates)))


@settings(max_examples=200)
@given(gated())
def test_the_count_is_that_of_the_plan_and_is_stored_as_planned(case: tuple[GateSpace, Gates]) -> None:
    gates, made = case
    plan = plan_of(gates, made.hard)
    resolved = resolve(plan, gates.table)
    assert plan.expect is not None
    counted = float(gates.count(made))
    assert counted == plan.expect.parameters == planned_parameters(gates.table, resolved)
    # Of what sites read together each that changes gets its own; nothing else is stored beyond the plan.
    lowered = lower(gates.table, resolved)
    assert lowered.stored - counted == sum(entry.parameters for entry in lowered.legalised if entry.reason == "tied")


@settings(max_examples=60)
@given(
    gated(
        st.builds(space, st.sampled_from(["mdetr", "mdetr-narrow", "glip", "odd"]), prefer=st.sampled_from(["size", "latency"]))
    )
)
def test_other_limits_are_kept_too(case: tuple[GateSpace, Gates]) -> None:
    gates, made = case
    prefer = "size" if gates.limits == DEFAULT_COST.size else "latency"
    lowered = lower(gates.table, resolve(plan_of(gates, made.hard), gates.table), prefer=prefer)
    assert lowered.planned == float(gates.count(made))
    assert lowered.stored - lowered.planned <= 0.01 * gates.table.parameters


@settings(max_examples=150)
@given(gated())
def test_a_structure_is_what_its_own_signs_are_projected_onto(case: tuple[GateSpace, Gates]) -> None:
    gates, made = case
    again, heads = gates.project(signs(gates, made))
    for key in gates.axes:
        assert np.array_equal(again.keep[key], made.hard.keep[key]), key
        assert np.array_equal(again.share[key], made.hard.share[key]), key
    assert np.array_equal(heads, made.heads.numpy())


@settings(max_examples=150)
@given(gated())
def test_readers_of_a_base_are_nested_and_the_base_keeps_what_they_read(case: tuple[GateSpace, Gates]) -> None:
    gates, made = case
    hard = made.hard
    for key, spec in gates.axes.items():
        assert not (hard.share[key] & ~hard.keep[key]).any(), "what is pruned is not shared"
        if spec.base is None:
            assert not hard.share[key].any()
        else:
            assert not (hard.share[key] & ~hard.keep[spec.base]).any()
            assert not hard.share[spec.base].any()
    for specs in gates.readers.values():
        sets = sorted((hard.share[spec.key] for spec in specs), key=lambda mask: int(mask.sum()))
        assert all(not (small & ~large).any() for small, large in pairwise(sets))
        assert len({int(mask.sum()) for mask in sets} - {0}) < gates.limits.max_segments


@settings(max_examples=80)
@given(gated())
def test_gates_are_exactly_zero_or_one_and_say_the_structure(case: tuple[GateSpace, Gates]) -> None:
    gates, made = case
    for values in (made.keep, made.share, made.heads):
        assert bool(((values == 0) | (values == 1)).all())
    alive = made.heads[gates.head_at]
    frozen = torch.cat([torch.full((spec.heads * spec.per_head,), spec.frozen) for spec in gates.axes.values()])
    kept = made.keep * alive
    assert torch.equal(kept, gates.flat(made.hard.keep))
    assert bool((made.keep[frozen & (alive == 0)] == 1).all())
    assert torch.equal(made.share * (kept if gates.tied else 1), gates.flat(made.hard.share))


# Numbers that a float cannot hold


@cache
def vast() -> GateSpace:
    """As large as MDETR with two backbones of base size, and an odd number of parameters, which no float of 24 bits holds."""
    sites = mdetr_like(768, 12, 3072, 12, 0).sites
    fused = mdetr_like(256, 8, 2048, 0, 6).sites
    sized = table_of([*sites, *fused], 40_000_001)
    assert sized.parameters > 200_000_000
    return GateSpace(sized, families(sized))


@pytest.mark.parametrize("seed", range(2))
def test_the_count_of_a_vast_model_is_exact(seed: int) -> None:
    gates = vast()
    dense = gates.gates(gates.offsets(3, 3, 3))
    assert int(gates.count(dense)) == gates.table.parameters
    rng = torch.Generator().manual_seed(seed)
    made = gates.gates(torch.randn(gates.logits, generator=rng) + gates.offsets(0.5, 0.5, 0.5))
    resolved = resolve(plan_of(gates, made.hard), gates.table)
    lowered = lower(gates.table, resolved)
    assert int(gates.count(made)) == lowered.planned == lowered.stored
    assert lowered.planned > 2**26


# Starting, sharing, pruning


@pytest.mark.parametrize("form", FORMS)
def test_offsets_start_dense_and_private(form: str) -> None:
    gates = space(form)
    made = gates.gates(gates.offsets(3, 1, 3))
    assert int(gates.count(made)) == table(form).parameters
    assert not made.share.any()
    assert gates.decisions(made.hard) == {}


@pytest.mark.parametrize("form", FORMS)
def test_everything_shared_is_one_base_a_family(form: str) -> None:
    gates = space(form, block=4)
    made = gates.gates(gates.offsets(3, -3, 3))
    saved = sum(
        gates.axes[reader, axis].vectors * gates.axes[reader, axis].heads * gates.axes[reader, axis].per_head
        for family in gates.families
        for reader in family.readers
        for axis in table(form)[reader].axes
        if (reader, axis) in gates.axes and gates.axes[reader, axis].base is not None
    )
    assert int(gates.count(made)) == table(form).parameters - saved
    every = gates.all_shared()
    assert torch.equal(gates.flat(every.share), gates.flat(made.hard.share))
    assert torch.equal(gates.flat(every.keep), gates.flat(made.hard.keep))


@settings(max_examples=60)
@given(
    gated(st.builds(space, st.sampled_from(FORMS), st.sampled_from(SHARING), least=st.sampled_from([0, 0.2]), tied=st.just(True)))
)
def test_tied_families_keep_the_same_and_share_all_of_it(case: tuple[GateSpace, Gates]) -> None:
    gates, made = case
    assert all(spec.share is None for spec in gates.axes.values())
    for key, spec in gates.axes.items():
        if spec.base is not None:
            assert np.array_equal(made.hard.keep[key], made.hard.keep[spec.base])
            assert np.array_equal(made.hard.share[key], made.hard.keep[key])


def test_without_a_base_nothing_is_shared() -> None:
    gates = space("mdetr", "none")
    assert all(spec.share is None and spec.base is None for spec in gates.axes.values())
    assert not gates.gates(torch.full((gates.logits,), 5.0)).share.any()


def test_without_pruning_everything_stays_whatever_its_logits() -> None:
    gates = space("mdetr", prune=False)
    made = gates.gates(torch.full((gates.logits,), -5.0))
    assert all(mask.all() for mask in made.hard.keep.values())
    assert all(group.logits is None for group in gates.groups)


def test_what_is_frozen_stays_and_goes_with_its_heads_alone() -> None:
    gates = space("odd")
    made = gates.gates(gates.offsets(-3, 3, 3))
    for key, spec in gates.axes.items():
        site = gates.table[key[0]]
        if key[1] in site.frozen and key[1] != "qk":
            assert spec.frozen
            assert made.hard.keep[key].all()
        if "head" in site.frozen:
            assert made.hard.keep[key].reshape(spec.heads, -1).any(1).all()
    normed = ("text.layer.0.normed", "qk")
    assert not made.hard.keep[normed].any(), "nothing comes out of it"
    assert normed[1] not in gates.decisions(made.hard)[normed[0]]
    assert all(group.logits is None for group in gates.groups if group.sites[0].endswith((".fixed", ".valued")))


def test_a_head_that_lives_keeps_a_unit_of_every_axis() -> None:
    gates = space("glip")
    logits = gates.offsets(-3, 3, 3)
    name = "rpn.head.dyhead_tower.0.b_attn.attn"
    logits[gates.axes[name, "vo2"].keep] = 3
    hard = gates.gates(logits).hard
    assert [int(hard.keep[name, axis].sum()) for axis in ("qk", "vo", "vo2")] == [16, 16, 64]
    other = "rpn.head.dyhead_tower.1.b_attn.attn"
    assert not any(hard.keep[other, axis].any() for axis in ("qk", "vo", "vo2"))


@pytest.mark.parametrize(("hidden", "all_read"), [(72, 64), (80, 80), (64, 64)])
def test_who_reads_all_beside_a_prefix_reads_whole_steps(hidden: int, all_read: int) -> None:
    """80 = 32 + 48, which is stored as planned; of 72 = 32 + 40 eight units would be stored twice."""
    one = table_of([ffn(f"text.layer.{n}.ffn", 24, hidden) for n in range(3)])
    gates = GateSpace(one, [Family("text.layer.0.ffn", ("text.layer.1.ffn", "text.layer.2.ffn"))])
    logits = gates.offsets(3, 3, 3)
    for number, count in ((1, hidden), (2, 32)):
        share = gates.axes[f"text.layer.{number}.ffn", "hidden"].share
        assert share is not None
        logits[share][:count] = 1
    made = gates.gates(logits)
    assert [int(made.hard.share[f"text.layer.{n}.ffn", "hidden"].sum()) for n in (1, 2)] == [all_read, 32]
    lowered = lower(one, resolve(plan_of(gates, made.hard), one))
    assert lowered.stored == lowered.planned == float(gates.count(made))


def test_heads_go_from_a_whole_family() -> None:
    gates = space("mdetr")
    logits = gates.offsets(3, 3, 3)
    group = next(group for group in gates.groups if group.logits is not None and len(group.sites) > 1)
    assert group.logits is not None
    logits[group.logits.start + 1] = -1
    hard = gates.gates(logits).hard
    for site in group.sites:
        for axis in ("qk", "vo"):
            assert hard.keep[site, axis].reshape(group.heads, -1).all(1).tolist() == [True, False, True, True]
            assert hard.keep[site, axis].sum() == 3 * hard.keep[site, axis].size // 4


@settings(max_examples=30)
@given(gated(st.builds(space, st.sampled_from(FORMS), least=st.just(0.3))))
def test_no_site_goes_where_a_least_part_stays(case: tuple[GateSpace, Gates]) -> None:
    gates, made = case
    alive = {name: made.heads[where] > 0 for g, where in zip(gates.groups, gates.head_slices, strict=True) for name in g.sites}
    for key, spec in gates.axes.items():
        lives = alive[key[0]].numpy()
        assert lives.any()
        lives = np.repeat(lives, spec.heads // len(lives))  # where heads differ, those that go together hold several blocks
        kept = made.hard.keep[key].reshape(spec.heads, -1).sum(1)
        assert (kept[lives] >= round(0.3 * spec.per_head)).all()


def test_the_units_with_the_highest_logits_stay() -> None:
    one = table_of([ffn("text.layer.0.ffn", 8, 64)])
    gates = GateSpace(one, [])
    logits = torch.linspace(-1, 1, 64)
    hard = gates.gates(logits[torch.randperm(64, generator=torch.Generator().manual_seed(0))]).hard
    assert int(hard.keep["text.layer.0.ffn", "hidden"].sum()) == 32
    assert gates.gates(logits).hard.keep["text.layer.0.ffn", "hidden"].tolist() == [False] * 32 + [True] * 32


# Gradients


def gradients(gates: GateSpace, logits: Tensor, noise: Tensor | None = None) -> Tensor:
    start = logits.clone().requires_grad_()
    torch.autograd.backward(gates.count(gates.gates(start, noise=noise)))
    assert start.grad is not None
    return start.grad


def test_the_count_reaches_the_logits_of_keeping_sharing_and_heads() -> None:
    gates = space("mdetr")
    found = gradients(gates, gates.offsets(1, 1, 1))
    for spec in gates.axes.values():
        if spec.share is not None:
            assert bool((found[spec.share] < 0).all()), "sharing saves"
        assert bool((found[spec.keep] > 0).all()), "keeping costs"
    for group in gates.groups:
        if group.logits is not None:
            assert bool((found[group.logits] > 0).all())


def test_a_gate_that_cannot_move_gets_no_gradient() -> None:
    for gates in (space("mdetr", prune=False), space("odd")):
        found = gradients(gates, gates.offsets(1, 1, 1))
        for spec in gates.axes.values():
            assert bool((found[spec.keep] == 0).all()) == spec.frozen


def test_a_head_that_is_gone_is_still_told_what_it_would_cost() -> None:
    gates = space("mdetr")
    found = gradients(gates, gates.offsets(1, 1, -1))
    for group in gates.groups:
        if group.logits is not None:
            assert bool((found[group.logits] > 0).all())


def test_the_slope_is_that_of_the_sigmoid_times_what_a_unit_costs() -> None:
    one = table_of([ffn("text.layer.0.ffn", 8, 64)])
    gates = GateSpace(one, [])
    logits = torch.linspace(-1, 1, 64)
    soft = torch.sigmoid(logits / 0.4)
    torch.testing.assert_close(gradients(gates, logits), soft * (1 - soft) / 0.4 * (2 * 8 + 1))


def test_what_a_base_loses_costs_nothing_while_it_is_read() -> None:
    pair = table_of([ffn(f"text.layer.{n}.ffn", 8, 64) for n in range(2)])
    gates = GateSpace(pair, families(pair))
    found = gradients(gates, gates.offsets(1, -1, 1))
    base = gates.axes["text.layer.0.ffn", "hidden"]
    slope = torch.sigmoid(torch.tensor(2.5)) * (1 - torch.sigmoid(torch.tensor(2.5))) / 0.4
    torch.testing.assert_close(found[base.keep], (slope * 1).expand(64), msg="only its bias would be saved")


@pytest.mark.parametrize("start", [1.0, -1.0])
def test_what_a_tied_unit_costs_is_paid_once_whether_it_is_kept_or_not(start: float) -> None:
    row = table_of([ffn(f"text.layer.{n}.ffn", 8, 64) for n in range(3)])
    gates = GateSpace(row, families(row, block=3), tied=True)
    assert gates.logits == 64
    slope = torch.sigmoid(torch.tensor(2.5)) * (1 - torch.sigmoid(torch.tensor(2.5))) / 0.4
    found = gradients(gates, torch.full((64,), start))
    torch.testing.assert_close(found, (slope * (2 * 8 + 3)).expand(64), msg="two vectors, and a bias for each of the three")


def test_noise_moves_the_gates() -> None:
    gates = space("mdetr")
    logits = gates.offsets(1, 1, 1)
    noise = torch.zeros(gates.logits)
    noise[gates.axes[gates.sites[1].name, "hidden"].keep] = -2
    assert not gates.gates(logits, noise=noise).hard.keep[gates.sites[1].name, "hidden"].any()
    assert gates.gates(logits).hard.keep[gates.sites[1].name, "hidden"].all()


# What is given


def test_tied_sites_have_no_gates() -> None:
    gates = space("tied", block=9)
    assert {name for name, _ in gates.axes} == {site.name for site in usable(table("tied"))}
    assert int(gates.count(gates.gates(gates.offsets(3, 3, 3)))) == table("tied").parameters


def test_a_frozen_base_is_not_read() -> None:
    pair = table_of([msa("text.layer.0.a", 8, 2, 16, frozen={"qk": "a norm"}), msa("text.layer.1.a", 8, 2, 16)])
    gates = GateSpace(pair, [Family("text.layer.0.a", ("text.layer.1.a",))])
    assert gates.axes["text.layer.1.a", "qk"].base is None
    assert gates.axes["text.layer.1.a", "vo"].base == ("text.layer.0.a", "vo")


def test_a_model_without_sites_has_nothing_to_gate() -> None:
    gates = GateSpace(table_of([], 77), [])
    assert gates.logits == 0
    assert int(gates.count(gates.gates(torch.zeros(0)))) == 77


def test_tensors_move_to_a_device() -> None:
    gates = GateSpace(table("mdetr"), [])
    assert gates.to(torch.device("meta")) is gates
    assert gates.vectors.device.type == gates.unions.device.type == gates.keep_at.device.type == "meta"
