from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from inarch.structure import errors as e
from inarch.structure.errors import InarchError, PlanError
from inarch.structure.plan import (
    AxisPlan,
    Plan,
    SharePlan,
    dump_plan,
    json_path,
    lint_plan,
    lint_text,
    load_plan,
    parse_plan,
    plan_hash,
    plan_schema,
    save_plan,
    schema_text,
)

from tests.structure.plan_cases import Case, ffn, msa, random_case, read, spell, table_of, text_of
from tests.structure.plan_cases import document_of as whole

seeds = st.integers(0, 2**31)
few = settings(max_examples=25, deadline=None)

Broken = tuple[type[PlanError], set[str]]
"""The error that a mutation must raise, and the paths that it may name."""

SCHEMA = Path(__file__).parents[2] / "structure" / "plan.schema.json"


def small() -> dict[str, Any]:
    """Two FFNs of 6 and 8 units and two MSAs of 2 heads, 3 qk and 2 vo units a head; nothing decided."""
    return whole(table_of(ffn("a", 6), msa("m", 2, 3, 2), ffn("b", 8), msa("n", 2, 3, 2)))


def refused(document: dict[str, Any] | str | bytes) -> PlanError:
    text = document if isinstance(document, (str, bytes)) else text_of(document)
    with pytest.raises(PlanError) as caught:
        parse_plan(text)
    assert type(caught.value) in {type(error) for error in lint_text(text)}
    return caught.value


def give(document: dict[str, Any], site: str, axis: str, base: str, units: str, base_units: str) -> None:
    document["sites"][site]["axes"][axis]["share"].append({"base": base, "units": units, "base_units": base_units})


# Roundtrip


@few
@given(seeds)
def test_a_valid_plan_comes_back(seed: int) -> None:
    case = random_case(seed)
    plan = parse_plan(text_of(case.document))
    text = dump_plan(plan)
    assert parse_plan(text) == plan
    assert dump_plan(parse_plan(text)) == text
    assert plan_hash(parse_plan(text.encode())) == plan_hash(plan)
    assert lint_plan(plan) == []
    for name, site in case.document["sites"].items():
        for axis, decisions in site["axes"].items():
            written = plan.sites[name].axes[axis]
            assert written.kept.tolist() == read(decisions["keep"]) == read(written.keep)
            for share, entry in zip(written.share, decisions["share"], strict=True):
                assert share.reader_indices.tolist() == read(entry["units"])
                assert share.base_indices.tolist() == read(entry["base_units"])


def test_one_spelling() -> None:
    document = small()
    document["sites"]["a"]["axes"]["hidden"]["keep"] = "0,1,2-3,5"
    give(document, "a", "hidden", "b", "3,1,2", "7,4,5")
    text = dump_plan(parse_plan(text_of(document)))
    written = json.loads(text)
    assert list(written) == ["format", "model", "sites", "expect", "provenance"]
    assert list(written["sites"]) == ["a", "m", "b", "n"]
    hidden = {"size": 6, "keep": "0-3,5", "share": [{"base": "b", "units": "3,1-2", "base_units": "7,4-5"}]}
    assert written["sites"]["a"]["axes"]["hidden"] == hidden
    assert "share" not in written["sites"]["b"]["axes"]["hidden"]
    assert "heads" not in written["sites"]["b"]
    assert '\n    "up": {"param": "a.up", "axis": 0, "ranges": "0-5", "transposed": true},\n' in text
    assert text.endswith("\n}\n")


def test_the_order_of_keys_does_not_matter_but_that_of_sites_does() -> None:
    document = small()
    plan = parse_plan(text_of(document))
    mixed = {key: document[key] for key in reversed(document)}
    mixed["sites"] = {n: {key: site[key] for key in reversed(site)} for n, site in document["sites"].items()}
    for site in mixed["sites"].values():
        site["members"] = {role: site["members"][role] for role in reversed(site["members"])}
    mixed["provenance"] = {key: document["provenance"][key] for key in reversed(document["provenance"])}
    assert parse_plan(text_of(mixed)) == plan
    assert dump_plan(parse_plan(text_of(mixed))) == dump_plan(plan)
    turned = {**document, "sites": {n: document["sites"][n] for n in reversed(document["sites"])}}
    assert parse_plan(text_of(turned)) != plan
    assert plan_hash(parse_plan(text_of(turned))) != plan_hash(plan)


