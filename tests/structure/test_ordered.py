"""Factors that something computed runs along: units of these may go, but not change places."""

from __future__ import annotations

import pytest

from inarch.frontends.canonicalize import canonicalize
from inarch.structure.discover import discover

from tests.zoo import build


@pytest.mark.parametrize(
    ("form", "factors"),
    [("t5", {"head"}), ("alibi", {"head"}), ("swin_v2", {"head"}), ("rotary_half", {"qk"}), ("encoder_relu", set())],
)
def test_what_is_computed_keeps_units_in_their_places(form: str, factors: set[str]) -> None:
    table = discover(canonicalize(build(form, 0).model)).table
    found = [site.ordered for site in table.sites if site.kind == "msa"]
    assert found
    assert all(ordered == factors for ordered in found)
    assert not any(site.ordered for site in table.sites if site.kind == "ffn")
