"""``make bench-accuracy``: a grid of (model, task, method, kept fraction, seed), one cell at a time.

A cell is a file in the store, written when it is done and never computed again, so that the grid is filled over several runs and
machines. Everything that a cell depends on is in its name's hash. All methods of a seed start from one dense model and get as
many steps; see :mod:`inarch.learning.methods`. ``--table`` only prints what there is.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from inarch.tools import render
from inarch.tools.benchmarks import machine
from inarch.tools.benchmarks.accuracy_grid import KINDS, STORE, TUNING, WORK, Cell, base_config, dense_key, grid, key_of, stored

if TYPE_CHECKING:
    from inarch.learning.runs import Workshop


def compute(cell: Cell, shop: Workshop) -> dict[str, Any]:
    """Run one cell: the method on grounding, then each task tuned from it."""
    from inarch.learning.config import Optimisation, TuneConfig
    from inarch.learning.methods import obtain
    from inarch.learning.runs import judge, replaced, train_dense, tune_weights
    from inarch.learning.trainer import accelerator
    from inarch.tools.benchmarks.accuracy_report import pack

    place = accelerator(base_config(cell.seed).precision, "cpu")
    config = base_config(cell.seed)
    structure = config.structure.model_copy(update={"keep": cell.keep})
    mine = replaced(shop, seed=cell.seed, structure=structure, learning=config.learning, dense=config.dense)
    dense = train_dense(mine, WORK / dense_key(cell.seed), place)
    folder = WORK / key_of(cell)
    start = time.monotonic()
    outcome = obtain(mine, dense, cell.method, folder, place)
    grounding = judge(outcome.shop, outcome.weights, "grounding")
    result: dict[str, Any] = {
        "cell": {"method": cell.method, "keep": cell.keep, "seed": cell.seed},
        "parameters": shop.table.parameters,
        "planned": outcome.planned,
        "stored": outcome.stored,
        "grounding": grounding.value,
        "machine": machine.describe(),
        "tasks": {},
    }
    if outcome.plan is not None:
        folder.mkdir(parents=True, exist_ok=True)
        from inarch.structure.plan import save_plan

        save_plan(outcome.plan, folder / "plan.json")
        result["structure"] = structure_of(outcome.plan)
    for kind in KINDS:
        tuning = TuneConfig.model_validate({"kind": kind, "optimisation": Optimisation.model_validate(TUNING), "seed": cell.seed})
        weights = tune_weights(outcome.shop, outcome.weights, outcome.plan, tuning, folder / kind, place)
        judged = judge(outcome.shop, weights, tuning.kind)
        right = judged.scores[judged.headline] > 0.5
        result["tasks"][kind] = {"overall": dict(judged.overall), "right": pack(right), "samples": len(right)}
    return result | {"seconds": round(time.monotonic() - start)}


def structure_of(plan: Any) -> dict[str, list[float]]:
    """Site -> parts of its units that are kept, and that are shared."""
    from inarch.learning.plots import site_shares

    return {name: [round(part, 4) for part in site_shares(plan, name)] for name in plan.sites}


def main(argv: Sequence[str] | None = None) -> int:
    """Fill the grid, or print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no cell after this time")
    parser.add_argument("--table", action="store_true", help="only print what is stored")
    parser.add_argument("--only", default="", help="methods, with commas between")
    parser.add_argument("--seeds", default="", help="seeds, with commas between")
    parser.add_argument("--keeps", default="", help="kept fractions, with commas between")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    from inarch.tools.benchmarks.accuracy_report import write_report

    if not args.table:
        _fill(args)
    write_report(stored(STORE), STORE.parent)
    return 0


def _fill(args: argparse.Namespace) -> None:
    from inarch.learning.runs import use_threads, workshop

    use_threads(args.threads)
    begun = time.monotonic()
    STORE.mkdir(parents=True, exist_ok=True)
    shop: Workshop | None = None
    for cell in dict.fromkeys(grid()):
        path = STORE / f"{key_of(cell)}.json"
        if path.exists() or not _wanted(cell, args):
            continue
        if time.monotonic() - begun > args.minutes * 60:
            render.say("the time is over; run it again for the rest")
            return
        shop = shop or workshop(base_config(0))
        result = compute(cell, shop)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(result) + "\n", encoding="utf-8")
        part.replace(path)
        tasks = ", ".join(f"{kind} {100 * next(iter(task['overall'].values())):.2f}" for kind, task in result["tasks"].items())
        kept = result["stored"] / result["parameters"]
        render.say(
            f"{cell.method} {cell.keep} seed {cell.seed}: kept {kept:.4f}, grounding {100 * result['grounding']:.2f}, {tasks}, "
            f"{result['seconds']} s"
        )


def _wanted(cell: Cell, args: argparse.Namespace) -> bool:
    methods, seeds, keeps = ([one for one in text.split(",") if one] for text in (args.only, args.seeds, args.keeps))
    return (
        (not methods or cell.method in methods)
        and (not seeds or str(cell.seed) in seeds)
        and (not keeps or cell.method == "dense" or str(cell.keep) in keeps)
    )


if __name__ == "__main__":
    raise SystemExit(main())
