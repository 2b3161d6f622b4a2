"""Which precision trains faster on a processor: it hangs on the libraries that multiply there as much as on its instructions."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Literal

from inarch.learning.phases import WeightPhase
from inarch.learning.trainer import accelerator
from inarch.learning.workshop import Workshop

Precision = Literal["no", "bf16"]

ROUNDS, STEPS, FIRST = 2, 5, 2
"""How often each precision has its turn, the steps that are timed then, and those before them, which are not."""


def faster_precision(shop: Workshop, clock: Callable[[], float] = time.perf_counter) -> Precision:
    """Try a few plain training steps in float32 and in bfloat16 on the CPU; of each the shortest counts.

    On an AMD EPYC bfloat16 halves a step; on an Intel Xeon without AMX it was mostly slower.

    Args:
        shop: the run. Nothing of it is changed.
        clock: seconds.
    """
    shortest: dict[Precision, float] = {"no": math.inf, "bf16": math.inf}
    for _ in range(ROUNDS):  # in turns, so that what else the machine does for a while slows down both
        for precision, before in shortest.items():
            shortest[precision] = min(before, _seconds(shop, precision, clock))
    return min(shortest, key=shortest.__getitem__)


def _seconds(shop: Workshop, precision: Precision, clock: Callable[[], float]) -> float:
    """Of the shortest step."""
    course, place = shop.pretraining(), accelerator(precision, "cpu")
    phase = WeightPhase("trial", shop.trainee(course), course, shop.config.dense, place, shop.config.seed)
    times = []
    for number in range(FIRST + STEPS):
        start = clock()
        phase.step(number)
        times.append(clock() - start)
    place.free_memory()  # it remembers the module and its optimiser
    return min(times[FIRST:])
