"""``make bench-accuracy``: a grid of (model, data, task, method, kept fraction, seed), one cell at a time.

A cell is a file in the store, written when it is done and never computed again, so that the grid is filled over several runs and
machines. Every setting that a cell depends on is in its name's hash; whoever changes what a method does with them, removes its
cells. All methods of a seed start from one dense model and get as many steps; see :mod:`inarch.learning.methods`. That model is
kept beside the cells, unless it is large. Where a seed's is not, the seed goes on only on machines where it comes out alike, or
not at all if the cells do not say what they started from; whoever wants one removes its cells. ``--table`` only prints what
there is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inarch.structure.errors import InarchError
from inarch.structure.files import whole
from inarch.tools import render
from inarch.tools.benchmarks import machine
from inarch.tools.benchmarks.accuracy_grid import (
    DISTIL,
    LARGEST_START,
    SETTINGS,
    STARTS,
    STORE,
    WORK,
    Cell,
    base_config,
    check_start,
    check_teacher,
    closed,
    dense_key,
    grid,
    key_of,
    method_key,
    stored,
)

if TYPE_CHECKING:
    from inarch.learning.config import TuneConfig
    from inarch.learning.methods import Outcome
    from inarch.learning.workshop import Workshop


def compute(cell: Cell, shop: Workshop) -> dict[str, Any]:
    """Run one cell: the method on what a world is learned by, unless another task's cell has done that, then the task."""
    from inarch.learning.runs import judge
    from inarch.learning.tally import backbone_parameters, tally
    from inarch.tools.benchmarks.accuracy_report import pack

    prepared = _of_cell(cell, shop)
    dense = dense_start(cell, prepared)[1]
    there = stored(STORE)
    check_start(cell, dense, there)
    keep_start(cell)
    if cell.distilled:
        check_teacher(cell, learned(cell.teacher, prepared)[1], there)
    outcome, record = learned(cell, prepared)
    start = time.monotonic()
    weights = tuned(cell, shop, outcome)
    judged = judge(outcome.shop, weights, tuning_of(cell).kind)
    result: dict[str, Any] = {
        "cell": asdict(cell),
        "dense": dense,
        "parameters": shop.table.parameters,
        "planned": outcome.planned,
        "stored": outcome.stored,
        "before": record["before"],
        "overall": dict(judged.overall),
        "metric": judged.metric,
        "scores": pack(judged.compared),
        "samples": len(judged.compared),
        "seconds": round(time.monotonic() - start),
        "learning_seconds": record["seconds"],
        "machine": machine.describe(),
    }
    if outcome.plan is not None:
        result["structure"] = structure_of(outcome.plan)
        result["units"] = asdict(tally(outcome.plan))
        inside, kept = backbone_parameters(outcome.plan, shop.table)
        result["backbones"] = kept / inside
    return result


def dense_start(cell: Cell, shop: Workshop) -> tuple[dict[str, Any], str]:
    """Weights of the dense model that all cells of the seed start from, which is trained if it is not there, and their digest."""
    from inarch.learning.runs import train_dense
    from inarch.learning.trainer import accelerator

    here, kept = _start_files(cell)
    if kept.exists() and not here.exists():
        _copy(kept, here)
    weights = train_dense(shop, here.parent, accelerator(shop.config.precision, "cpu"))
    return weights, hashlib.sha256(here.read_bytes()).hexdigest()[:16]


def keep_start(cell: Cell) -> None:
    """Put the dense model of a seed beside its cells, for other machines."""
    here, kept = _start_files(cell)
    if not kept.exists() and here.stat().st_size <= LARGEST_START:
        _copy(here, kept)


def _start_files(cell: Cell) -> tuple[Path, Path]:
    """Where the dense model is while cells are computed, and where it is kept."""
    from inarch.learning.folders import DENSE

    name = dense_key(cell.seed, cell.setting)
    return WORK / name / DENSE, STARTS / f"{name}.safetensors"


