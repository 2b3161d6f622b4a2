from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inarch.structure import errors as e
from inarch.structure.errors import BindingError, PlanError
from inarch.structure.lowered import ResolvedPlan
from inarch.structure.plan import Plan, dump_plan, lint_plan, parse_plan
from inarch.structure.resolve import AxisDecision, bind, build_plan, identity, lint_against, resolve
from inarch.structure.sites import Rejection, Site, SiteTable

from tests.structure.plan_cases import Case, ffn, msa, random_case, read, table_of, text_of
from tests.structure.plan_cases import document_of as whole

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31)


def plan_of(document: dict[str, Any]) -> Plan:
    return parse_plan(text_of(document))


def give(document: dict[str, Any], site: str, axis: str, base: str, units: str, base_units: str) -> None:
    document["sites"][site]["axes"][axis]["share"].append({"base": base, "units": units, "base_units": base_units})


def refused(document: dict[str, Any], table: SiteTable) -> PlanError:
    plan = plan_of(document)
    with pytest.raises(PlanError) as caught:
        resolve(plan, table)
    found = lint_against(plan, table)
    assert (type(caught.value), caught.value.where) == (type(found[0]), found[0].where)
    return caught.value


def assert_is_reference(resolved: ResolvedPlan, case: Case) -> None:
    names = [site.name for site in case.table.sites]
    assert list(resolved.names) == names
    for site in case.table.sites:
        unit_axes = [axis for axis in site.axes if axis != "head"]
        assert list(resolved.axes[site.name]) == unit_axes
        for axis in unit_axes:
            got = resolved.axes[site.name][axis]
            nodes = [(site.name, unit) for unit in range(site.axes[axis].size)]
            roots = [case.root(axis, node) for node in nodes]
            assert got.pruned.tolist() == [node in case.pruned[axis] for node in nodes]
            assert got.root_site.tolist() == [names.index(name) for name, _ in roots]
            assert got.root_unit.tolist() == [unit for _, unit in roots]
            assert [a.dtype.name for a in (got.pruned, got.root_site, got.root_unit)] == ["bool", "int64", "int64"]


# Roots


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_units_end_where_the_naive_walk_ends(seed: int) -> None:
    case = random_case(seed)
    plan = plan_of(case.document)
    assert lint_against(plan, case.table) == []
    assert_is_reference(resolve(plan, case.table), case)


def test_random_plans_have_what_they_should_test() -> None:
    chains = back_and_forth = heads = 0
    for seed in range(30):
        case = random_case(seed)
        heads += len(case.entries("head"))
        for parent in case.parent.values():
            chains += sum(base in parent for base in parent.values())
            pairs = {(a, b) for (a, _), (b, _) in parent.items()}
            back_and_forth += sum((b, a) in pairs for a, b in pairs)
    assert min(chains, back_and_forth, heads) > 20


@few
@given(seeds, st.integers(0, 10**9))
def test_a_site_that_the_plan_leaves_out_keeps_every_unit(seed: int, choice: int) -> None:
    case = random_case(seed)
    readers = {reader for reader, *_ in case.entries()}
    idle = [name for name in case.document["sites"] if name not in readers]
    if not idle:
        return
    name = idle[choice % len(idle)]
    del case.document["sites"][name]
    for axis, pruned in case.pruned.items():
        case.pruned[axis] = {node for node in pruned if node[0] != name}
    assert_is_reference(resolve(plan_of(case.document), case.table), case)


def test_a_long_chain_resolves_to_its_root() -> None:
    table = table_of(*(ffn(f"s{k}", 6) for k in range(50)))
    document = whole(table)
    for k in range(49):
        give(document, f"s{k}", "hidden", f"s{k + 1}", "0-5", "1-5,0")
    resolved = resolve(plan_of(document), table)
    assert resolved.axes["s0"]["hidden"].root_site.tolist() == [49] * 6
    assert resolved.axes["s0"]["hidden"].root_unit.tolist() == [(u + 49) % 6 for u in range(6)]


def test_heads_fold_into_the_axes_inside_them() -> None:
    table = table_of(msa("a", 3, 2, 1), msa("b", 3, 2, 1))
    document = whole(table)
    document["sites"]["a"]["axes"]["head"]["keep"] = "0,2"
    give(document, "a", "head", "b", "2", "1")
    resolved = resolve(plan_of(document), table)
    qk, vo = resolved.axes["a"]["qk"], resolved.axes["a"]["vo"]
    assert qk.pruned.tolist() == [False, False, True, True, False, False]
    assert qk.root_site.tolist() == [0, 0, 0, 0, 1, 1]
    assert qk.root_unit.tolist() == [0, 1, 2, 3, 2, 3]
    assert (vo.pruned.tolist(), vo.root_site.tolist(), vo.root_unit.tolist()) == ([False, True, False], [0, 0, 1], [0, 1, 1])


