"""The plan strategies and the checker check themselves."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from inarch.frontends.canonicalize import canonicalize
from inarch.structure.discover import Discovery, discover
from inarch.structure.plan import Plan, dump_plan, parse_plan
from inarch.structure.resolve import resolve

from tests.zoo import build
from tests.zoo.check import compare
from tests.zoo.plans import has_empty_axis, is_partial, random_plan, shared_fractions, shrink
from tests.zoo.styles import EMPTYING, STYLES

FORMS = ("two_tower", "head_splits", "swiglu", "gqa", "decoder_cross", "bi_attention", "tied_layers")


@cache
def found(form: str) -> Discovery:
    return discover(canonicalize(build(form, 0).model))


def draw(form: str, style: str, seed: int = 0) -> Plan:
    return random_plan(np.random.default_rng(seed), found(form).table, style)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("form", FORMS)
def test_plan_is_valid_and_decides_something(form: str, style: str) -> None:
    for seed in range(3):
        plan = draw(form, style, seed)
        assert parse_plan(dump_plan(plan)) == plan
        axes = [axis for site in resolve(plan, found(form).table).axes.values() for axis in site.values()]
        assert any(axis.pruned.any() for axis in axes) or shared_fractions(plan)


def test_same_seed_same_plan() -> None:
    assert draw("two_tower", "share-mixed", 5) == draw("two_tower", "share-mixed", 5)
    assert draw("two_tower", "share-mixed", 5) != draw("two_tower", "share-mixed", 6)


@pytest.mark.parametrize("style", EMPTYING)
def test_emptying_styles_empty_an_axis(style: str) -> None:
    assert any(has_empty_axis(draw("two_tower", style, seed)) for seed in range(5))


def test_chain_has_readers_that_are_bases() -> None:
    chained = 0
    for seed in range(5):
        plan = draw("two_tower", "share-chain", seed)
        bases = {share.base for site in plan.sites.values() for axis in site.axes.values() for share in axis.share}
        chained += any(plan.sites[base].axes[axis].share for base in bases for axis in plan.sites[base].axes)
    assert chained


def test_differing_heads_share() -> None:
    plan = draw("head_splits", "share-blocks", 1)
    heads = {name: site.heads for name, site in plan.sites.items()}
    assert any(
        heads[name] != heads[share.base]
        for name, site in plan.sites.items()
        if site.kind == "msa"
        for axis in site.axes.values()
        for share in axis.share
    )


def test_partial_is_neither_none_nor_all() -> None:
    assert not is_partial(draw("two_tower", "prune-ffn"))
    assert is_partial(draw("two_tower", "share-prefix"))


def _site_that_prunes(name: str, unit: int) -> Callable[[Plan], bool]:
    def fails(plan: Plan) -> bool:
        return name in plan.sites and unit not in plan.sites[name].axes["hidden"].kept

    return fails


def test_shrinking_leaves_what_fails() -> None:
    plan = draw("two_tower", "prune-all")
    name, unit = next(
        (name, int(np.setdiff1d(np.arange(site.axes["hidden"].size), site.axes["hidden"].kept)[0]))
        for name, site in plan.sites.items()
        if site.kind == "ffn" and len(site.axes["hidden"].kept) < site.axes["hidden"].size
    )
    small = shrink(plan, _site_that_prunes(name, unit))
    pruned = {n: sum(axis.size - len(axis.kept) for axis in site.axes.values()) for n, site in small.sites.items()}
    assert {n: count for n, count in pruned.items() if count} == {name: 1}
    assert not shared_fractions(small)
    resolve(small, found("two_tower").table)


def test_checker_sees_differences_and_allows_rounding() -> None:
    want = np.linspace(-1, 1, 64, dtype=np.float32)
    assert not compare(want, want + np.float32(2e-7), want)
    assert "differs" in compare(want, want + np.float32(2e-5), want)
    # within 1e-5, and far above the noise
    assert "differs" in compare(want, want + np.float32(8e-6), want)
    assert not compare(want, want + np.float32(8e-6), want + np.float32(2e-6))
    assert "differs" in compare(want, np.roll(want, 1), want)
    assert "float32[32]" in compare(want, want[:32], want)


def test_checker_follows_the_contract_on_rows_that_are_not_finite() -> None:
    want = np.ones(8, np.float32)
    broken = want.copy()
    broken[3] = np.nan
    assert "not finite" in compare(want, broken, want)
    assert not compare(broken, want, broken)
    assert not compare(broken, broken, broken)