def test_what_may_be_left_out() -> None:
    bare = {
        "format": "inarch.plan/1",
        "model": small()["model"],
        "sites": {"x": {"kind": "ffn"}, "y": {"kind": "msa", "heads": 3}},
    }
    plan = parse_plan(text_of(bare))
    assert plan.expect is None
    assert plan.provenance == {}
    assert plan.sites["x"].axes == {}
    assert parse_plan(dump_plan(plan)) == plan
    gone = small()
    gone["sites"]["a"]["members"]["gate"] = None
    assert parse_plan(dump_plan(parse_plan(text_of(gone)))).sites["a"].members["gate"] is None


def test_plans_are_frozen() -> None:
    plan = parse_plan(text_of(small()))
    axis = plan.sites["a"].axes["hidden"]
    with pytest.raises(ValidationError, match="frozen"):
        setattr(axis, "keep", "0")  # noqa: B010 - the checkers know that it is frozen
    axis.kept[0] = 5
    assert axis.kept.tolist() == [0, 1, 2, 3, 4, 5]
    assert plan == parse_plan(text_of(small()))
    assert axis.model_copy(update={"keep": "0"}).kept.tolist() == [0]
    assert AxisPlan(size=3, keep="0,1", share=(SharePlan(base="b", units="1", base_units="2"),)).keep == "0-1"


# Malformed text


@pytest.mark.parametrize(
    ("text", "kind", "where", "words"),
    [
        ("", e.PlanSyntaxError, None, "line 1"),
        ("{", e.PlanSyntaxError, None, "not JSON"),
        ('{"format": "inarch.plan/1"} x', e.PlanSyntaxError, None, "Extra data"),
        (b'{"format": "\xff"}', e.PlanSyntaxError, None, "UTF-8"),
        (b"\xef\xbb\xbf{}", e.PlanSyntaxError, None, "BOM"),
        ("[" * 100_000, e.PlanSyntaxError, None, "deeply"),
        ("[" * 200 + "]" * 200, e.PlanSyntaxError, "[0]" * 65, "deeply"),
        ('{"expect": {"bytes": NaN}}', e.PlanSyntaxError, "expect.bytes", "NaN"),
        ('{"provenance": {"loss": [1, -Infinity]}}', e.PlanSyntaxError, "provenance.loss[1]", "Infinity"),
        ('{"provenance": {"loss": 1e999}}', e.PlanSyntaxError, "provenance.loss", "1e999"),
        ('{"provenance": {"n": ' + "9" * 5000 + "}}", e.PlanSyntaxError, None, "not JSON"),
        (r'{"model": {"name": "\ud800"}}', e.PlanSyntaxError, "model.name", "surrogate"),
        (r'{"provenance": {"\udfff": 1}}', e.PlanSyntaxError, "provenance", "surrogate"),
        ('{"format": 1, "format": 1}', e.DuplicateKeyError, "format", "twice"),
        ('{"sites": {"a.b": {"x": 1, "y": 2, "x": 3}}}', e.DuplicateKeyError, 'sites["a.b"].x', "twice"),
        ('{"sites": {"s": {}, "s": {}}}', e.DuplicateKeyError, 'sites["s"]', "twice"),
        ("[]", e.WrongTypeError, None, "object"),
        ("{}", e.PlanFormatError, "format", "no inarch plan"),
        ('{"format": "inarch.plan/2"}', e.PlanFormatError, "format", "inarch.plan/1"),
        ('{"format": 1}', e.PlanFormatError, "format", "inarch.plan/1"),
    ],
)
def test_text_that_is_no_plan(text: str | bytes, kind: type[PlanError], where: str | None, words: str) -> None:
    error = refused(text)
    assert type(error) is kind
    assert error.where == where
    assert words in str(error)


@few
@given(st.binary(max_size=60))
def test_any_bytes_are_refused_in_order(data: bytes) -> None:
    assert isinstance(refused(data), InarchError)


@few
@given(seeds, st.integers(0, 10**9))
def test_a_plan_cut_off_is_refused(seed: int, at: int) -> None:
    text = text_of(random_case(seed).document)
    assert type(refused(text[: at % len(text)])) is e.PlanSyntaxError


