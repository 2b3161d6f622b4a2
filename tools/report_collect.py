"""Reads a run folder and puts the report's page together."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from inarch.structure.errors import InarchError
from inarch.tools import report_words as words
from inarch.tools.report_data import (
    DEVICE_MEMORY,
    MODEL_MEMORY,
    Accuracy,
    Bar,
    Bars,
    DamageChart,
    DamageColumn,
    DecisionRow,
    Metric,
    Missing,
    Page,
    Proof,
    Score,
    Speed,
    Step,
)
from inarch.tools.report_files import Bench, Compiled, EvaluationFile, Latency, RunFolder, Timing, Verified, read_folder
from inarch.tools.report_provenance import compiled_file, metadata_of, model_files, provenance_of
from inarch.tools.report_structure import Structure, structure_of
from inarch.tools.report_summary import figures_of, state_of, summary_of

if TYPE_CHECKING:
    from inarch.structure.sites import SiteTable

Item = TypeVar("Item", Bench, Verified)

DENSE_NAMES = ("model.onnx", "dense.onnx")
"""Names under which a dense model is looked for in a folder that does not say where it is."""


def collect(folder: Path, model: Path | None = None) -> Page:
    """Everything that is known about a run.

    Args:
        folder: its folder.
        model: the dense model that was compiled; as the folder says by default. Without it, what the plan saves is known in units
            and in total, not by its way of saving.

    Raises:
        InarchError: the folder is no run's, a file in it is broken, or the plan is not for the model.
    """
    run = read_folder(folder)
    source = dense_model(run, model)
    structure = structure_of(run.plan, None if source is None else _table(source))
    accuracy = tuple(accuracy_of(item) for item in run.evaluations)
    speed = tuple(speed_of(item) for item in by_provider(run.benches))
    proofs = tuple(_proof(item) for item in by_provider(run.verified))
    state = state_of(proofs)
    labels = words.labels(structure.sites)
    totals = totals_of(structure, run.compiled)
    return Page(
        title=run.run.title or run.plan.model.name,
        state=state,
        summary=summary_of(run, totals, state, proofs, accuracy, speed),
        figures=figures_of(totals, state, proofs, accuracy, speed),
        notes=(*notes_of(run, structure), *run.run.notes),
        structure=structure,
        labels=labels,
        given_back=given_back(run.compiled),
        steps=steps_of(structure, run.compiled),
        decisions=decisions_of(run.compiled),
        proofs=proofs,
        accuracy=accuracy,
        speed=speed,
        damage=_charts(structure, labels, run),
        examples=run.examples,
        provenance=provenance_of(run, source),
        missing={item.section: item for item in _missing(run, source)},
    )


def dense_model(run: RunFolder, given: Path | None) -> Path | None:
    """The dense model's file, or None where there is none.

    Raises:
        InarchError: the one that was given is not there.
    """
    if given is not None:
        if not given.is_file():
            raise InarchError("there is no such file", where=str(given), hint="--model takes the ONNX model that was compiled")
        return given
    names = [run.run.model] if run.run.model else list(DENSE_NAMES)
    return next((run.path / name for name in names if (run.path / name).is_file()), None)


def _table(model: Path) -> SiteTable:
    from inarch.api import discover

    return discover(model).table


def by_provider(items: Sequence[Item]) -> list[Item]:
    """Measurements with those on the CPU first: what a summary speaks of."""
    return sorted(items, key=lambda item: words.provider(item.provider) != "CPU")


def totals_of(structure: Structure, compiled: Compiled | None) -> tuple[int, int] | None:
    """Parameters before and after: as stored where it was compiled, else as planned; None where they are not known."""
    if compiled is not None:
        return compiled.parameters, compiled.stored_parameters
    if structure.dense is not None and structure.planned is not None:
        return structure.dense, structure.planned
    return None


def given_back(compiled: Compiled | None) -> dict[str, tuple[int, int]]:
    """Site -> units and parameters that are stored beyond the plan."""
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for item in compiled.legalised if compiled else ():
        found[item.site][0] += item.units
        found[item.site][1] += item.parameters
    return {site: (units, parameters) for site, (units, parameters) in found.items()}


def steps_of(structure: Structure, compiled: Compiled | None) -> tuple[Step, ...]:
    """The waterfall from dense to compiled; every bar begins where the one before it ends."""
    totals = totals_of(structure, compiled)
    if totals is None:
        return ()
    from inarch.tools.explain import REASONS

    dense, stored = totals
    planned = compiled.planned_parameters if compiled else structure.planned
    steps = [Step("Dense", "total", "dense", 0, dense, dense)]
    at = dense

    def add(label: str, amount: int, fate: str, note: str = "") -> None:
        nonlocal at
        if amount:
            low, high = sorted((at, at + amount))
            steps.append(Step(label, "more" if amount > 0 else "less", fate, low, high, amount, note))
            at += amount

    if structure.saved:
        add("Pruned", -structure.saved["pruned"], "pruned", "weight vectors that nothing needs, with their biases")
        add("Shared across", -structure.saved["cross"], "cross", "read from the other backbone")
        add("Shared between layers", -structure.saved["layer"], "layer", "read from another layer of the same backbone")
    if planned is not None:
        label = "Rest" if structure.saved else "Saved by the plan"
        add(label, planned - at, "private", "tables over heads, and weights that were tied before" if structure.saved else "")
    reasons: dict[str, int] = defaultdict(int)
    for item in compiled.legalised if compiled else ():
        reasons[item.reason] += item.parameters
    for reason, parameters in sorted(reasons.items(), key=lambda item: -item[1]):
        add("Given back", parameters, "back", f"{reason}: {REASONS.get(reason, 'to be storable')}")
    add("Given back", stored - at, "back", "to be storable")
    steps.append(Step("Compiled" if compiled else "Planned", "total", "compiled", 0, stored, stored))
    return tuple(steps)


def decisions_of(compiled: Compiled | None) -> tuple[DecisionRow, ...]:
    """What the lowering decided about every site."""
    if compiled is None:
        return ()
    from inarch.tools.explain import REASONS

    reasons: dict[str, list[str]] = defaultdict(list)
    for item in compiled.legalised:
        why = REASONS.get(item.reason, item.reason)
        reasons[item.site].append(f"{words.signed_count(item.parameters)} on {item.axis}: {why}")
    return tuple(
        DecisionRow(d.site, d.parameters, d.own, d.shared, d.dense_products, d.products, tuple(reasons[d.site]))
        for d in compiled.decisions
    )


def accuracy_of(found: EvaluationFile) -> Accuracy:
    """A task's metrics with their intervals, the headline first."""
    models = {"compiled": found.model.overall}
    if found.against is not None:
        models = {"dense": found.against.overall, **models}
    pairs = found.comparison.metrics if found.comparison else {}
    order = sorted(
        (name for name in found.model.overall if all(name in overall for overall in models.values())),
        key=lambda name: name != found.headline,
    )
    metrics = []
    for name in order:
        scores = tuple(_score(model, overall[name], found.count) for model, overall in models.items())
        pair = pairs.get(name)
        figures = (pair.difference, pair.low, pair.high) if pair else (None, 0.0, 0.0)
        metrics.append(Metric(name, name == found.headline, scores, *figures))
    if not metrics:
        raise InarchError(f"the evaluation on {found.task} has no metric", hint="write it again with inarch evaluate --json")
    changed = (len(found.comparison.better), len(found.comparison.worse)) if found.comparison else (0, 0)
    return Accuracy(found.task, found.count, words.provider(found.model.provider), tuple(metrics), *changed)


