"""``make bench-substitutes``: what units of other layers could do in a unit's place, in the grid's dense models and in two
encoders that others trained; see :mod:`inarch.learning.substitutes`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inarch.structure.errors import InarchError
from inarch.tools import render
from inarch.tools.benchmarks import machine
from inarch.tools.benchmarks.accuracy_grid import FIRST, Cell, base_config

if TYPE_CHECKING:
    import onnx_ir as ir

    from inarch.learning.substitutes import Layer, Left

SEEDS = "5,6,7"
"""Whose dense models are kept beside the grid's cells."""
BATCHES = 4
"""That inputs are taken from."""
UNITS = 64
"""Of each layer of the encoders, those that put out most: all of them would take an hour."""


def main(argv: Sequence[str] | None = None) -> int:
    """Compare the layers of the dense models that are kept, and write what comes out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default=SEEDS, help="whose dense models, with commas between")
    parser.add_argument("--out", type=Path, default=Path("docs/measurements"))
    args = parser.parse_args(argv)
    from inarch.learning.substitutes import layers_of, left, real_rows
    from inarch.learning.tasks.courses import tensors
    from inarch.learning.trainer import accelerator
    from inarch.learning.workshop import workshop
    from inarch.tools.benchmarks.accuracy import dense_start

    shop = workshop(base_config(0, FIRST))
    course = shop.pretraining()
    device = accelerator(device="cpu").device
    drawn = [tensors(course.batch(0, number, "structure"), device) for number in range(BATCHES)]
    batches = [(batch, real_rows(batch)) for batch in drawn]
    found: dict[str, list[Left]] = {}
    for seed in (int(one) for one in args.seeds.split(",")):
        weights, _ = dense_start(Cell("referring", "dense", 1.0, seed), shop)
        layers = layers_of(shop.table, shop.trainee(course, weights).eval(), batches)
        for name in layers:
            found.setdefault(name, []).append(left(layers, name))
        render.say(f"seed {seed}")
    layers = tower_layers()
    towers = {name: left(layers, name, units=UNITS) for name in layers}
    data, text = _written(found, args.seeds, towers)
    machine.record(args.out, "substitutes", data, text)
    render.say(text)
    return 0


def tower_layers() -> dict[str, Layer]:
    """The FFNs of the two-tower demo's encoders, with what they are given for its sentences and pictures."""
    import onnx_ir as ir

    from inarch.api import discover
    from inarch.compiler.values import parameter_tensors
    from inarch.learning.substitutes import layer_of
    from inarch.runtime.session import Session
    from inarch.tools.demo_inputs import demo_feeds
    from inarch.tools.towers import find_assets, two_tower_model

    assets = find_assets()
    feeds, model = demo_feeds(assets.tokenizer), two_tower_model(assets)
    table = discover(model).table
    parameters, tensors = model.graph.initializers, parameter_tensors(model)
    roles = {site.name: {member.role: member for member in site.members.values()} for site in table.sites if site.kind == "ffn"}
    given = {(name, role): _given(parameters[members[role].param]) for name, members in roles.items() for role in ("up", "down")}
    model.graph.outputs.extend(value for value in dict.fromkeys(given.values()) if not value.is_graph_output())
    for value in given.values():
        value.type = ir.TensorType(ir.DataType.FLOAT)
    with Session(model) as session:
        outputs = session.run(feeds)
    real = feeds["text.attention_mask"].reshape(-1) > 0
    layers = {}
    for name, members in roles.items():
        up, down = (np.moveaxis(tensors[members[role].param].numpy(), members[role].axis, 0) for role in ("up", "down"))
        vectors = (up, down, tensors[members["up_bias"].param].numpy())
        inputs, hidden = (outputs[str(given[name, role].name)] for role in ("up", "down"))
        rows = real if name.startswith("text.") else slice(None)  # not what fills up a sentence
        inputs, hidden = (numbers.reshape(-1, numbers.shape[-1])[rows] for numbers in (inputs, hidden))
        layers[name] = layer_of(vectors, inputs, hidden, name)
    return layers


def _given(parameter: ir.Value) -> ir.Value:
    """What the one product that reads a weight multiplies it with."""
    (user, _), *others = parameter.uses()
    first = user.inputs[0]
    if others or user.op_type != "MatMul" or first is None:
        raise InarchError("is not read by one MatMul", where=str(parameter.name))
    return first


def _written(found: Mapping[str, Sequence[Left]], seeds: str, towers: Mapping[str, Left]) -> tuple[dict[str, object], str]:
    """The measurement as data and as a page: means over the models, by layer; and the encoders."""
    means = {
        name: {
            **{
                kind: float(np.mean([getattr(left, kind) for left in each]))
                for kind in ("free", "median", "live", "part", "chance")
            },
            "one": {other: float(np.mean([left.one[other] for left in each])) for other in each[0].one},
        }
        for name, each in found.items()
    }
    described = machine.describe()
    text = f"""# What another layer's unit can do in a unit's place

`make bench-substitutes`: the dense models of {FIRST}, seeds {seeds}. How much of what an FFN's units put out is
left, in per cent of its variance over up to 1,500 inputs, where each reads its vectors from another layer and has its bias
as it was; nothing is trained or fitted, and what is constant is left to the layer's bias. *any*: the best of all units of
all other layers, for each unit alone. *median*: of the units then, whatever they put out, where above each counts by
that; of those that put out anything (*live*). *chance*: as *any*, with the others' numbers shuffled. By number: all of
a row's units read from that one layer, each of its units once, as a plan can say it.

| | | any | median | live | chance | {" | ".join(str(number) for number in range(1, len(means) + 1))} |
| --- | --- | --- | --- | --- | --- | {" | ".join("---" for _ in means)} |
{_rows(means)}

The same of the encoders of `inarch demo towers`, all-MiniLM-L6 and a ViT-S/14, which others trained apart, for the demo's
sentences and its four drawn pictures; those {UNITS} units of each layer that put out most, *part* of what the layer puts
out, which may read any unit of a layer. By tower: all read from one other layer of that tower, the best one.

| | part | any | median | chance | one of text | one of vision |
| --- | --- | --- | --- | --- | --- | --- |
{_tower_rows(towers)}

{", ".join(f"{key} {value}" for key, value in described.items())}
"""
    encoders = {name: asdict(each) for name, each in towers.items()}
    return {"seeds": seeds, "layers": means, "encoders": encoders, "machine": described}, text


def _tower_rows(towers: Mapping[str, Left]) -> str:
    """The encoders' table."""
    rows = []
    for name, each in towers.items():
        best = (max(value for other, value in each.one.items() if other.startswith(f"{tower}.")) for tower in ("text", "vision"))
        cells = (f"{100 * value:.1f}" for value in (each.part, each.free, each.median, each.chance, *best))
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _rows(means: Mapping[str, Mapping[str, Any]]) -> str:
    """The table's rows."""
    rows = []
    for number, (name, mean) in enumerate(means.items(), 1):
        one = (f"{100 * mean['one'][other]:.1f}" if other in mean["one"] else "" for other in means)
        free, median, chance = (f"{100 * mean[kind]:.1f}" for kind in ("free", "median", "chance"))
        rows.append(f"| {number} | {name} | " + " | ".join((free, median, f"{mean['live']:.0f}", chance, *one)) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    raise SystemExit(main())
