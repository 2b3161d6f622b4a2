"""``make bench-substitutes``: what units of other layers could do in a unit's place, in the grid's dense models; see
:mod:`inarch.learning.substitutes`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inarch.tools import render
from inarch.tools.benchmarks import machine
from inarch.tools.benchmarks.accuracy_grid import FIRST, Cell, base_config

if TYPE_CHECKING:
    from inarch.learning.substitutes import Left

SEEDS = "5,6,7"
"""Whose dense models are kept beside the grid's cells."""
BATCHES = 4
"""That inputs are taken from."""


def main(argv: Sequence[str] | None = None) -> int:
    """Compare the layers of the dense models that are kept, and write what comes out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default=SEEDS, help="whose dense models, with commas between")
    parser.add_argument("--out", type=Path, default=Path("docs/measurements"))
    args = parser.parse_args(argv)
    from inarch.learning.substitutes import layers_of, left
    from inarch.learning.tasks.courses import tensors
    from inarch.learning.trainer import accelerator
    from inarch.learning.workshop import workshop
    from inarch.tools.benchmarks.accuracy import dense_start

    shop = workshop(base_config(0, FIRST))
    course = shop.pretraining()
    batches = [tensors(course.batch(0, number, "structure"), accelerator(device="cpu").device) for number in range(BATCHES)]
    found: dict[str, list[Left]] = {}
    for seed in (int(one) for one in args.seeds.split(",")):
        weights, _ = dense_start(Cell("referring", "dense", 1.0, seed), shop)
        layers = layers_of(shop.table, shop.trainee(course, weights).eval(), batches)
        for name in layers:
            found.setdefault(name, []).append(left(layers, name))
        render.say(f"seed {seed}")
    data, text = _written(found, args.seeds)
    machine.record(args.out, "substitutes", data, text)
    render.say(text)
    return 0


def _written(found: Mapping[str, Sequence[Left]], seeds: str) -> tuple[dict[str, object], str]:
    """The measurement as data and as a page: means over the models, by layer."""
    means = {
        name: {
            "free": float(np.mean([left.free for left in each])),
            "chance": float(np.mean([left.chance for left in each])),
            "one": {other: float(np.mean([left.one[other] for left in each])) for other in each[0].one},
        }
        for name, each in found.items()
    }
    described = machine.describe()
    text = f"""# What another layer's unit can do in a unit's place

`make bench-substitutes`: the dense models of {FIRST}, seeds {seeds}. How much of what an FFN's units put out is
left, in per cent, where each reads its vectors from another layer and has a bias of its own; nothing is trained.
*any*: the best of all units of all other layers, for each unit alone. *chance*: the same, with the others' numbers
shuffled. By number: all read from that one layer, each of its units once, as a plan can say it.

| | | any | chance | {" | ".join(str(number) for number in range(1, len(means) + 1))} |
| --- | --- | --- | --- | {" | ".join("---" for _ in means)} |
{_rows(means)}

{", ".join(f"{key} {value}" for key, value in described.items())}
"""
    return {"seeds": seeds, "layers": means, "machine": described}, text


def _rows(means: Mapping[str, Mapping[str, Any]]) -> str:
    """The table's rows."""
    rows = []
    for number, (name, mean) in enumerate(means.items(), 1):
        one = (f"{100 * mean['one'][other]:.1f}" if other in mean["one"] else "" for other in means)
        rows.append(f"| {number} | {name} | {100 * mean['free']:.1f} | {100 * mean['chance']:.1f} | {' | '.join(one)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    raise SystemExit(main())