def _score(model: str, value: float, samples: int) -> Score:
    """Wilson's 95 % interval of a share of right answers; for scores between right and wrong it is wider than need be."""
    z = 1.959964
    spread = z * math.sqrt(max(value * (1 - value), 0.0) / samples + z * z / (4 * samples * samples))
    middle, scale = value + z * z / (2 * samples), 1 + z * z / samples
    return Score(model, value, max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale))


def speed_of(bench: Bench) -> Speed:
    """Bars of one bench."""
    models = {"dense": bench.dense, "pruned": bench.pruned, "shared": bench.shared, "compiled": bench.compiled}
    there = {name: model for name, model in models.items() if model is not None}
    memory = {name: model.memory for name, model in there.items()}
    figures = [
        ("Model files", {name: model.size.file_bytes for name, model in there.items()}, ""),
        (MODEL_MEMORY, {name: item.model_anonymous for name, item in memory.items()}, "anonymous, after loading"),
        ("Process after a run", {name: item.ran.rss for name, item in memory.items()}, "resident"),
        ("At its peak", {name: item.peak_anonymous for name, item in memory.items()}, "anonymous"),
    ]
    device = {name: item.model_device for name, item in memory.items() if item.model_device is not None}
    if len(device) == len(there):
        figures.insert(1, (DEVICE_MEMORY, device, ""))
    times = [_latency_bars(bench, number) for number in range(len(bench.latency))]
    work = {name: model.multiplications for name, model in there.items() if model.multiplications is not None}
    if times and len(work) == len(there):
        times.append(_bars("Multiplications", work, "of one run", words.count))
    return Speed(
        words.provider(bench.provider),
        bench.inputs,
        tuple(times),
        tuple(_bars(*figure, words.size) for figure in figures),
        bench.notes,
    )


def _latency_bars(bench: Bench, number: int) -> Bars:
    """All models at one size and thread count."""
    item = bench.latency[number]
    words_ = ["one run" if item.threads is None else f"{item.threads} thread{'s' if item.threads != 1 else ''}"]
    if len({other.case for other in bench.latency}) > 1:
        words_.append(item.case)
    bars = [Bar("dense", item.dense.median, _timing(item.dense))]
    for name, part in (("pruned", bench.pruned), ("shared", bench.shared)):
        if part is not None and number < len(part.latency):
            bars.append(_timed(name, part.latency[number]))
    return Bars(", ".join(words_).capitalize(), (*bars, _timed("compiled", item)), f"{item.pairs} pairs")


