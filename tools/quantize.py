"""``inarch quantize MODEL``: int8 or fp16 after compiling, with everything that is shared stored once still."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inarch.structure.errors import InarchError
from inarch.structure.files import refuse_to_replace
from inarch.tools import render
from inarch.tools.evaluate import FAILED, AtMostLost, Outcome, Running, judge, judged, show_comparison
from inarch.tools.options import Debug, Inputs, Json, Model, Provider, Seed
from inarch.tools.subject import Wanted
from inarch.tools.tasks import (
    Annotations,
    Answers,
    Batch,
    Images,
    Level,
    Limit,
    Longest,
    RunFolder,
    Short,
    Side,
    Split,
    TaskName,
    TokenizerFile,
)

if TYPE_CHECKING:
    import onnx_ir as ir

    from inarch.runtime.damage import OutputDamage
    from inarch.runtime.inputs import Case
    from inarch.runtime.latency import LatencyReport
    from inarch.runtime.placement import Placement
    from inarch.runtime.predictions import Predictions
    from inarch.runtime.sharing import SharingReport

ON_CPU = "on a CPU, ONNX Runtime casts fp16 weights to fp32: one with one reader when it loads, a shared one on every run"


Left = Mapping[str, tuple[str, int]]
"""Weight -> why it is not quantised, and its bytes."""


class Target(StrEnum):
    """What weights are made."""

    int8 = "int8"
    fp16 = "fp16"


@dataclass(frozen=True)
class Settings:
    """How a model is quantised.

    Attributes:
        to: what is made.
        per_tensor, reduce_range, convolutions: of int8.
        keep: patterns of names of weights that stay.
    """

    to: Target
    per_tensor: bool = False
    reduce_range: bool = False
    convolutions: bool = False
    keep: Sequence[str] = ()


@dataclass(frozen=True)
class Result:
    """What was made, and what was measured.

    Attributes:
        tensors: how many tensors are in the new type.
        left: large weights that are not -> why, and their bytes.
        notes: what has to be known, in sentences.
        files: model -> bytes of its files.
        sharing: of the result in ONNX Runtime.
        outputs: how far each output moved.
        latency: of the result against the model.
        accuracy: of both on a task.
    """

    tensors: int
    left: Left
    notes: Sequence[str]
    files: Mapping[str, int]
    sharing: SharingReport
    outputs: tuple[OutputDamage, ...]
    latency: tuple[LatencyReport, ...]
    accuracy: Outcome | None


def run(
    model: Model,
    to: Annotated[Target, typer.Option("--to", help="int8: dynamic, for CPUs. fp16: for GPUs.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="Where the result is written.", show_default=False)],
    dense: Annotated[
        Path | None, typer.Option("--against", metavar="DENSE", help="Compare file sizes with this, too.", show_default=False)
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", metavar="PATTERN", help="Weights of such names stay as they are.", show_default=False),
    ] = None,
    per_tensor: Annotated[bool, typer.Option("--per-tensor", help="int8: one scale for a weight, not one a column.")] = False,
    reduce_range: Annotated[bool, typer.Option("--reduce-range", help="int8: seven bits, for x86 without VNNI.")] = False,
    convolutions: Annotated[
        bool, typer.Option("--convolutions", help="int8: store kernels so; they are made fp32 on every run.")
    ] = False,
    task: TaskName = None,
    run_folder: RunFolder = None,
    split: Split = None,
    level: Level = None,
    side: Side = None,
    annotations: Annotations = None,
    images: Images = None,
    tokenizer: TokenizerFile = None,
    answers: Answers = None,
    short: Short = None,
    longest: Longest = None,
    batch: Batch = None,
    limit: Limit = None,
    at_most_lost: AtMostLost = None,
    pairs: Annotated[int, typer.Option("--pairs", min=0, help="Interleaved timed pairs; 0 times nothing.")] = 30,
    threads: Annotated[str, typer.Option("--threads", metavar="N,N", help="Thread counts to time.")] = "1",
    inputs: Inputs = None,
    seed: Seed = 0,
    provider: Provider = "cpu",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Quantise a model, and measure what it costs.

    Every weight that is shared stays one tensor with all its readers, or is refused. Size, sharing, outputs and latency are
    measured against MODEL; with --run or --task, accuracy too, sample by sample. OUT appears whole or not at all.
    """
    settings = Settings(to, per_tensor, reduce_range, convolutions, keep or ())
    wanted = Wanted(task, run_folder, split, level, side, None, annotations, images, tokenizer, answers, short, longest)
    _check(settings, wanted, at_most_lost)
    refuse_to_replace(out, (model, dense, inputs, annotations, tokenizer, answers))
    running = Running(provider, False, batch, limit)
    with render.progress(quiet=json) as report:
        # What the options ask for is looked for before anything is written.
        plan = prepare(model, inputs, threads, pairs, seed, provider, report)
        before = judge(model, wanted, running, report) if wanted.given else None
        tensors, left, notes = quantise(model, out, settings, report)
        measured = measure(model, out, dense, plan, report)
        accuracy = None
        if before is not None:
            after, _, _ = judge(out, wanted, running, report, before[1])
            accuracy = judged(_compared(before[0], after, before[2]), at_most_lost, None)
    result = Result(tensors, left, notes, *measured, accuracy)
    if json:
        render.emit_json({"format": "inarch.quantized/1", "out": str(out), "to": to.value, **as_data(result)})
    else:
        show(result, out)
    if not _stays_stored_once(result.sharing) or (accuracy is not None and accuracy.failed):
        raise typer.Exit(FAILED)