def test_units_share_across_differing_head_splits() -> None:
    table = table_of(msa("six", 3, 4, 4), msa("twelve", 6, 2, 2))
    document = whole(table)
    give(document, "twelve", "qk", "six", "2-11", "0-9")
    resolved = resolve(plan_of(document), table)
    assert resolved.axes["twelve"]["qk"].root_unit.tolist() == [0, 1, *range(10)]
    assert resolved.axes["twelve"]["qk"].root_site.tolist() == [1, 1] + [0] * 10


@few
@given(seeds)
def test_identity_changes_nothing(seed: int) -> None:
    table = random_case(seed).table
    still = Case(table, {}, {a: {} for a in ("hidden", "qk", "vo", "vo2")}, {a: set() for a in ("hidden", "qk", "vo", "vo2")})
    assert_is_reference(identity(table), still)
    assert_is_reference(resolve(plan_of(whole(table)), table), still)


# Binding


def renamed(table: SiteTable, members: bool) -> SiteTable:
    """The table with other site names, and where ``members`` with other parameter names too."""
    sites = []
    for number, site in enumerate(table.sites):
        kept = dict(site.members)
        if members:
            kept = {role: replace(m, param=f"val_{number}_{m.param.rsplit('.', 1)[1]}") for role, m in kept.items()}
        sites.append(Site(f"site_{number}", site.kind, kept, site.sizes))
    return replace(table, sites=tuple(sites))


@pytest.mark.parametrize("members", [False, True], ids=["by-parameters", "by-position"])
@few
@given(seed=seeds)
def test_sites_bind_without_their_names(members: bool, seed: int) -> None:
    case = random_case(seed)
    table = renamed(case.table, members)
    resolved = resolve(plan_of(case.document), table)
    straight = resolve(plan_of(case.document), case.table)
    for old, new in zip(case.table.sites, table.sites, strict=True):
        for axis, wanted in straight.axes[old.name].items():
            got = resolved.axes[new.name][axis]
            assert np.array_equal(got.pruned, wanted.pruned)
            assert np.array_equal(got.root_site, wanted.root_site)
            assert np.array_equal(got.root_unit, wanted.root_unit)


def test_parameter_names_bind_sites_of_another_order_and_partial_plans() -> None:
    table = table_of(ffn("a", 6), ffn("b", 6), msa("m", 2, 3, 2, packed=True), msa("n", 2, 3, 2, packed=True))
    document = whole(table)
    document["sites"] = {n: document["sites"][n] for n in ("n", "b")}
    table = renamed(table, members=False)
    assert bind(plan_of(document), table).sites == {"n": 3, "b": 1}


def test_the_plans_own_names_come_before_the_models() -> None:
    table = table_of(ffn("a", 6, prefix="p"), ffn("b", 8, prefix="q"), ffn("c", 6, prefix="r"))
    document = whole(table)
    give(document, "c", "hidden", "a", "0", "5")
    # In this model the name "a" has gone to another site.
    other = table_of(ffn("z", 6, prefix="p"), ffn("a", 8, prefix="q"), ffn("c", 6, prefix="r"))
    resolved = resolve(plan_of(document), other)
    assert resolved.axes["c"]["hidden"].root_site.tolist() == [0, 2, 2, 2, 2, 2]


def test_a_partial_plan_without_names_is_not_guessed() -> None:
    table = table_of(ffn("a", 6), ffn("b", 6))
    document = whole(table)
    del document["sites"]["b"]
    error = refused(document, renamed(table, members=True))
    assert (type(error), error.where) == (e.UnknownSiteError, 'sites["a"]')
    assert isinstance(error, BindingError)
    assert "does not list all sites" in str(error)


def test_positions_do_not_tell_in_another_order() -> None:
    table = table_of(ffn("a", 6), ffn("b", 6), ffn("c", 6))
    document = whole(table)
    document["sites"] = {n: document["sites"][n] for n in ("b", "a", "c")}
    lost = renamed(table, members=True)
    lost = replace(lost, sites=(replace(lost.sites[0], name="a"), *lost.sites[1:]))
    error = refused(document, lost)
    assert (type(error), error.where) == (e.UnknownSiteError, 'sites["b"]')
    assert "another order" in str(error)


