"""``make bench-accuracy``: a grid of (model, task, method, kept fraction, seed), one cell at a time.

A cell is a file in the store, written when it is done and never computed again, so that the grid is filled over several runs and
machines. Everything that a cell depends on is in its name's hash. All methods of a seed start from one dense model and get as many
steps; see :mod:`inarch.learning.methods`. ``--table`` only prints what there is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inarch.tools import render
from inarch.tools.benchmarks import machine

if TYPE_CHECKING:
    from inarch.learning.config import LearnConfig
    from inarch.learning.runs import Workshop

STORE = Path("docs/measurements/accuracy")
WORK = Path("bench-out/accuracy")
KINDS = ("referring", "vqa")
BASELINES = ("prune", "magnitude", "uniform", "similarity", "rule-layer", "rule-cross", "share", "scratch")
ABLATIONS = ("free", "per-modality", "separate", "no-alignment", "cross", "layer")


@dataclass(frozen=True)
class Cell:
    """One cell of the grid.

    Attributes:
        method: see :data:`inarch.learning.methods.METHODS`.
        keep: fraction of the whole model's parameters that is stored.
        seed: of weights, batches and noise; the data are the same.
    """

    method: str
    keep: float
    seed: int


def grid() -> Iterator[Cell]:
    """All cells, the most telling first."""
    for seed in range(3):
        yield Cell("dense", 1.0, seed)
        for keep in (0.6, 0.3):
            yield Cell("joint", keep, seed)
            yield Cell("prune", keep, seed)
        for method in BASELINES[1:]:
            yield Cell(method, 0.6, seed)
        for keep in (0.2, 0.5, 0.65):
            yield Cell("joint", keep, seed)
            yield Cell("prune", keep, seed)
        for method in ("magnitude", "uniform", "scratch"):
            yield Cell(method, 0.3, seed)
            yield Cell(method, 0.2, seed)
    for method in ABLATIONS:
        yield Cell(method, 0.5, 0)
    for seed in (3, 4):
        for method, keep in (("dense", 1.0), ("joint", 0.6), ("prune", 0.6), ("uniform", 0.6)):
            yield Cell(method, keep, seed)


def base_config(seed: int) -> LearnConfig:
    """What all cells of a seed have in common."""
    from inarch.learning.config import DataSettings, LearnConfig, Optimisation

    return LearnConfig(
        model="mdetr-tiny",
        data=DataSettings(level="medium"),
        dense=Optimisation(steps=6000, rate=2e-3),
        learning=Optimisation(steps=2000, rate=1e-3, warmup=100),
        seed=seed,
    )


TUNING = {"steps": 1500, "rate": 7e-4, "warmup": 100}


def key_of(cell: Cell) -> str:
    """The cell's name: readable, with a hash of every setting behind it."""
    config = base_config(cell.seed)
    settings = json.dumps([config.model_dump(mode="json"), TUNING], sort_keys=True)
    return f"{cell.method}-{cell.keep:.2f}-{cell.seed}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"


def compute(cell: Cell, shop: Workshop) -> dict[str, Any]:
    """Run one cell: the method on grounding, then each task tuned from it."""
    from inarch.learning.config import Optimisation, TuneConfig
    from inarch.learning.methods import obtain
    from inarch.learning.runs import judge, replaced, train_dense, tune_weights
    from inarch.learning.trainer import accelerator
    from inarch.tools.benchmarks.accuracy_report import pack

    place = accelerator("bf16", "cpu")
    config = base_config(cell.seed)
    structure = config.structure.model_copy(update={"keep": cell.keep})
    mine = replaced(shop, seed=cell.seed, structure=structure, learning=config.learning, dense=config.dense)
    dense = train_dense(mine, WORK / f"dense-{key_of(Cell('dense', 1.0, cell.seed))}", place)
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


def stored(store: Path) -> dict[Cell, dict[str, Any]]:
    """The cells that are done, under the present settings."""
    found = {}
    for cell in dict.fromkeys(grid()):
        path = store / f"{key_of(cell)}.json"
        if path.exists():
            found[cell] = json.loads(path.read_text(encoding="utf-8"))
    return found


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
