"""``inarch bench DENSE OUT``: models side by side: parameters, bytes, memory, latency."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inarch.structure.errors import InarchError
from inarch.tools import render
from inarch.tools.bench_result import Comparison, Measured
from inarch.tools.bench_tables import show
from inarch.tools.options import Compiled, Cost, Debug, Inputs, Json, Provider, Seed

if TYPE_CHECKING:
    from inarch.runtime.inputs import Case
    from inarch.runtime.latency import LatencyReport
    from inarch.runtime.placement import Placement
    from inarch.runtime.sweep import Sweep

__all__ = ["Comparison", "Measured", "as_data", "measure", "numbers", "run", "show", "thread_counts"]

PARTS = ("pruned", "shared")
"""The plan's pruning alone, and its sharing alone."""

MOST_THREADS = 4096
"""ONNX Runtime starts as many as it is told to, and takes the machine down with more than that."""


def run(
    dense: Annotated[Path, typer.Argument(metavar="DENSE", help="The original model.", show_default=False)],
    compiled: Compiled,
    threads: Annotated[
        str | None,
        typer.Option("--threads", metavar="N,N", help="Thread counts to time; 1,2 on the CPU.", show_default=False),
    ] = None,
    pairs: Annotated[
        int, typer.Option("--pairs", help="Interleaved timed pairs, 30 or more, of each size and thread count.")
    ] = 30,
    batches: Annotated[
        str | None, typer.Option("--batches", metavar="N,N", help="Time these batch sizes, e.g. 1,4,16.", show_default=False)
    ] = None,
    lengths: Annotated[
        str | None, typer.Option("--lengths", metavar="N,N", help="Time these text lengths.", show_default=False)
    ] = None,
    images: Annotated[
        str | None, typer.Option("--images", metavar="N,N", help="Time these image sizes, in pixels.", show_default=False)
    ] = None,
    parts: Annotated[
        Path | None,
        typer.Option(
            "--parts",
            metavar="PLAN",
            help="OUT's plan: measure its pruning alone and its sharing alone beside it.",
            show_default=False,
        ),
    ] = None,
    cost: Cost = None,
    inputs: Inputs = None,
    seed: Seed = 0,
    provider: Provider = "cpu",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare size, memory and latency of two models.

    Latency is the median of interleaved pairs, with a 95 % confidence interval of the ratio; memory is of a fresh process for
    each model. Neither is checked here: run inarch verify first, a wrong model is easily fast. What --parts compiles is verified.
    A provider that did not run the models is refused, and a GPU that is only a program is not timed.
    """
    from inarch.runtime.sweep import Sweep

    sweep = Sweep(*(numbers(text, option) if text else () for text, option in _sweeps(batches, lengths, images)))
    counts = thread_counts(threads) if threads is not None else None
    with render.progress(quiet=json) as report:
        found = measure(
            dense,
            compiled,
            counts,
            pairs=pairs,
            inputs=inputs,
            seed=seed,
            provider=provider,
            sweep=sweep,
            parts=parts,
            cost=cost,
            report=report,
        )
    if json:
        render.emit_json({"format": "inarch.bench/1", **as_data(found)})
    else:
        show(found)


def _sweeps(batches: str | None, lengths: str | None, images: str | None) -> list[tuple[str | None, str]]:
    return [(batches, "--batches"), (lengths, "--lengths"), (images, "--images")]


def numbers(text: str, option: str, what: str = "sizes", example: str = "1,4,16") -> tuple[int, ...]:
    """Read ``1,2``.

    Raises:
        InarchError: not a list of positive integers.
    """
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise InarchError(f"{text!r} is not a list of {what}", where=option, hint=f"for example {example}")
    return tuple(int(part) for part in parts)


def thread_counts(text: str) -> tuple[int, ...]:
    """Read ``1,2``.

    Raises:
        InarchError: not a list of positive integers, or more than any machine has a use for.
    """
    counts = numbers(text, "--threads", "thread counts", "1,2")
    if max(counts) > MOST_THREADS:
        raise InarchError(f"{max(counts)} threads are more than {MOST_THREADS}", where="--threads", hint="give cores at most")
    return counts


def measure(
    dense: Path,
    compiled: Path,
    threads: tuple[int, ...] | None = None,
    *,
    pairs: int,
    inputs: Path | None = None,
    seed: int = 0,
    provider: str = "cpu",
    sweep: Sweep | None = None,
    parts: Path | None = None,
    cost: Path | None = None,
    report: render.Report,
) -> Comparison:
    """Measure models on inputs that the dense one accepts.

    Args:
        dense: the original.
        compiled: what it was compiled to.
        threads: thread counts; 1 and 2 on the CPU where None, and what ORT likes elsewhere.
        pairs: interleaved runs of each.
        inputs: an ``.npz`` file of the user's own.
        seed: of inputs that are made.
        provider: in short or by ORT's name.
        sweep: sizes to time at; by default those of the first case.
        parts: the plan of ``compiled``, to compile and measure its parts too.
        cost: the cost table that ``compiled`` was compiled with, for its parts; where None, the shipped one that it names.
        report: told about every step.

    Raises:
        InarchError: ``compiled`` is not what ``parts`` and ``cost`` make.
        RuntimeFailure: ONNX Runtime is missing or refuses a model or the inputs, or the provider ran nothing of one.
    """
    from inarch.runtime.providers import resolve_provider
    from inarch.runtime.sweep import Sweep

    chosen = resolve_provider(provider)
    case, cases = _cases(dense, inputs, seed, chosen, sweep or Sweep())
    with tempfile.TemporaryDirectory(prefix="inarch-") as folder:
        paths = {"dense": dense}
        if parts is not None:
            paths |= _parts(dense, compiled, parts, cost, Path(folder), inputs=inputs, seed=seed, provider=chosen, report=report)
        paths["compiled"] = compiled
        return _compare(paths, case, cases, threads, pairs, chosen, report)


def _compare(
    paths: Mapping[str, Path],
    case: Case,
    cases: tuple[Case, ...],
    threads: tuple[int, ...] | None,
    pairs: int,
    provider: str,
    report: render.Report,
) -> Comparison:
    from inarch.runtime.memory import measure_memory
    from inarch.runtime.multiplications import count_multiplications
    from inarch.runtime.placement import measure_placement
    from inarch.runtime.precision import stored_in
    from inarch.runtime.providers import CPU
    from inarch.runtime.session import load
    from inarch.runtime.size import measure_size

    placements: dict[str, Placement | None] = {}
    for done, (name, path) in enumerate(paths.items()):
        report("looking where it runs", done, len(paths))
        placements[name] = None if provider == CPU else measure_placement(path, case.feeds, provider)
    report("looking where it runs", len(paths), len(paths))
    counts = threads or ((1, 2) if provider == CPU else (0,))
    latency = _latency(paths, cases, counts, pairs, provider, report)
    models = {}
    for done, (name, path) in enumerate(paths.items()):
        report("memory and size", done, len(paths))
        memory = measure_memory(path, case, providers=(provider,))
        size = measure_size(path, providers=(provider,))
        precision = stored_in(load(path))
        work = count_multiplications(path, case.feeds, provider)
        models[name] = Measured(size, memory, latency.get(name, ()), placements[name], precision, work)
    report("memory and size", len(paths), len(paths))
    return Comparison(models, case.name, provider, tuple(_notes(models, provider)))


def _latency(
    paths: Mapping[str, Path],
    cases: tuple[Case, ...],
    threads: tuple[int, ...],
    pairs: int,
    provider: str,
    report: render.Report,
) -> dict[str, tuple[LatencyReport, ...]]:
    """Model -> one report a case and thread count; empty where what runs the models is no GPU though it is called one."""
    from inarch.runtime.latency import measure_side_by_side
    from inarch.runtime.providers import software_device

    if software_device(provider):
        return {}
    dense, *others = paths
    found: dict[str, tuple[LatencyReport, ...]] = dict.fromkeys(others, ())
    for number, case in enumerate(cases):
        measured = measure_side_by_side(
            paths[dense],
            [paths[name] for name in others],
            case,
            threads=threads,
            rounds=pairs,
            providers=(provider,),
            progress=partial(_timed, report, number, len(cases)),
        )
        for name, reports in zip(others, measured, strict=True):
            found[name] += reports
    return found


def _timed(report: render.Report, number: int, cases: int, done: int, total: int) -> None:
    report("timing", number * total + done, cases * total)


def _cases(dense: Path, inputs: Path | None, seed: int, provider: str, sweep: Sweep) -> tuple[Case, tuple[Case, ...]]:
    """The case for memory, and those for latency."""
    from inarch.runtime.session import Session, SessionOptions, load
    from inarch.runtime.sweep import sweep_cases
    from inarch.runtime.verify import choose_cases

    model = load(dense)
    first = choose_cases(model, dense, inputs, providers=(provider,), seed=seed).cases[0]
    with Session(dense, SessionOptions("off", (provider,))) as session:
        return first, sweep_cases(model, session, first, sweep, seed=seed)


def _parts(
    dense: Path,
    compiled: Path,
    plan_file: Path,
    cost: Path | None,
    folder: Path,
    *,
    inputs: Path | None,
    seed: int,
    provider: str,
    report: render.Report,
) -> dict[str, Path]:
    """Compile the plan's parts as ``compiled`` was compiled from the whole, and prove that they are what they should be.

    Raises:
        InarchError: ``compiled`` was made from another plan or with another cost table, or a part is not equivalent.
    """
    from inarch.api import compile, open_cost, open_plan, verify
    from inarch.runtime.session import load
    from inarch.structure.cost import SHIPPED, cost_hash, shipped_name
    from inarch.structure.parts import pruning_of, sharing_of
    from inarch.structure.plan import plan_hash

    plan, about = open_plan(plan_file), load(compiled).metadata_props
    digest, _, prefer = about.get("inarch.cost", "").partition(":")
    shipped = shipped_name(digest)
    table = open_cost(SHIPPED[shipped] if cost is None and shipped is not None else cost)
    if about.get("inarch.plan") != plan_hash(plan):
        raise InarchError("was not compiled with this plan", where=str(compiled), hint=f"--parts {plan_file} has to be its plan")
    if digest != cost_hash(table):
        raise InarchError("was compiled with another cost table", where=str(compiled), hint="give it with --cost")
    paths = {}
    for name, part in zip(PARTS, (pruning_of(plan), sharing_of(plan)), strict=True):
        paths[name] = folder / f"{name}.onnx"
        compile(dense, part, paths[name], cost=table, prefer=prefer or None, progress=report)
        proof = verify(dense, part, paths[name], inputs=inputs, seed=seed, provider=provider, progress=report)
        if not proof.ok:
            raise InarchError(f"the plan's part {name!r} alone is not equivalent", where=str(plan_file))
    return paths


def _notes(models: Mapping[str, Measured], provider: str) -> list[str]:
    from inarch.runtime.providers import CPU, short_name, software_device

    notes = []
    software = software_device(provider)
    if software:
        notes.append(f"latency is reported from a real GPU alone: {software}")
    kinds = {name: model.precision for name, model in models.items()}
    if len(set(kinds.values())) > 1:
        notes.append(f"weights are {', '.join(f'{kind} in {name}' for name, kind in kinds.items())}")
    elif provider == CPU and "fp16" in kinds.values():
        notes.append("fp16 files are for GPUs: the CPU casts their weights, those that are shared in every run")
    else:
        notes.append(f"weights are {kinds['dense']}")
    unknown = models["dense"].memory.device_unknown
    if unknown:
        notes.append(f"memory of the device is not known: {unknown}")
    for name, model in models.items():
        if model.placement is not None:
            notes.append(f"{name}: {model.placement.summary}")
            if model.placement.warning:
                notes.append(f"WARNING: {name}: {model.placement.warning}")
    if provider != CPU and not software:
        notes.append(f"inputs are bound once, and a run ends when {short_name(provider)} has computed its outputs")
    return notes


def as_data(found: Comparison) -> dict[str, object]:
    """What ``bench --json`` prints: dense and compiled at the top as ever, their latency beside them; parts under their names."""
    models = {
        name: {
            "size": model.size.to_json(),
            "memory": model.memory.to_json(),
            "precision": model.precision,
            "multiplications": model.multiplications,
            "placement": model.placement.to_json() if model.placement else None,
            **({"latency": _latency_data(model)} if name in PARTS else {}),
        }
        for name, model in found.models.items()
    }
    return {
        "inputs": found.case,
        "provider": found.provider,
        "notes": list(found.notes),
        **models,
        "latency": _latency_data(found.compiled),
    }


def _latency_data(model: Measured) -> list[dict[str, object]]:
    # 0 threads leaves their number to ORT, which is none to report.
    return [{**item.to_json(), "threads": item.threads or None} for item in model.latency]