def _check(settings: Settings, wanted: Wanted, at_most_lost: float | None) -> None:
    given = [name for name in ("per_tensor", "reduce_range", "convolutions") if getattr(settings, name)]
    if settings.to is Target.fp16 and given:
        raise InarchError("is for int8 alone", where=f"--{given[0].replace('_', '-')}")
    if at_most_lost is not None and not wanted.given:
        raise InarchError("accuracy is not measured", where="--at-most-lost", hint="give --run FOLDER or --task TASK")


def quantise(model: Path, out: Path, settings: Settings, report: render.Report) -> tuple[int, Left, Sequence[str]]:
    """Write the quantised model.

    Returns:
        Tensors in the new type, large ones that are not with the reason, and notes.

    Raises:
        InarchError: the model cannot be read, quantised or written.
    """
    from inarch.frontends.mapped import sources_of
    from inarch.frontends.onnx_file import load_model

    report("reading the model", 0, 1)
    source = load_model(model)
    refuse_to_replace(out, sources_of(source))
    if settings.to is Target.int8:
        from inarch.runtime.quantise import quantise_int8

        made = quantise_int8(
            source,
            out,
            per_channel=not settings.per_tensor,
            reduce_range=settings.reduce_range,
            convolutions=settings.convolutions,
            keep=settings.keep,
            progress=report,
        )
        return len(made.quantised), made.left, ()
    from inarch.compiler.half import to_half
    from inarch.compiler.writer import write_model

    half = to_half(source, lambda node: _is_kept(node, settings.keep))
    write_model(half.model, out, progress=lambda done, total: report("writing", done, total))
    notes = [ON_CPU]
    if half.clipped:
        names = render.wrapped_list(sorted(half.clipped))
        notes.append(f"fp16 ends at 65504, and so do now what masks are made with: {names}")
    if half.raised:
        names = render.wrapped_list(list(half.raised))
        notes.append(f"fp16 has nothing below 6e-8, and what keeps divisors from being zero is that now: {names}")
    kept = ", ".join(f"{op} {count}" for op, count in half.kept.items())
    if kept:
        notes.append(f"computed in fp32: {kept}")
    return half.tensors, {}, notes


