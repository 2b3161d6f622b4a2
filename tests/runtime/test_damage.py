"""Damage: how far a plan moves outputs and weights, and when that is said loudly."""

from __future__ import annotations

import json

import numpy as np
import pytest

from inarch.compiler.reference import apply_by_values
from inarch.compiler.values import SiteValues
from inarch.runtime.damage import DamageReport, measure_damage
from inarch.runtime.inputs import Case, make_cases
from inarch.runtime.session import Session

from tests.runtime.handmade import HIDDEN, WIDTH, Handmade, array_of, encoder, masked, plan_of, replace_param


@pytest.fixture(scope="module")
def built() -> Handmade:
    return encoder()


@pytest.fixture(scope="module")
def cases(built: Handmade) -> tuple[Case, ...]:
    with Session(built.model) as session:
        return make_cases(built.model, session).cases


def damage(built: Handmade, cases: tuple[Case, ...], gone: list[int]) -> DamageReport:
    resolved = plan_of(built.table, pruned={("layer.0.ffn", "hidden"): gone})
    reference = apply_by_values(built.model, built.table, resolved, built.uses)
    values = SiteValues(built.model, built.table, resolved)
    return measure_damage(built.model, reference, cases, values=values, sites=list(built.table.by_name))


def test_a_plan_that_does_nothing_does_no_damage(built: Handmade, cases: tuple[Case, ...]) -> None:
    report = damage(built, cases, [])
    assert not report.ruined
    assert report.warning is None
    assert [item.relative for item in report.outputs] == [0.0, 0.0]
    assert [item.cosine for item in report.outputs] == pytest.approx([1.0, 1.0])
    assert set(report.sites.values()) == {0.0}


def test_a_plan_that_ruins_the_model_is_said_loudly(built: Handmade, cases: tuple[Case, ...]) -> None:
    report = damage(built, cases, list(range(HIDDEN)))
    assert report.ruined
    assert "this plan changes what the model computes" in str(report.warning)
    assert report.sites["layer.0.ffn"] == 1.0
    assert report.sites["layer.1.ffn"] == report.sites["layer.0.attn"] == 0.0
    assert list(report.sites) == [site.name for site in built.table.sites]
    json.dumps(report.to_json(), allow_nan=False)


def test_relative_error_and_cosine_are_what_they_are_called(built: Handmade, cases: tuple[Case, ...]) -> None:
    name = "layer.1.ffn.down.b"
    moved = replace_param(built.model, name, array_of(built.model, name) + np.float32(0.25))
    report = measure_damage(built.model, moved, cases)
    with Session(built.model) as session:
        before = np.concatenate([session.run(case.feeds)["hidden"].reshape(-1) for case in cases]).astype(np.float64)
    hidden = report.outputs[0]
    assert hidden.relative == pytest.approx(0.25 * len(before) ** 0.5 / np.linalg.norm(before), rel=1e-4)
    after = before + 0.25
    assert hidden.cosine == pytest.approx(before @ after / np.linalg.norm(before) / np.linalg.norm(after), rel=1e-5)
    assert report.sites == {}


def test_what_a_mask_writes_hides_no_damage() -> None:
    case = Case("masked", {"x": np.array([-4.0, 200.0, -2.0], np.float32)})
    report = measure_damage(masked(1.0, -1e9), masked(0.5, -1e9), [case])
    assert report.outputs[0].relative == pytest.approx(0.5)
    assert report.ruined


def test_outputs_that_stop_being_finite_are_loud(built: Handmade, cases: tuple[Case, ...]) -> None:
    broken = replace_param(built.model, "layer.1.ffn.down.b", np.full(WIDTH, np.inf, np.float32))
    report = measure_damage(built.model, broken, cases)
    assert report.ruined
    json.dumps(report.to_json(), allow_nan=False)
