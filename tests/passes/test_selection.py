"""Selections: which indices a block takes of an axis, against loops over heads and units."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inarch.passes.selection import Factors, Selection, fixed_part
from inarch.structure.dims import Dim, dim
from inarch.structure.errors import LoweringError
from inarch.structure.lowered import Block, Group


def selection(heads: list[int], units: list[list[int]], per_head: int, total: int) -> Selection:
    """Units are given in-head, one row a head of the group."""
    flat = np.array(units, np.int64) + np.array(heads)[:, None] * per_head
    return Selection.of(Group(tuple(heads), {}), {"qk": [Block(flat)]}, {"qk": per_head}, total)


def axis(*factors: tuple[str | None, int]) -> Factors:
    return [(name, dim(size)) for name, size in factors]


@st.composite
def picks(draw: st.DrawFn) -> tuple[list[int], list[list[int]], int, int]:
    total, per_head = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    heads = draw(st.permutations(range(total)).map(lambda p: list(p)[: max(1, total - 1)]))
    count = draw(st.integers(1, per_head))
    return heads, [list(draw(st.permutations(range(per_head)))[:count]) for _ in heads], per_head, total


@given(picks(), st.permutations(["head", "qk", "group"]), st.integers(1, 3))
def test_positions_are_what_loops_give(picked: tuple[list[int], list[list[int]], int, int], order: list[str], group: int) -> None:
    heads, units, per_head, total = picked
    chosen = selection(heads, units, per_head, total)
    sizes = {"head": total, "qk": per_head, "group": group}
    ranges = {"head": range(len(heads)), "qk": range(len(units[0])), "group": range(group)}
    wanted = []
    for index in itertools.product(*(ranges[name] for name in order)):
        at = dict(zip(order, index, strict=True))
        place = {"head": heads[at["head"]], "qk": units[at["head"]][at["qk"]], "group": at["group"]}
        flat = 0
        for name in order:
            flat = flat * sizes[name] + place[name]
        wanted.append(flat)
    factors = axis(*((name, sizes[name]) for name in order))
    assert chosen.positions(factors).tolist() == wanted
    assert chosen.size(factors) == dim(len(wanted))
    everything = list(range(total * per_head * group))
    assert chosen.whole(factors) == (wanted == everything)


def test_an_axis_without_the_sites_factors_is_whole() -> None:
    chosen = selection([1], [[0, 2]], 4, 2)
    assert chosen.whole(axis((None, 7)))
    assert chosen.positions(axis((None, 3))).tolist() == [0, 1, 2]
    assert chosen.size([(None, Dim(1, ("B",))), ("head", dim(2))]) == Dim(1, ("B",))
    assert chosen.whole([])


def test_heads_alone_and_units_alone() -> None:
    chosen = selection([2, 0], [[1, 3], [1, 3]], 4, 3)
    assert chosen.positions(axis(("head", 3))).tolist() == [2, 0]
    assert chosen.positions(axis(("qk", 4))).tolist() == [1, 3]
    assert chosen.positions(axis(("vo", 5))).tolist() == [0, 1, 2, 3, 4], "another axis than the block's"


def test_heads_that_differ_cannot_share_an_axis_without_heads() -> None:
    chosen = selection([0, 1], [[0, 1], [0, 2]], 4, 2)
    with pytest.raises(LoweringError, match="all heads have in common"):
        chosen.positions(axis(("qk", 4)))


def test_blocks_stand_side_by_side_in_each_head() -> None:
    group = Group((0, 1), {})
    blocks = [Block(np.array([[0], [4]])), Block(np.array([[2, 3], [6, 7]]))]
    chosen = Selection.of(group, {"vo": blocks}, {"vo": 4}, 2)
    assert chosen.positions(axis(("head", 2), ("vo", 4))).tolist() == [0, 2, 3, 4, 6, 7]


def test_positions_are_counted_inside_an_outer_part_of_unknown_size() -> None:
    chosen = selection([1], [[0, 1]], 2, 3)
    factors: Factors = [(None, Dim(1, ("B",))), ("head", dim(3))]
    assert fixed_part(factors) == [("head", dim(3))]
    assert chosen.positions(factors).tolist() == [1]
    assert not chosen.whole(factors)