def test_one_site_of_the_model_is_not_bound_twice() -> None:
    table = table_of(ffn("a", 6), ffn("b", 6))
    document = whole(table)
    document["sites"]["again"] = {"kind": "ffn", "members": document["sites"]["a"]["members"]}
    error = refused(document, table)
    assert (type(error), error.where) == (e.AmbiguousSiteError, 'sites["again"]')
    assert isinstance(error, BindingError)


def test_a_name_and_the_parameters_of_another_site_are_ambiguous() -> None:
    table = table_of(ffn("a", 6), ffn("b", 6))
    document = whole(table)
    sites = document["sites"]
    sites["a"]["members"], sites["b"]["members"] = sites["b"]["members"], sites["a"]["members"]
    error = refused(document, table)
    assert (type(error), error.where) == (e.AmbiguousSiteError, 'sites["a"].members')
    assert "parameters are those of 'b'" in str(error)


def test_names_that_the_model_does_not_have_say_nothing() -> None:
    table = table_of(ffn("a", 6), ffn("b", 6))
    document = whole(table)
    for member in document["sites"]["a"]["members"].values():
        if member is not None:
            member["param"] = f"onnx::{member['param']}"
    assert bind(plan_of(document), table).sites == {"a": 0, "b": 1}


def test_parameters_of_several_sites_are_ambiguous() -> None:
    document = whole(table_of(ffn("a", 6), ffn("b", 6)))
    table = table_of(ffn("x", 6, prefix="a"), ffn("y", 6, prefix="a"))
    error = refused(document, table)
    assert (type(error), error.where) == (e.AmbiguousSiteError, 'sites["a"]')
    assert "'x', 'y'" in str(error)


@pytest.mark.parametrize(
    ("site", "where"),
    [
        (ffn("a", 8), 'sites["a"].axes.hidden.size'),
        (msa("a", 2, 3, 2), 'sites["a"].kind'),
    ],
)
def test_a_namesake_that_does_not_fit(site: Site, where: str) -> None:
    document = whole(table_of(ffn("a", 6), ffn("b", 6)))
    table = table_of(site, ffn("b", 6))
    document["model"]["fingerprint"] = table.fingerprint
    error = refused(document, table)
    assert (type(error), error.where) == (e.SiteMismatchError, where)
    assert isinstance(error, BindingError)


def test_other_heads_do_not_fit() -> None:
    document = whole(table_of(msa("m", 2, 3, 2)))
    table = table_of(msa("m", 3, 2, 2))
    document["model"]["fingerprint"] = table.fingerprint
    error = refused(document, table)
    assert (type(error), error.where) == (e.SiteMismatchError, 'sites["m"].heads')


# Refusals against the model


@few
@given(seeds)
def test_a_stale_fingerprint(seed: int) -> None:
    case = random_case(seed)
    case.document["model"]["fingerprint"] = "0" * 64
    error = refused(case.document, case.table)
    assert (type(error), error.where) == (e.StaleFingerprintError, "model.fingerprint")
    assert case.table.fingerprint in str(error)


def test_a_plan_for_another_model_is_one_error() -> None:
    plan = plan_of(whole(table_of(*(ffn(f"s{k}", 6) for k in range(9)))))
    found = lint_against(plan, table_of(msa("m", 2, 3, 2)))
    assert [error.code for error in found] == ["stale-fingerprint"]
    assert "of its 9 sites 0 are found" in str(found[0])


@few
@given(seeds, st.integers(0, 10**9))
def test_an_unknown_base(seed: int, choice: int) -> None:
    case = random_case(seed)
    if not case.entries():
        return
    site, axis, number, entry = case.entries()[choice % len(case.entries())]
    entry["base"] = "nowhere"
    error = refused(case.document, case.table)
    assert type(error) is e.UnknownSiteError
    assert error.where == f'sites["{site}"].axes.{axis}.share[{number}].base'


def test_an_unknown_site() -> None:
    table = table_of(ffn("a", 6), ffn("b", 6))
    document = whole(table)
    document["sites"]["nowhere"] = {"kind": "ffn"}
    error = refused(document, table)
    assert (type(error), error.where) == (e.UnknownSiteError, 'sites["nowhere"]')