def _timed(name: str, item: Latency) -> Bar:
    ratio = f"{item.ratio:.3f}{words.TIMES} [{item.low:.3f}, {item.high:.3f}]"
    return Bar(name, item.compiled.median, _timing(item.compiled), ratio)


def _timing(item: Timing) -> str:
    return f"{words.milliseconds(item.median)} ms ({words.milliseconds(item.p95)})"


def _bars(label: str, values: Mapping[str, int], note: str, write: Callable[[float], str]) -> Bars:
    dense = values["dense"]
    bars = (
        Bar(name, max(value, 0), write(value), "" if name == "dense" else words.change(dense, value))
        for name, value in values.items()
    )
    return Bars(label, tuple(bars), note)


def _proof(found: Verified) -> Proof:
    tensors = found.sharing.tensors
    bad = tuple(f"{tensor.name}: {tensor.reason}" for tensor in tensors if not tensor.ok)
    return Proof(words.provider(found.provider), found, sum(tensor.bytes for tensor in tensors), bad)


def _charts(structure: Structure, labels: Mapping[str, words.Label], run: RunFolder) -> tuple[DamageChart, ...]:
    found = [("The model that was compiled", item.damage, item.damage.warning) for item in run.verified if item.damage.sites][:1]
    # Nobody uses that one: what it warns of is what training was for.
    found += [(f"The {item.model} model, not trained under the plan", item.damage, None) for item in run.untrained]
    return tuple(
        DamageChart(
            title,
            tuple(
                DamageColumn(site.name, labels[site.name], site.kind, site.modality, damage.sites[site.name])
                for site in structure.sites
                if site.name in damage.sites
            ),
            damage.outputs,
            warning,
        )
        for title, damage, warning in found
    )


def notes_of(run: RunFolder, structure: Structure) -> list[str]:
    """Where the folder's files contradict each other."""
    from inarch.structure.plan import plan_hash

    notes = []
    compiled = run.compiled
    if compiled is not None and structure.dense is not None and compiled.parameters != structure.dense:
        notes.append(
            f"The folder says that a model of {compiled.parameters:,} parameters was compiled; the model beside it has "
            f"{structure.dense:,}."
        )
    elif compiled is not None and structure.planned not in (None, compiled.planned_parameters):
        notes.append(
            f"The plan here counts {structure.planned:,} parameters, the one that was compiled {compiled.planned_parameters:,}: "
            "the figures below may be of another plan."
        )
    made_with = metadata_of(run).get("inarch.plan")
    if made_with and made_with != plan_hash(run.plan):
        notes.append(f"The compiled model was made with another plan than {run.plan_file}: with that of hash {made_with[:12]}.")
    file = compiled_file(run) if run.benches else None
    if file is not None:
        size = sum(part.stat().st_size for part in model_files(file) if part.exists())
        notes += [
            f"The bench on {bench.inputs or 'these inputs'} measured a file of {bench.compiled.size.file_bytes:,} bytes, the "
            f"compiled model here has {size:,}: the figures under Speed may be of another file."
            for bench in run.benches
            if bench.compiled.size.file_bytes != size
        ]
    return notes


def _missing(run: RunFolder, source: Path | None) -> list[Missing]:
    """What is not shown, and what gives it. ``RUN`` stands for the folder."""
    absent = []
    if source is None:
        absent.append(
            Missing(
                "structure",
                "The dense model is not in this folder, so the map counts units, and what is saved is not split into its ways.",
                "inarch report RUN --model model.onnx",
            )
        )
    if run.compiled is None:
        command = f"inarch compile model.onnx {run.plan_file} -o compiled.onnx --json > compile.json"
        absent.append(Missing("size", "It was not compiled, or what compiling said is not here.", command))
    if not run.verified:
        command = f"inarch verify model.onnx {run.plan_file} compiled.onnx --json > verify.json"
        absent.append(Missing("proof", "Nothing says that the compiled model computes what the plan asks for.", command))
        absent.append(Missing("damage", "How far the plan moves each site's weights is measured by verifying.", command))
    if not run.evaluations:
        command = "inarch evaluate compiled.onnx --against dense.onnx --task TASK --json > evaluation.json"
        absent.append(Missing("accuracy", "How right the model's answers are was not measured.", command))
    if not run.benches:
        command = "inarch bench dense.onnx compiled.onnx --json > bench.json"
        absent.append(Missing("speed", "Latency and memory were not measured.", command))
    if not run.examples:
        command = "inarch evaluate compiled.onnx --against dense.onnx --task TASK --examples examples.json"
        absent.append(Missing("examples", "There are no answers to look at.", command))
    return absent
