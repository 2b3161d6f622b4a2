"""Fills a run folder: the files that a report reads, each whole or not at all, and ``run.json``: how they came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from inarch.tools import render

if TYPE_CHECKING:
    from inarch.compiler.compile import CompileResult
    from inarch.runtime.accuracy import Arrays, Task
    from inarch.structure.cost import CostTable
    from inarch.tools.evaluate import Outcome

COMPILE, VERIFY, BENCH = "compile.json", "verify.json", "bench.json"
EVALUATION, EXAMPLES, UNTRAINED = "evaluation.json", "examples.json", "untrained.json"
PREDICTIONS = "predictions-{}.npz"
RUN, REPORT = "run.json", "report.html"
WRITTEN = (
    COMPILE, VERIFY, BENCH, EVALUATION, EXAMPLES, UNTRAINED, RUN, REPORT, *map(PREDICTIONS.format, ("dense", "compiled"))
)  # fmt: skip


def clear(folder: Path) -> None:
    """Take away what an earlier run left, so that no report mixes two runs."""
    for name in WRITTEN:
        with suppress(OSError):
            (folder / name).unlink()


def write(folder: Path, name: str, document: Mapping[str, object]) -> None:
    """Write one JSON file.

    Raises:
        InarchError: it cannot be written.
    """
    render.write_json(folder / name, document)


def write_compiled(folder: Path, out: str, result: CompileResult, cost: CostTable | None = None) -> None:
    """Write what ``inarch compile --json`` prints."""
    from inarch.structure.cost import DEFAULT_COST
    from inarch.tools import compile

    data = {"out": out, **compile.as_data(result), "cost": compile.cost_data(cost or DEFAULT_COST, None)}
    write(folder, COMPILE, {"format": "inarch.compiled/1", **data})


def write_untrained(folder: Path, model: Path, plan_file: Path, feeds: Arrays) -> None:
    """Write what a learned plan does to the dense model, which was not trained under it: what training was good for."""
    from inarch.api import discover
    from inarch.compiler.reference import apply_by_values
    from inarch.compiler.values import SiteValues
    from inarch.runtime.damage import measure_damage
    from inarch.runtime.inputs import Case
    from inarch.structure.plan import load_plan
    from inarch.structure.resolve import resolve

    found = discover(model)
    resolved = resolve(load_plan(plan_file), found.table)
    reference = apply_by_values(found.model, found.table, resolved, found.uses)
    values = SiteValues(found.model, found.table, resolved)
    case = Case("held-out samples", feeds)
    damage = measure_damage(model, reference, [case], values=values, sites=list(found.table.by_name))
    write(folder, UNTRAINED, {"format": "inarch.untrained/1", "model": model.parent.name, "damage": damage.to_json()})


def commands(model: str, dense: str, *judged: str, parts: bool = False) -> tuple[str, ...]:
    """The commands, run in the folder, that make its files again from its models and its plan; ``judged`` are more of them."""
    return (
        f"inarch compile {model} plan.json -o compiled.onnx --json > {COMPILE}",
        f"inarch verify {model} plan.json compiled.onnx --json > {VERIFY}",
        *judged,
        f"inarch bench {dense} compiled.onnx{' --parts plan.json' if parts else ''} --json > {BENCH}",
        "inarch report .",
    )


def write_accuracy(folder: Path, task: Task, outcome: Outcome, *, seed: int = 0) -> None:
    """Write both models' accuracy on a task as ``inarch evaluate --json`` prints it, what they say of every sample, and examples.

    Args:
        folder: the run's.
        task: what was judged.
        outcome: the compiled model compared with the dense one.
        seed: chooses the examples; there are none for a task without pictures.

    Raises:
        InarchError: a file cannot be written.
    """
    from inarch.runtime.predictions import save_predictions
    from inarch.tools.evaluate import as_data
    from inarch.tools.report_examples import write_examples

    assert outcome.first is not None
    write(folder, EVALUATION, {"format": "inarch.evaluation/1", **as_data(outcome)})
    for name, found in (("dense", outcome.first), ("compiled", outcome.second)):
        save_predictions(found, folder / PREDICTIONS.format(name))
    write_examples(folder / EXAMPLES, task, outcome.first.evaluation, outcome.second.evaluation, seed=seed)


def write_run(
    folder: Path,
    *,
    title: str,
    about: str,
    model: str,
    commands: Sequence[str],
    files: Sequence[str],
    seconds: Mapping[str, float],
    settings: Mapping[str, object],
    notes: Sequence[str] = (),
) -> None:
    """Write ``run.json``: what was done, on what machine, and what the models' hashes are. Names are relative to the folder."""
    from inarch.tools.benchmarks import machine
    from inarch.tools.report_provenance import file_facts

    facts = {name: dict(zip(("bytes", "sha256"), file_facts(folder / name), strict=True)) for name in files}
    document: dict[str, object] = {
        "format": "inarch.run/1",
        "title": title,
        "about": about,
        "model": model,
        "commands": list(commands),
        "machine": machine.describe(),
        "files": facts,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "settings": dict(settings),
        "notes": list(notes),
    }
    write(folder, RUN, document)
