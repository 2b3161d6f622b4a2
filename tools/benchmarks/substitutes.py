"""``make bench-substitutes``: what units of other layers could do in a unit's place, in the grid's dense models; see
:mod:`inarch.learning.substitutes`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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
    """The measurement as data and as a page."""
    kinds = ("free", "layer", "chance")

    def mean(values: Sequence[Left], kind: str) -> float:
        return float(np.mean([getattr(value, kind) for value in values]))

    means = {name: {kind: mean(values, kind) for kind in kinds} for name, values in found.items()}
    every = {kind: float(np.mean([each[kind] for each in means.values()])) for kind in kinds}
    described = machine.describe()
    rows = [
        f"| {name} | " + " | ".join(f"{100 * each[kind]:.1f}" for kind in kinds) + " |"
        for name, each in (*means.items(), ("mean of all layers", every))
    ]
    text = "\n".join(
        (
            "# What another layer's unit can do in a unit's place",
            "",
            f"`make bench-substitutes`: the dense models of {FIRST}, seeds {seeds}. How much of what an FFN's units put out is",
            "left, in per cent, where each reads its vectors from another layer and has a bias of its own; nothing is trained.",
            "*any layer*: the best of all units of all other layers, for each unit alone. *one layer*: all read from one other",
            "layer, each of its units once, as a plan can say it. *chance*: as the first, with the others' numbers shuffled.",
            "",
            "| | any layer | one layer | chance |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
            ", ".join(f"{key} {value}" for key, value in described.items()),
            "",
        )
    )
    return {"seeds": seeds, "layers": means, "mean": every, "machine": described}, text


if __name__ == "__main__":
    raise SystemExit(main())