def test_a_rejected_site_says_why() -> None:
    document = whole(table_of(ffn("a", 6), ffn("b", 6)))
    by_name = table_of(ffn("a", 6), rejected=[Rejection("b", "its weights are quantised")])
    by_param = table_of(ffn("a", 6), rejected=[Rejection("?", "its weights are quantised", params=("b.up",))])
    for table in (by_name, by_param):
        error = refused(document, table)
        assert (type(error), error.where) == (e.RejectedSiteError, 'sites["b"]')
        assert "quantised" in str(error)
        assert isinstance(error, BindingError)
    base = whole(by_name)
    give(base, "a", "hidden", "b", "0", "0")
    error = refused(base, by_name)
    assert (type(error), error.where) == (e.RejectedSiteError, 'sites["a"].axes.hidden.share[0].base')


WIDTHS: list[tuple[str, Site, Site, str, type[PlanError], str]] = [
    ("other width", ffn("r", 6), ffn("s", 6, width=32), "hidden", e.WidthMismatchError, "24 numbers at the reader, 32"),
    ("gated", ffn("r", 6, gated=True), ffn("s", 6), "hidden", e.KindMismatchError, "gated"),
    ("kinds", ffn("r", 6), msa("s", 2, 3, 2), "hidden", e.KindMismatchError, "ffn"),
    ("groups", msa("r", 2, 3, 2, group=2), msa("s", 2, 3, 2), "qk", e.WidthMismatchError, r"2 \(group\)"),
    ("group sizes", msa("r", 2, 3, 2, group=2), msa("s", 2, 3, 2, group=3), "vo", e.WidthMismatchError, r"3 \(group\)"),
    ("rotary", msa("r", 2, 3, 2), msa("s", 2, 3, 2, pair=2), "qk", e.WidthMismatchError, r"2 \(pair\)"),
    ("width inside heads", msa("r", 2, 3, 2), msa("s", 2, 3, 2, width=8), "head", e.WidthMismatchError, "8 at the base"),
    ("head sizes", msa("r", 2, 3, 2), msa("s", 2, 3, 4), "head", e.WidthMismatchError, "2 vo units"),
    ("no second values", msa("r", 2, 3, 2, two_values=True), msa("s", 2, 3, 2), "vo2", e.KindMismatchError, "vo2"),
    ("heads of other kinds", msa("r", 2, 3, 2, two_values=True), msa("s", 2, 3, 2), "head", e.KindMismatchError, "vo2"),
]


@pytest.mark.parametrize(("reader", "base", "axis", "kind", "words"), [w[1:] for w in WIDTHS], ids=[w[0] for w in WIDTHS])
def test_widths_that_do_not_match(reader: Site, base: Site, axis: str, kind: type[PlanError], words: str) -> None:
    table = table_of(reader, base)
    document = whole(table)
    give(document, "r", axis, "s", "0", "0")
    del document["sites"]["s"]
    plan = plan_of(document)
    assert lint_plan(plan) == []
    error = refused(document, table)
    assert (type(error), error.where) == (kind, f'sites["r"].axes.{axis}.share[0].base')
    with pytest.raises(PlanError, match=words):
        resolve(plan, table)


