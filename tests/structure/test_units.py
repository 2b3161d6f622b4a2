from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inarch.structure.units import MAX_UNITS, DuplicateIndexError, format_indices, parse_sequence, parse_set

index = st.integers(0, 2**31 - 1)
near = st.integers(0, 40)


def slow_parse(text: str) -> list[int]:
    """The meaning of a range string, one index at a time."""
    units: list[int] = []
    for item in text.split(",") if text else []:
        if re.fullmatch("(0|[1-9][0-9]*)(-(0|[1-9][0-9]*))?", item) is None:
            raise ValueError(item)
        first, dash, last = item.partition("-")
        if dash and int(last) <= int(first):
            raise ValueError(item)
        units += range(int(first), int(last or first) + 1)
    if len(set(units)) < len(units):
        raise ValueError("twice")
    return units


@settings(deadline=None)
@given(st.lists(st.one_of(index, near), unique=True))
def test_a_sequence_comes_back(units: list[int]) -> None:
    parsed = parse_sequence(format_indices(units))
    assert parsed.tolist() == units
    assert parsed.dtype == np.int64


@settings(deadline=None)
@given(st.sets(near))
def test_a_set_comes_back_in_its_shortest_spelling(units: set[int]) -> None:
    text = format_indices(sorted(units))
    assert parse_set(text).tolist() == sorted(units)
    # No two neighbouring ranges could be one.
    runs = sum(u - 1 not in units for u in units)
    assert len(text.split(",")) == max(runs, 1)


@settings(deadline=None)
@given(st.lists(st.tuples(near, near)))
def test_ranges_mean_what_they_say(ranges: list[tuple[int, int]]) -> None:
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)
    try:
        wanted = slow_parse(text)
    except ValueError:
        with pytest.raises(ValueError, match=r"twice|ascending"):
            parse_sequence(text)
    else:
        assert parse_sequence(text).tolist() == wanted
        assert format_indices(parse_sequence(text)) == format_indices(wanted)


@settings(deadline=None)
@given(st.text(alphabet="0123-, +x\u0663\n", max_size=12))
def test_any_text_is_read_as_the_slow_reader_reads_it(text: str) -> None:
    try:
        wanted = slow_parse(text)
    except ValueError:
        with pytest.raises(ValueError, match=r"twice|ascending|neither|larger|more than"):
            parse_sequence(text)
    else:
        if len(wanted) <= MAX_UNITS and max(wanted, default=0) < 2**31:
            assert parse_sequence(text).tolist() == wanted


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (" 1", "neither"),
        ("1,", "neither"),
        (",1", "neither"),
        ("01", "neither"),
        ("-1", "neither"),
        ("1-2-3", "neither"),
        ("1\n", "neither"),
        ("+1", "neither"),
        ("3-1", "ascending"),
        ("3-3", "ascending"),
        ("2147483648", "larger"),
        ("9" * 5000, "larger"),
        ("0-9999999999999", "larger"),
        (f"0-{MAX_UNITS}", "more than any axis has"),
        # 1,000 ranges, each allowed, in all a thousand million units: refused before they take memory.
        (",".join(f"{k * MAX_UNITS}-{(k + 1) * MAX_UNITS - 1}" for k in range(1000)), "more than any axis has"),
    ],
)
def test_what_is_no_range_string(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        parse_sequence(text)
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize(("text", "index"), [("1,1", 1), ("0-5,3", 3), ("9,2-4,3-8,1", 3), ("0-9,3-4,6", 3), ("7-8,0-7", 7)])
def test_an_index_given_twice_is_named(text: str, index: int) -> None:
    with pytest.raises(DuplicateIndexError, match="twice") as caught:
        parse_sequence(text)
    assert caught.value.index == index


def test_a_set_ascends() -> None:
    assert parse_sequence("7-9,3").tolist() == [7, 8, 9, 3]
    with pytest.raises(ValueError, match="ascend"):
        parse_set("7-9,3")
    assert parse_set("").tolist() == []


def test_the_largest_index_is_read() -> None:
    assert parse_set(str(2**31 - 1)).tolist() == [2**31 - 1]