def test_errors_name_their_file(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text('{"format": 1}')
    with pytest.raises(e.PlanFormatError) as caught:
        load_plan(path)
    assert str(caught.value).startswith(f"{path}: format: ")
    assert (caught.value.source, caught.value.where) == (str(path), "format")
    with pytest.raises(e.PlanFileError, match="No such file"):
        load_plan(tmp_path / "none.json")
    with pytest.raises(e.PlanFileError, match="directory"):
        load_plan(tmp_path)


# Keys, types and values, one mistake in a valid plan

Place = tuple[str | int, ...]


def at(document: Any, place: Place) -> Any:
    for part in place:
        document = document[part]
    return document


def places(value: Any, here: Place = ()) -> list[tuple[Place, Any]]:
    """Every value of a document with its place, but not what lies in provenance, where anything may stand."""
    found = [(here, value)]
    if here == ("provenance",):
        return found
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        found += places(item, (*here, key))
    return found


NAMED_BY_THE_USER = {("sites",), ("provenance",)}


@few
@given(seeds, st.integers(0, 10**9), st.sampled_from(["surprise", "Keep", "not a word", ""]))
def test_an_unknown_key(seed: int, choice: int, key: str) -> None:
    document = random_case(seed).document
    objects = [p for p, value in places(document) if isinstance(value, dict) and p not in NAMED_BY_THE_USER]
    place = objects[choice % len(objects)]
    member = len(place) == 3 and place[2] == "members"
    at(document, place)[key] = None if member else {"size": 1, "keep": ""} if len(place) == 3 else 1
    error = refused(document)
    assert type(error) is e.UnknownKeyError
    assert error.where == json_path(*place, key)
    assert error.hint


WRONG: tuple[Any, ...] = (None, True, 3, 1.0, "text", [], {}, [1])


@few
@given(seeds, st.integers(0, 10**9), st.sampled_from(WRONG))
def test_a_wrong_type(seed: int, choice: int, wrong: Any) -> None:
    document = random_case(seed).document
    found = [(p, v) for p, v in places(document) if p and p != ("format",) and type(v) is not type(wrong)]
    # Null stands for an absent expect, heads or member.
    found = [(p, v) for p, v in found if not (wrong is None and (p[-1] in ("heads", "expect") or p[-2:-1] == ("members",)))]
    place, _ = found[choice % len(found)]
    at(document, place[:-1])[place[-1]] = wrong
    error = refused(document)
    assert type(error) is e.WrongTypeError
    assert error.where == json_path(*place)


@few
@given(seeds, st.integers(0, 10**9))
def test_a_missing_key(seed: int, choice: int) -> None:
    document = random_case(seed).document
    optional = {"heads", "members", "axes", "share", "expect", "provenance"}
    keys = [p for p, _ in places(document) if p and isinstance(p[-1], str) and p[-1] not in optional and p[:-1] != ("sites",)]
    keys = [p for p in keys if p != ("format",) and p[-2:-1] not in (("members",), ("axes",))]
    place = keys[choice % len(keys)]
    del at(document, place[:-1])[place[-1]]
    error = refused(document)
    assert type(error) is e.MissingKeyError
    assert error.where == json_path(*place)


@few
@given(seeds, st.integers(0, 10**9), st.sampled_from(["3-1", "1-1", "x", "0, 1", "-1", "00", "9" * 30]))
def test_no_range_string(seed: int, choice: int, wrong: str) -> None:
    document = random_case(seed).document
    strings = [p for p, _ in places(document) if p and p[-1] in ("keep", "units", "base_units", "ranges")]
    place = strings[choice % len(strings)]
    at(document, place[:-1])[place[-1]] = wrong
    error = refused(document)
    assert type(error) is e.InvalidRangeError
    assert error.where == json_path(*place)


@pytest.mark.parametrize(
    ("place", "value", "kind"),
    [
        (("model", "fingerprint"), "abc", e.InvalidValueError),
        (("model", "fingerprint"), "A" * 64, e.InvalidValueError),
        (("sites", "a", "kind"), "mlp", e.InvalidValueError),
        (("sites", "a", "heads"), 2, e.InvalidValueError),
        (("sites", "m", "heads"), 0, e.InvalidValueError),
        (("sites", "m", "heads"), None, e.MissingKeyError),
        (("sites", "m", "axes", "head", "size"), 4, e.InvalidValueError),
        (("sites", "m", "axes", "qk", "size"), 7, e.InvalidValueError),
        (("sites", "a", "axes", "hidden", "size"), 0, e.InvalidValueError),
        (("sites", "a", "axes", "hidden", "size"), 2**40, e.InvalidValueError),
        (("sites", "a", "members", "up", "axis"), -1, e.InvalidValueError),
        (("sites", "a", "members", "up", "param"), "", e.InvalidValueError),
        (("sites", "a", "axes", "hidden", "keep"), "3,1", e.InvalidRangeError),
        (("expect", "bytes"), -1, e.InvalidValueError),
        (("sites", "a", "axes", "qk"), {"size": 1, "keep": "0"}, e.UnknownKeyError),
        (("sites", "m", "axes", "hidden"), {"size": 2, "keep": "0"}, e.UnknownKeyError),
        (("sites", "a", "members", "q"), None, e.UnknownKeyError),
        (("sites", "m", "members", "up"), None, e.UnknownKeyError),
        (("[key]",), 1, e.UnknownKeyError),
        (("sites", "a", "axes", "[key]"), {"size": 1, "keep": "0"}, e.UnknownKeyError),
        (("sites", "[key]"), 1, e.WrongTypeError),
    ],
)
def test_a_value_that_is_not_allowed(place: Place, value: Any, kind: type[PlanError]) -> None:
    document = small()
    at(document, place[:-1])[place[-1]] = value
    error = refused(document)
    assert type(error) is kind
    assert error.where == json_path(*place)


def test_members_that_a_site_may_have() -> None:
    document = small()
    document["sites"]["m"]["members"] |= {"rider:position bias": None, "q_bias": None, "v2": None, "o2": None}
    document["sites"]["a"]["members"] |= {"gate": None, "gate_bias": None}
    assert lint_text(text_of(document)) == []


def test_a_plan_of_absurd_size_takes_no_memory() -> None:
    document = small()
    axis = {"size": 2**20, "keep": "0-1"}
    document["sites"] = {f"s{k}": {"kind": "ffn", "axes": {"hidden": axis}} for k in range(65)}
    error = refused(document)
    assert type(error) is e.InvalidValueError
    assert error.where == "sites"


def test_a_base_of_absurd_size_takes_no_memory() -> None:
    document = small()
    share = {"base": "elsewhere", "units": "0", "base_units": str(2**31 - 1)}
    document["sites"] = {"s": {"kind": "ffn", "axes": {"hidden": {"size": 4, "keep": "0-3", "share": [share]}}}}
    error = refused(document)
    assert type(error) is e.UnitOutOfRangeError
    assert error.where == 'sites["s"].axes.hidden.share[0].base_units'


# Contradictions, one mutation of each kind in a random valid plan


def pick(rng: np.random.Generator, choices: list[Any]) -> Any:
    return choices[int(rng.integers(len(choices)))]


def names_of(case: Case, axis: str) -> list[str]:
    return [name for name, site in case.document["sites"].items() if axis in site["axes"]]


def path_of(site: str, axis: str, number: int, key: str) -> str:
    return json_path("sites", site, "axes", axis, "share", number, key)


def reading(case: Case, axis: str, site: str, unit: int) -> set[str]:
    """Paths of the ``base_units`` that name a unit of an inner axis, directly or with its whole head."""
    found = set()
    for reader, named, number, entry in case.entries():
        if entry["base"] != site:
            continue
        per_head = case.table[site].axes[axis].per_head if axis in case.table[site].axes else 1
        if (named == axis and unit in read(entry["base_units"])) or (
            named == "head" and axis in ("qk", "vo", "vo2") and unit // per_head in read(entry["base_units"])
        ):
            found.add(path_of(reader, named, number, "base_units"))
    return found


def keep_out_of_range(case: Case, rng: np.random.Generator) -> Broken:
    site = pick(rng, list(case.document["sites"]))
    axis = pick(rng, list(case.document["sites"][site]["axes"]))
    plan = case.document["sites"][site]["axes"][axis]
    plan["keep"] = spell([*read(plan["keep"]), plan["size"] + int(rng.integers(5))])
    return e.UnitOutOfRangeError, {json_path("sites", site, "axes", axis, "keep")}


def share_out_of_range(case: Case, rng: np.random.Generator) -> Broken:
    site, axis, number, entry = pick(rng, case.entries())
    key = pick(rng, ["units", "base_units"])
    units = read(entry[key])
    size = case.document["sites"][site if key == "units" else entry["base"]]["axes"][axis]["size"]
    units[int(rng.integers(len(units)))] = size + int(rng.integers(3))
    entry[key] = spell(units)
    return e.UnitOutOfRangeError, {path_of(site, axis, number, key)}


def pruned_and_shared(case: Case, rng: np.random.Generator) -> Broken:
    site, axis, number, entry = pick(rng, case.entries())
    plan = case.document["sites"][site]["axes"][axis]
    lost = pick(rng, read(entry["units"]))
    plan["keep"] = spell(u for u in read(plan["keep"]) if u != lost)
    return e.PrunedAndSharedError, {path_of(site, axis, number, "units")}


def shared_in_a_pruned_head(case: Case, rng: np.random.Generator) -> Broken | None:
    found = case.entries("qk")
    if not found:
        return None
    site, _, _, entry = pick(rng, found)
    axes, per_head = case.document["sites"][site]["axes"], case.table[site].axes["qk"].per_head
    head = pick(rng, read(entry["units"])) // per_head
    # A head that nobody reads whole, so that this is the first thing that is wrong.
    if any(axis == "head" for _, axis, _, other in case.entries() if other["base"] == site):
        return None
    axes["head"]["keep"] = spell(u for u in read(axes["head"]["keep"]) if u != head)
    wrong = {
        path_of(site, "qk", n, "units")
        for s, _, n, other in case.entries("qk")
        if s == site and any(u // per_head == head for u in read(other["units"]))
    }
    return e.PrunedAndSharedError, wrong


def shared_twice(case: Case, rng: np.random.Generator) -> Broken:
    site, axis, _, entry = pick(rng, case.entries())
    unit = pick(rng, read(entry["units"]))
    number = len(case.share(site, axis))
    base = case.document["sites"][entry["base"]]["axes"][axis]
    case.share(site, axis).append({"base": entry["base"], "units": str(unit), "base_units": str(int(rng.integers(base["size"])))})
    return e.SharedTwiceError, {path_of(site, axis, number, "units")}


def shared_twice_in_one_entry(case: Case, rng: np.random.Generator) -> Broken:
    site, axis, number, entry = pick(rng, case.entries())
    unit = pick(rng, read(entry["units"]))
    entry["units"] += f",{unit}"
    return e.SharedTwiceError, {path_of(site, axis, number, "units")}


def shared_with_its_head_and_alone(case: Case, rng: np.random.Generator) -> Broken | None:
    found = case.entries("head")
    if not found:
        return None
    site, _, _, entry = pick(rng, found)
    per_head = case.table[site].axes["qk"].per_head
    unit = pick(rng, read(entry["units"])) * per_head + int(rng.integers(per_head))
    number = len(case.share(site, "qk"))
    case.share(site, "qk").append({"base": entry["base"], "units": str(unit), "base_units": "0"})
    return e.SharedTwiceError, {path_of(site, "qk", number, "units")}


def circle(case: Case, rng: np.random.Generator) -> Broken | None:
    found = [x for x in case.entries() if x[1] in case.parent]
    if not found:
        return None
    site, axis, _, entry = pick(rng, found)
    start = (site, pick(rng, read(entry["units"])))
    chain = [start]
    while chain[-1] in case.parent[axis]:
        chain.append(case.parent[axis][chain[-1]])
    end_site, end_unit = chain[-1]
    number = len(case.share(end_site, axis))
    allowed = {path_of(end_site, axis, number, "base_units")}
    for node, base in pairwise(chain):
        allowed |= {p for p in reading(case, axis, *base) if p.startswith(json_path("sites", node[0]) + ".")}
    case.share(end_site, axis).append({"base": site, "units": str(end_unit), "base_units": str(start[1])})
    return e.CyclicSharingError, allowed


def pruned_base(case: Case, rng: np.random.Generator) -> Broken | None:
    roots = sorted({(axis, *n) for axis, parent in case.parent.items() for n in parent.values() if n not in parent})
    if not roots:
        return None
    axis, site, unit = pick(rng, roots)
    plan = case.document["sites"][site]["axes"][axis]
    plan["keep"] = spell(u for u in read(plan["keep"]) if u != unit)
    return e.PrunedBaseError, reading(case, axis, site, unit)


def base_taken_twice_in_one_entry(case: Case, rng: np.random.Generator) -> Broken:
    site, axis, number, entry = pick(rng, case.entries())
    units = read(entry["base_units"])
    units.insert(int(rng.integers(len(units) + 1)), pick(rng, units))
    entry["base_units"] = spell(units)
    return e.BaseTakenTwiceError, {path_of(site, axis, number, "base_units")}


def free_units(case: Case, axis: str, site: str) -> list[int]:
    """Units of a site that are kept, private, and read by nobody."""
    taken = {*case.parent[axis], *case.parent[axis].values(), *case.pruned[axis]}
    return [u for u in range(case.document["sites"][site]["axes"][axis]["size"]) if (site, u) not in taken]


def base_taken_twice(case: Case, rng: np.random.Generator) -> Broken | None:
    """A free unit of a reader takes a unit somewhere in the chain of another of the reader's units."""
    found = []
    for axis, parent in case.parent.items():
        for site, unit in parent:
            node = (site, unit)
            while node in parent:
                node = parent[node]
                if node[0] != site:
                    found += [(axis, site, unit, free, node) for free in free_units(case, axis, site)]
    if not found:
        return None
    axis, site, unit, free, (base, base_unit) = pick(rng, found)
    number = len(case.share(site, axis))
    case.share(site, axis).append({"base": base, "units": str(free), "base_units": str(base_unit)})
    mine = case.root(axis, (site, unit))
    both = {path_of(site, axis, number, "base_units")}
    for s, u in case.parent[axis]:
        if s == site and case.root(axis, (s, u)) == mine:
            both |= {p for p in reading(case, axis, *case.parent[axis][s, u]) if p.startswith(json_path("sites", site) + ".")}
    return e.BaseTakenTwiceError, both


def shares_with_itself(case: Case, rng: np.random.Generator) -> Broken:
    site, axis, number, entry = pick(rng, case.entries())
    entry["base"] = site
    return e.BaseTakenTwiceError, {path_of(site, axis, number, "base")}


def unequal_lengths(case: Case, rng: np.random.Generator) -> Broken:
    site, axis, number, entry = pick(rng, case.entries())
    key = pick(rng, ["units", "base_units"])
    entry[key] = spell(read(entry[key])[1:])
    return e.PairingLengthError, {path_of(site, axis, number, "base_units")}


def other_kind(case: Case, rng: np.random.Generator) -> Broken:
    site, axis, number, entry = pick(rng, case.entries())
    kind = case.document["sites"][site]["kind"]
    entry["base"] = pick(rng, [n for n, other in case.document["sites"].items() if other["kind"] != kind])
    return e.KindMismatchError, {path_of(site, axis, number, "base")}


MUTATIONS: list[Callable[[Case, np.random.Generator], Broken | None]] = [
    keep_out_of_range,
    share_out_of_range,
    pruned_and_shared,
    shared_in_a_pruned_head,
    shared_twice,
    shared_twice_in_one_entry,
    shared_with_its_head_and_alone,
    circle,
    pruned_base,
    base_taken_twice_in_one_entry,
    base_taken_twice,
    shares_with_itself,
    unequal_lengths,
    other_kind,
]


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda m: m.__name__)
@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_a_contradiction_has_its_own_error(mutate: Callable[[Case, np.random.Generator], Broken | None], seed: int) -> None:
    rng = np.random.default_rng(seed)
    for attempt in range(20):
        case = random_case(seed + attempt)
        broken = mutate(case, rng) if case.entries() else None
        if broken is not None:
            break
    else:
        raise AssertionError("no random plan that this mutation can break")
    kind, where = broken
    error = refused(case.document)
    assert type(error) is kind
    assert error.where in where
    assert error.code == kind.code


def test_lint_finds_every_mistake() -> None:
    document = small()
    document["sites"]["a"]["axes"]["hidden"]["keep"] = "0-8"
    give(document, "a", "hidden", "b", "0-1", "0")
    give(document, "a", "hidden", "m", "2", "0")
    document["sites"]["n"]["axes"]["head"]["keep"] = "0"
    give(document, "m", "head", "n", "0", "1")
    document["sites"]["b"]["members"]["q"] = None
    found = {(error.code, error.where) for error in lint_text(text_of(document))}
    assert found == {
        ("unknown-key", 'sites["b"].members.q'),
        ("unit-out-of-range", 'sites["a"].axes.hidden.keep'),
        ("pairing-length", 'sites["a"].axes.hidden.share[0].base_units'),
        ("kind-mismatch", 'sites["a"].axes.hidden.share[1].base'),
        ("pruned-base", 'sites["m"].axes.head.share[0].base_units'),
    }
    shape = text_of({**document, "x": 1, "model": 2})
    assert [error.where for error in lint_text(shape)] == ["model", "x"]


def test_a_circle_is_drawn() -> None:
    document = small()
    give(document, "a", "hidden", "b", "1", "7")
    give(document, "b", "hidden", "c", "7", "0")
    document["sites"]["c"] = copy.deepcopy(document["sites"]["a"])
    document["sites"]["c"]["axes"]["hidden"]["share"] = [{"base": "a", "units": "0", "base_units": "1"}]
    error = refused(document)
    assert type(error) is e.CyclicSharingError
    assert "a[1] -> b[7] -> c[0] -> a[1]" in str(error)


def test_a_base_that_only_the_model_has_is_taken_on_trust() -> None:
    document = small()
    give(document, "a", "hidden", "elsewhere", "0-2", "5-7")
    assert lint_text(text_of(document)) == []
    give(document, "a", "hidden", "elsewhere", "3", "6")
    error = refused(document)
    assert type(error) is e.BaseTakenTwiceError
    assert error.where == 'sites["a"].axes.hidden.share[1].base_units'


def test_heads_of_other_sizes_do_not_share_whole() -> None:
    document = whole(table_of(msa("m", 2, 3, 2), msa("n", 4, 3, 5)))
    give(document, "m", "head", "n", "0", "2")
    error = refused(document)
    assert type(error) is e.WidthMismatchError
    assert error.where == 'sites["m"].axes.head.share[0].base'


def test_a_head_shared_whole_keeps_its_units() -> None:
    document = small()
    give(document, "m", "head", "n", "0", "1")
    document["sites"]["m"]["axes"]["qk"]["keep"] = "1-5"
    error = refused(document)
    assert type(error) is e.PrunedAndSharedError
    assert error.where == 'sites["m"].axes.head.share[0].units'


# Paths, schema, files


def test_json_path() -> None:
    wanted = 'sites["text.layer.3.ffn"].axes.hidden.share[0].base_units'
    assert json_path("sites", "text.layer.3.ffn", "axes", "hidden", "share", 0, "base_units") == wanted
    assert json_path("sites", "ffn", "members", "rider:x") == 'sites["ffn"].members["rider:x"]'
    assert json_path("sites", 'say "hé"') == 'sites["say \\"hé\\""]'


def test_the_schema_in_the_repository_is_current() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == schema_text(), (
        "run: python -m inarch.structure.plan > structure/plan.schema.json"
    )


def test_the_schema_says_what_the_types_say() -> None:
    schema: Any = plan_schema()
    assert schema["additionalProperties"] is False
    assert sorted(schema["required"]) == ["format", "model", "sites"]
    assert set(schema["properties"]) == set(Plan.model_fields)
    assert all(part["additionalProperties"] is False for part in schema["$defs"].values() if "properties" in part)


def test_every_kind_of_error_has_its_own_code() -> None:
    kinds = [k for k in vars(e).values() if isinstance(k, type) and issubclass(k, PlanError)]
    assert len(kinds) > 20
    assert len({kind.code for kind in kinds}) == len(kinds)


def test_a_plan_is_saved_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = parse_plan(text_of(small()))
    path = tmp_path / "plan.json"
    save_plan(plan, path)
    assert load_plan(path) == plan
    before = path.read_bytes()
    assert before == dump_plan(plan).encode()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(e.PlanFileError, match="No space left"):
        save_plan(plan.model_copy(update={"provenance": {"other": 1}}), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    with pytest.raises(e.PlanFileError, match="cannot be written"):
        save_plan(plan, tmp_path / "no such folder" / "plan.json")
