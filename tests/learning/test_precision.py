"""The precision that has the shortest step is taken, whichever had the longest."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from inarch.learning.precision import FIRST, ROUNDS, STEPS, Precision, faster_precision
from inarch.learning.workshop import Workshop

TURN = FIRST + STEPS


def clock_of(seconds: list[float]) -> Callable[[], float]:
    """A clock by which steps take these seconds, one after the other."""
    now, times = 0.0, []
    for one in seconds:
        times += [now, now + one]
        now += one + 100.0  # what lies between two steps does not count
    return iter(times).__next__


@pytest.mark.parametrize(("short", "chosen"), [(1, "no"), (2, "bf16"), (3, "no"), (4, "bf16")], ids=str)
def test_the_shortest_step_decides(shop: Workshop, short: int, chosen: Precision) -> None:
    """``short`` is the turn with one short step in it; the first steps of a turn, which are shorter still, are not looked at."""
    seconds = [0.5 if number % TURN < FIRST else 2.0 for number in range(2 * ROUNDS * TURN)]
    seconds[short * TURN - 1] = 1.0
    clock = clock_of(seconds)
    assert faster_precision(shop, clock) == chosen
    with pytest.raises(StopIteration):
        clock()