def test_orientation_and_packing_do_not_matter() -> None:
    base = msa("s", 2, 3, 2, packed=True)
    turned = {r: replace(m, shape=m.shape[::-1], axis=1 - m.axis, transposed=not m.transposed) for r, m in base.members.items()}
    table = table_of(msa("r", 2, 3, 2), replace(base, members=turned))
    document = whole(table)
    give(document, "r", "head", "s", "0", "1")
    assert resolve(plan_of(document), table).axes["r"]["qk"].root_site.tolist() == [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("frozen", ["hidden", "head", "qk", "vo"])
@pytest.mark.parametrize("change", ["keep", "share"])
def test_a_frozen_axis_is_not_changed(frozen: str, change: str) -> None:
    a, b = (ffn("a", 6), ffn("b", 6)) if frozen == "hidden" else (msa("a", 2, 3, 2), msa("b", 2, 3, 2))
    table = table_of(replace(a, frozen={frozen: "a norm runs over it"}), b)
    document = whole(table)
    axis = document["sites"]["a"]["axes"][frozen]
    assert resolve(plan_of(document), table).names == ("a", "b")
    if change == "keep":
        axis["keep"] = "1"
        where = f'sites["a"].axes.{frozen}.keep'
    else:
        give(document, "a", frozen, "b", "1", "0")
        where = f'sites["a"].axes.{frozen}.share[0]'
    error = refused(document, table)
    assert (type(error), error.where) == (e.FrozenAxisError, where)
    assert "a norm runs over it" in str(error)


def test_whole_heads_go_where_only_their_inside_is_frozen() -> None:
    table = table_of(msa("a", 2, 3, 2, frozen={"qk": "a norm runs over it"}), msa("b", 2, 3, 2))
    document = whole(table)
    document["sites"]["a"]["axes"]["head"]["keep"] = "1"
    give(document, "a", "head", "b", "1", "0")
    assert resolve(plan_of(document), table).axes["a"]["qk"].pruned.tolist() == [True] * 3 + [False] * 3


def test_sizes_that_only_the_model_knows_are_checked() -> None:
    table = table_of(ffn("a", 6), ffn("b", 8), msa("m", 2, 3, 2), msa("n", 2, 3, 2))
    document = whole(table)
    for name in ("b", "n"):
        del document["sites"][name]
    give(document, "a", "hidden", "b", "0", "8")
    give(document, "m", "qk", "n", "5", "9")
    give(document, "m", "head", "n", "0", "2")
    plan = plan_of(document)
    assert {(error.code, error.where) for error in lint_against(plan, table)} == {
        ("unit-out-of-range", 'sites["a"].axes.hidden.share[0].base_units'),
        ("unit-out-of-range", 'sites["m"].axes.qk.share[0].base_units'),
        ("unit-out-of-range", 'sites["m"].axes.head.share[0].base_units'),
    }


def test_contradictions_inside_heads_show_where_the_plan_does_not_list_the_axis() -> None:
    table = table_of(msa("m", 2, 3, 2), msa("n", 2, 3, 2))
    document = whole(table)
    del document["sites"]["n"]["axes"]["qk"]
    document["sites"]["n"]["axes"]["head"]["keep"] = "0"
    give(document, "m", "qk", "n", "0", "4")
    assert lint_plan(plan_of(document)) == []
    error = refused(document, table)
    assert (type(error), error.where) == (e.PrunedBaseError, 'sites["m"].axes.qk.share[0].base_units')


# Making plans


@few
@given(seeds)
def test_decisions_become_a_plan_that_resolves_to_them(seed: int) -> None:
    case = random_case(seed)
    decisions: dict[str, dict[str, AxisDecision]] = {}
    for name, site in case.document["sites"].items():
        decisions[name] = {
            axis: AxisDecision(
                np.array(read(plan["keep"])[::-1], dtype=np.int64),
                [(s["base"], np.array(read(s["units"])), np.array(read(s["base_units"]))) for s in plan["share"]],
            )
            for axis, plan in site["axes"].items()
        }
    plan = build_plan(case.table, decisions, "random", {"seed": 1, "notes": ["by", "chance"]})
    assert_is_reference(resolve(plan, case.table), case)
    assert parse_plan(dump_plan(plan)) == plan
    assert plan.model_copy(update={"expect": None}) == plan_of(case.document).model_copy(update={"expect": None})
    assert plan.expect is not None
    assert plan.expect.bytes == 4 * plan.expect.parameters


def test_a_plan_of_no_decisions_expects_the_whole_model() -> None:
    table = table_of(ffn("a", 6), msa("m", 2, 3, 2))
    plan = build_plan(table, {}, "still", {})
    assert list(plan.sites) == ["a", "m"]
    assert plan.expect is not None
    assert (plan.expect.parameters, plan.expect.bytes) == (table.parameters, table.bytes)
    half = build_plan(table, {"a": {"hidden": AxisDecision(keep=np.array([5, 0, 1]))}}, "half", {})
    assert half.expect is not None
    assert half.expect.parameters == table.parameters - 3 * sum(table["a"].unit_parameters("hidden"))
    assert half.sites["a"].axes["hidden"].keep == "0-1,5"


def test_decisions_that_the_model_cannot_take() -> None:
    table = table_of(ffn("a", 6))
    with pytest.raises(BindingError, match="no site 'b'"):
        build_plan(table, {"b": {"hidden": AxisDecision()}}, "x", {})
    with pytest.raises(e.UnknownKeyError, match="no such axis") as caught:
        build_plan(table, {"a": {"qk": AxisDecision()}}, "x", {})
    assert caught.value.where == 'sites["a"].axes.qk'
    with pytest.raises(e.UnitOutOfRangeError):
        build_plan(table, {"a": {"hidden": AxisDecision(keep=np.array([6]))}}, "x", {})