def _copy(source: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    with whole(to) as draft:
        shutil.copyfile(source, draft)


def tuning_of(cell: Cell) -> TuneConfig:
    """How a cell's method is tuned."""
    from inarch.learning.config import TuneConfig

    return TuneConfig.model_validate(
        {
            "kind": cell.kind,
            "optimisation": dict(SETTINGS[cell.setting].tuning[cell.kind]),
            "distil": DISTIL if cell.distilled else 0.0,
            "precision": base_config(cell.seed, cell.setting).precision,
            "seed": cell.seed,
        }
    )


def tuned(cell: Cell, shop: Workshop, outcome: Outcome | None = None) -> dict[str, Any]:
    """What a method gave, tuned for the cell's task; kept, since the dense model teaches others.

    Args:
        cell: which.
        shop: of the cell's setting.
        outcome: what the method gave, where it is at hand.
    """
    from inarch.learning.runs import tune_weights
    from inarch.learning.trainer import accelerator
    from inarch.learning.weights import keep_weights, read_weights

    done = WORK / key_of(cell) / "weights.safetensors"
    if done.exists():
        return read_weights(done)
    outcome = outcome or learned(cell, _of_cell(cell, shop))[0]
    tuning, teacher = tuning_of(cell), tuned(cell.teacher, shop) if cell.distilled else None
    place = accelerator(tuning.precision, "cpu")
    weights = tune_weights(outcome.shop, outcome.weights, outcome.plan, tuning, done.parent, place, teacher)
    keep_weights(weights, done)
    return weights


def _of_cell(cell: Cell, shop: Workshop) -> Workshop:
    """The workshop with the cell's seed and fraction."""
    from inarch.learning.workshop import replaced

    config = base_config(cell.seed, cell.setting)
    structure = config.structure.model_copy(update={"keep": cell.keep})
    distil = DISTIL if cell.taught else 0.0
    return replaced(shop, seed=cell.seed, structure=structure, learning=config.learning, dense=config.dense, distil=distil)


def learned(cell: Cell, shop: Workshop) -> tuple[Outcome, dict[str, Any]]:
    """What the cell's method gives before it is tuned, and a record of it; kept for the other tasks' cells."""
    from inarch.learning.methods import Outcome, obtain, shop_of
    from inarch.learning.runs import judge
    from inarch.learning.trainer import accelerator
    from inarch.learning.weights import keep_weights, read_weights
    from inarch.structure.plan import load_plan, save_plan

    folder = WORK / method_key(cell)
    record, weights, plan = folder / "outcome.json", folder / "weights.safetensors", folder / "plan.json"
    if record.exists():
        known = json.loads(record.read_text(encoding="utf-8"))
        found = load_plan(plan) if known["plan"] else None
        return Outcome(found, read_weights(weights), known["planned"], known["stored"], shop_of(shop, cell.method)), known
    place = accelerator(shop.config.precision, "cpu")
    dense, _ = dense_start(cell, shop)
    teacher = learned(cell.teacher, shop)[0].weights if cell.taught else None
    start = time.monotonic()
    outcome = obtain(shop, dense, cell.method, folder, place, teacher=teacher)
    known = {
        "plan": outcome.plan is not None,
        "planned": outcome.planned,
        "stored": outcome.stored,
        "before": judge(outcome.shop, outcome.weights, shop.world.first).value,
        "seconds": round(time.monotonic() - start),
    }
    folder.mkdir(parents=True, exist_ok=True)
    if outcome.plan is not None:
        save_plan(outcome.plan, plan)
    keep_weights(outcome.weights, weights)
    with whole(record) as draft:
        draft.write_text(json.dumps(known) + "\n", encoding="utf-8")
    return outcome, known


def structure_of(plan: Any) -> dict[str, list[float]]:
    """Site -> parts of its units that are kept, and that are shared."""
    from inarch.learning.plots import site_shares

    return {name: [round(part, 4) for part in site_shares(plan, name)] for name in plan.sites}


def main(argv: Sequence[str] | None = None) -> int:
    """Fill the grid, or print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no cell after this time")
    parser.add_argument("--table", action="store_true", help="only print what is stored")
    parser.add_argument("--settings", default="", help="models and their data, with commas between, as mdetr-tiny/scenes")
    parser.add_argument("--only", default="", help="methods, with commas between")
    parser.add_argument("--tasks", default="", help="tasks, with commas between")
    parser.add_argument("--seeds", default="", help="seeds, with commas between")
    parser.add_argument("--keeps", default="", help="kept fractions, with commas between")
    parser.add_argument("--distilled", action=argparse.BooleanOptionalAction, help="only, or none, of what is distilled")
    parser.add_argument("--taught", action=argparse.BooleanOptionalAction, help="only, or none, of what is distilled throughout")
    parser.add_argument("--threads", type=int, default=1, help="how many; a dense model comes out the same with as many")
    args = parser.parse_args(argv)
    from inarch.tools.benchmarks.accuracy_report import write_report

    failed = 0 if args.table else _fill(args)
    write_report(stored(STORE), STORE.parent)
    return 1 if failed else 0


def _fill(args: argparse.Namespace) -> int:
    """Compute what is wanted and not there; returns how many cells could not be computed, each of which is said."""
    from inarch.learning.trainer import use_threads

    use_threads(args.threads)
    begun = time.monotonic()
    STORE.mkdir(parents=True, exist_ok=True)
    shops: dict[str, Workshop | InarchError] = {}
    failed = 0
    there, left = stored(STORE), set[tuple[str, int]]()
    for cell in dict.fromkeys(grid()):
        path = STORE / f"{key_of(cell)}.json"
        if path.exists() or not _wanted(cell, args):
            continue
        if closed(cell, there):
            if (cell.setting, cell.seed) not in left:
                left.add((cell.setting, cell.seed))
                render.say(f"without {cell.setting}, seed {cell.seed}: its cells do not say which dense model they started from")
            continue
        if time.monotonic() - begun > args.minutes * 60:
            render.say("the time is over; run it again for the rest")
            break
        if cell.setting not in shops:
            shops[cell.setting] = _opened(cell.setting)
        shop = shops[cell.setting]
        if isinstance(shop, InarchError):
            continue
        try:
            result = compute(cell, shop)
        except InarchError as error:
            render.say(f"{cell.setting} {cell.kind} {cell.label} {cell.keep} seed {cell.seed}: {error}")
            failed += 1
            continue
        with whole(path) as draft:
            draft.write_text(json.dumps(result) + "\n", encoding="utf-8")
        kept = result["stored"] / result["parameters"]
        value = 100 * next(iter(result["overall"].values()))
        render.say(
            f"{cell.setting} {cell.label} {cell.keep} seed {cell.seed}: kept {kept:.4f}, before {100 * result['before']:.2f}, "
            f"{cell.kind} {value:.2f}, {result['seconds'] + result['learning_seconds']} s"
        )
    return failed


def _opened(setting: str) -> Workshop | InarchError:
    """What a setting's cells need; or why they are left out, which is said: some data have to be fetched first."""
    from inarch.learning.workshop import workshop

    try:
        return workshop(base_config(0, setting))
    except InarchError as error:
        render.say(f"without {setting}: {error}")
        return error


def _wanted(cell: Cell, args: argparse.Namespace) -> bool:
    wanted = (args.settings, args.only, args.tasks, args.seeds, args.keeps)
    settings, methods, kinds, seeds, keeps = ([one for one in text.split(",") if one] for text in wanted)
    return (
        args.distilled in (None, cell.distilled)
        and args.taught in (None, cell.taught)
        and (not settings or cell.setting in settings)
        and (not methods or cell.method in methods)
        and (not kinds or cell.kind in kinds)
        and (not seeds or str(cell.seed) in seeds)
        and (not keeps or cell.method == "dense" or str(cell.keep) in keeps)
    )


if __name__ == "__main__":
    raise SystemExit(main())