def _is_kept(node: ir.Node, patterns: Sequence[str]) -> bool:
    """Whether a node reads a weight of such a name."""
    names = [str(value.name) for value in node.inputs if value is not None and value.is_initializer()]
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        cases: inputs that the model accepts.
        providers: where it runs.
        threads: thread counts to time.
        pairs: timed pairs; 0 for none.
    """

    cases: Sequence[Case]
    providers: tuple[str, ...]
    threads: tuple[int, ...]
    pairs: int


def prepare(model: Path, inputs: Path | None, threads: str, pairs: int, seed: int, provider: str, report: render.Report) -> Plan:
    """Find out what is to be measured.

    Raises:
        InarchError: there is no such provider, the thread counts are none, the pairs are too few, or the model runs on no
            input.
    """
    from inarch.runtime.latency import MIN_PAIRS
    from inarch.runtime.providers import resolve_provider
    from inarch.runtime.session import load
    from inarch.runtime.verify import choose_cases
    from inarch.tools.bench import thread_counts

    counts = thread_counts(threads)
    if 0 < pairs < MIN_PAIRS:
        raise InarchError(f"{pairs} pairs are too few to say anything", where="--pairs", hint=f"at least {MIN_PAIRS}, or 0")
    report("looking for inputs", 0, 1)
    providers = (resolve_provider(provider),)
    cases = choose_cases(load(model), model, inputs, providers=providers, seed=seed).cases
    report("looking for inputs", 1, 1)
    return Plan(cases, providers, counts, pairs)


def measure(
    model: Path, out: Path, dense: Path | None, plan: Plan, report: render.Report
) -> tuple[Mapping[str, int], SharingReport, tuple[OutputDamage, ...], tuple[LatencyReport, ...]]:
    """Sizes, sharing, outputs and latency of the result beside the model's.

    Raises:
        RuntimeFailure: ONNX Runtime refuses a model or the inputs.
    """
    from inarch.runtime.damage import measure_damage
    from inarch.runtime.latency import measure_latency
    from inarch.runtime.sharing import check_sharing
    from inarch.runtime.size import file_bytes

    paths = {"dense": dense, "model": model, "result": out}
    files = {name: file_bytes(path) for name, path in paths.items() if path is not None}
    report("sharing and outputs", 0, 2)
    sharing = check_sharing(out, providers=plan.providers)
    outputs = measure_damage(model, out, plan.cases, providers=plan.providers).outputs
    report("sharing and outputs", 2, 2)
    latency: tuple[LatencyReport, ...] = ()
    if plan.pairs:
        latency = measure_latency(
            model,
            out,
            plan.cases[0],
            threads=plan.threads,
            pairs=plan.pairs,
            providers=plan.providers,
            progress=lambda done, total: report("timing", done, total),
        )
    return files, sharing, outputs, latency


def _compared(first: Predictions, second: Predictions, placement: Placement | None) -> Outcome:
    from inarch.runtime.accuracy import compare

    return Outcome(second, first, compare(first.evaluation, second.evaluation), placement)


def _stays_stored_once(report: SharingReport) -> bool:
    """Whether what does not stay shared is one tensor at least, that ONNX Runtime packs for two kinds of readers."""
    return all(tensor.copies == 1 for tensor in report.tensors)


def as_data(result: Result) -> dict[str, object]:
    """What ``quantize --json`` prints."""
    from inarch.tools.evaluate import as_data as accuracy_data

    files = dict(result.files)
    return {
        "tensors": result.tensors,
        "left": {name: {"reason": reason, "bytes": count} for name, (reason, count) in result.left.items()},
        "notes": list(result.notes),
        "files": files,
        "of_model": files["result"] / files["model"],
        "of_dense": files["result"] / files["dense"] if "dense" in files else None,
        "sharing": result.sharing.to_json(),
        "outputs": [vars(output) for output in result.outputs],
        "latency": [item.to_json() for item in result.latency],
        "accuracy": None if result.accuracy is None else accuracy_data(result.accuracy),
    }


def show(result: Result, out: Path) -> None:
    """Print sizes, sharing, outputs, latency and accuracy."""
    sizes = render.table("file", ("bytes", "right"), ("of the first", "right"))
    whole = next(iter(result.files.values()))
    for name, count in result.files.items():
        render.add_row(sizes, name, render.size(count), render.percent(count, whole))
    render.show(sizes)
    moved = render.table("output", ("moves by", "right"), ("cosine", "right"))
    for output in result.outputs:
        render.add_row(moved, output.output, f"{100 * output.relative:.3f} %", f"{output.cosine:.6f}")
    render.show(moved)
    for item in result.latency:
        ratio = f"{item.ratio:.3f} [{item.low:.3f}, {item.high:.3f}]"
        times = f"{item.dense.median:.2f} ms before, {item.compiled.median:.2f} ms now"
        render.say(f"latency at {item.threads} thread{'s' if item.threads > 1 else ''}: {times}, ratio {ratio}")
    if result.accuracy is not None and result.accuracy.comparison is not None:
        render.say("")
        show_comparison(result.accuracy.comparison, ("before", "now"))
    _show_sharing(result.sharing)
    _show_left(result.left)
    for note in result.notes:
        render.say(f"note: {note}")
    if result.accuracy is not None:
        for sentence in result.accuracy.failed:
            render.say(f"FAILED: {sentence}", style="bold red")
    render.say(f"wrote {out}: {result.tensors:,} tensors")


def _show_sharing(report: SharingReport) -> None:
    tensors = report.tensors
    if not tensors:
        render.say("sharing: nothing is shared")
        return
    twice = [tensor for tensor in tensors if not tensor.ok]
    total = render.size(sum(tensor.bytes for tensor in tensors))
    render.say(
        f"sharing: {len(tensors)} shared tensors ({total}), {'each stored once' if _stays_stored_once(report) else 'BROKEN'}"
    )
    if twice and _stays_stored_once(report):
        some = render.size(sum(tensor.bytes for tensor in twice))
        render.say(f"of these ONNX Runtime packs {len(twice)} ({some}) once for each of two kinds of readers")
    for tensor in twice if not _stays_stored_once(report) else ():
        render.say(f"  {tensor.name}: {tensor.reason}")


def _show_left(left: Left) -> None:
    """Print what stays as it is, by reason."""
    from inarch.runtime.quantise import KERNELS

    reasons: dict[str, list[int]] = {}
    for reason, count in left.values():
        reasons.setdefault(reason, []).append(count)
    for reason, counts in sorted(reasons.items(), key=lambda item: -sum(item[1])):
        hint = "; --convolutions takes them along" if reason == KERNELS else ""
        tensors = f"{len(counts)} tensor{'s' if len(counts) > 1 else ''}"
        render.say(f"not quantised: {tensors} ({render.size(sum(counts))}), {reason}{hint}")
