"""``inarch evaluate MODEL``: how right a deployed model is on a task, and what changed against another one, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inarch import __version__
from inarch.structure.errors import InarchError, RuntimeFailure
from inarch.structure.files import refuse_to_replace
from inarch.tools import render
from inarch.tools.options import Debug, Json, Provider
from inarch.tools.subject import Subject, Wanted
from inarch.tools.tasks import (
    Annotations,
    Answers,
    Batch,
    DataSeed,
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
    open_subject,
)

if TYPE_CHECKING:
    from inarch.runtime.accuracy import Comparison, Evaluation
    from inarch.runtime.placement import Placement
    from inarch.runtime.predictions import Predictions

FAILED = 1

AtMostLost = Annotated[
    float | None,
    typer.Option(
        "--at-most-lost",
        metavar="POINTS",
        min=0.0,
        help="Exit code 1 where more may be lost: where the interval of the difference reaches below.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class Running:
    """How models are run.

    Attributes:
        provider: as the user names it.
        exact: without the rounding that a provider adds by default.
        batch: samples at a time; None for what suits the task.
        limit: only the first so many samples.
    """

    provider: str = "cpu"
    exact: bool = False
    batch: int | None = None
    limit: int | None = None


@dataclass(frozen=True)
class Files:
    """The files that are read and written.

    Attributes:
        model: what is asked about, or
        stored: what it said.
        against: what it is compared with: a model, or what that one said.
        predictions: where it is written what the model says.
        examples: where samples to look at are written.
    """

    model: Path | None = None
    stored: Path | None = None
    against: Path | None = None
    predictions: Path | None = None
    examples: Path | None = None


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a command found.

    Attributes:
        second: of the model that is asked about.
        first: of the one that it is compared with.
        comparison: of the two.
        placement: where the model ran, if not on the CPU.
        failed: what was asked for and is not so, one sentence each.
        disagreements: samples that differ clearly, where that was asked for.
    """

    second: Predictions
    first: Predictions | None = None
    comparison: Comparison | None = None
    placement: Placement | None = None
    failed: tuple[str, ...] = ()
    disagreements: Sequence[int] | None = None


def run(
    model: Annotated[Path | None, typer.Argument(metavar="MODEL", help="A model; not with --from.", show_default=False)] = None,
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="FILE", help="The model to compare with, or its predictions.", show_default="none"),
    ] = None,
    stored: Annotated[
        Path | None, typer.Option("--from", metavar="FILE.npz", help="Stored predictions instead of a model.", show_default=False)
    ] = None,
    task: TaskName = None,
    run_folder: RunFolder = None,
    split: Split = None,
    level: Level = None,
    side: Side = None,
    seed: DataSeed = None,
    annotations: Annotations = None,
    images: Images = None,
    tokenizer: TokenizerFile = None,
    answers: Answers = None,
    short: Short = None,
    longest: Longest = None,
    batch: Batch = None,
    limit: Limit = None,
    provider: Provider = "cpu",
    exact: Annotated[bool, typer.Option("--exact", help="Not as fast as the provider can, but as precise (no TF32).")] = False,
    predictions: Annotated[
        Path | None,
        typer.Option("--predictions", metavar="FILE.npz", help="Store what MODEL says of every sample.", show_default="nowhere"),
    ] = None,
    examples: Annotated[
        Path | None,
        typer.Option(
            "--examples",
            metavar="FILE.json",
            help="With --against: samples with both answers, for the report.",
            show_default="none",
        ),
    ] = None,
    changed: Annotated[
        int, typer.Option("--changed", metavar="N", min=0, help="List so many changed samples, worse ones first.")
    ] = 0,
    at_most_lost: AtMostLost = None,
    agree: Annotated[
        float | None,
        typer.Option(
            "--agree",
            metavar="MARGIN",
            min=0.0,
            help="Exit code 1 where a sample differs though neither choice was that close.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Judge a model on held-out samples in ONNX Runtime.

    With --against, the same samples are given to both models: the difference is paired, with its 95 % confidence interval, and
    says how many samples changed, in both directions. Exit code 1 where --at-most-lost or --agree is not met.
    """
    wanted = Wanted(task, run_folder, split, level, side, seed, annotations, images, tokenizer, answers, short, longest)
    running = Running(provider, exact, batch, limit)
    files = Files(model, stored, against, predictions, examples)
    _check(files, wanted, at_most_lost, agree)
    with render.progress(quiet=json) as report:
        found = outcome(files, wanted, running, report)
    found = judged(found, at_most_lost, agree)
    if json:
        render.emit_json({"format": "inarch.evaluation/1", **as_data(found)})
    else:
        show(found, changed)
    if found.failed:
        raise typer.Exit(FAILED)


def _check(files: Files, wanted: Wanted, at_most_lost: float | None, agree: float | None) -> None:
    stored, against = files.stored, files.against
    if (files.model is None) == (stored is None):
        raise InarchError("give either a model or --from FILE.npz", where="MODEL")
    if stored is not None and (wanted.given or files.predictions is not None):
        raise InarchError("stored predictions have a task already", where="--from", hint="leave out --task, --run, --predictions")
    if stored is not None and files.examples is not None:
        raise InarchError("stored predictions have no images", where="--examples", hint="give a model and its task")
    needing = {"--at-most-lost": at_most_lost, "--agree": agree, "--examples": files.examples}
    asked = [name for name, value in needing.items() if value is not None]
    if against is None and asked:
        raise InarchError("there is nothing to compare with", where=asked[0], hint="give --against FILE")
    if stored is not None and against is not None and not _is_stored(against):
        raise InarchError("stored predictions are compared with stored ones", where="--against", hint="give a .npz file")
    for written in (files.predictions, files.examples):
        if written is not None:
            refuse_to_replace(written, (files.model, stored, against, wanted.annotations, wanted.tokenizer, wanted.answers))


def _is_stored(path: Path) -> bool:
    return path.suffix == ".npz"


def outcome(files: Files, wanted: Wanted, running: Running, report: render.Report) -> Outcome:
    """Judge the model, and what it is compared with; what the model says is stored before the other one is run.

    Raises:
        InarchError: a file cannot be read or written, the task is none, a model does not fit it, or two files are of other
            samples.
    """
    from inarch.runtime.accuracy import compare
    from inarch.runtime.predictions import load_predictions, save_predictions
    from inarch.tools.report_examples import write_examples

    subject: Subject | None = None
    placement: Placement | None = None
    if files.model is not None:
        second, subject, placement = judge(files.model, wanted, running, report)
        if files.predictions is not None:
            save_predictions(second, files.predictions)
    else:
        assert files.stored is not None
        second = cut(load_predictions(files.stored), running.limit)
    if files.against is None:
        return Outcome(second, placement=placement)
    if _is_stored(files.against):
        first = cut(load_predictions(files.against), running.limit)
    else:
        first, _, _ = judge(files.against, wanted, running, report, subject)
    if dict(first.samples) != dict(second.samples):
        names = sorted(key for key in {**first.samples, **second.samples} if first.samples.get(key) != second.samples.get(key))
        raise RuntimeFailure(f"the two were judged on other samples: they differ in {', '.join(names)}", where="--against")
    found = Outcome(second, first, compare(first.evaluation, second.evaluation), placement)
    if files.examples is not None:
        assert subject is not None
        if not write_examples(files.examples, subject.task, first.evaluation, second.evaluation):
            raise InarchError(f"samples of {subject.task.name} have no pictures", where="--examples", hint="leave it out")
    return found


def judge(
    path: Path, wanted: Wanted, running: Running, report: render.Report, subject: Subject | None = None
) -> tuple[Predictions, Subject, Placement | None]:
    """One model on a task.

    Args:
        path: the model.
        wanted: the task.
        running: how it is run.
        report: progress.
        subject: the task where it is open already.

    Returns:
        What the model says, the task, and where it ran if not on the CPU.

    Raises:
        InarchError: the task is none, or the model does not fit it.
        RuntimeFailure: ONNX Runtime is missing, refuses the model, or runs nothing of it on the provider.
    """
    import numpy as np

    from inarch.runtime.accuracy import evaluate
    from inarch.runtime.face import face_of, fitted, runner
    from inarch.runtime.placement import measure_placement
    from inarch.runtime.predictions import Predictions
    from inarch.runtime.providers import CPU, resolve_provider
    from inarch.runtime.session import Session, SessionOptions

    provider = resolve_provider(running.provider)
    options = SessionOptions(providers=(provider,), exact=running.exact)
    report(f"loading {path.name}", 0, 1)
    face = face_of(path, str(path))
    placement = None
    with Session(path, options) as session:
        if subject is None:
            subject = open_subject(wanted, face, runner(session, face, face.outputs))
        else:
            subject.check(face)
        report(f"loading {path.name}", 1, 1)
        batch = face.batch or running.batch or subject.batch
        if provider != CPU:
            feeds = fitted(face, subject.task.feeds(np.arange(min(batch, subject.task.samples))))
            placement = measure_placement(path, feeds, provider, options=options)
        evaluation = evaluate(
            runner(session, face, subject.outputs),
            subject.task,
            batch=batch,
            limit=running.limit,
            progress=lambda _, done, total: report(path.name, done, total),
        )
    made = {"model": path.name, "provider": provider, "inarch": __version__}
    texts = subject.texts(len(next(iter(evaluation.scores.values()))))
    return Predictions(evaluation, subject.samples_of(batch), texts, made), subject, placement


def cut(found: Predictions, limit: int | None) -> Predictions:
    """The first samples of stored predictions."""
    from inarch.runtime.accuracy import first_samples
    from inarch.runtime.predictions import Predictions

    if limit is None or limit >= len(next(iter(found.evaluation.scores.values()))):
        return found
    return Predictions(first_samples(found.evaluation, limit), found.samples, found.texts[:limit], found.made)


def judged(found: Outcome, at_most_lost: float | None, agree: float | None) -> Outcome:
    """The outcome with what was asked of it and is not so."""
    comparison = found.comparison
    if comparison is None:
        return found
    failed: list[str] = []
    differing: list[int] | None = None
    if at_most_lost is not None and not 100 * comparison.headline.low >= -at_most_lost:
        lost = -100 * comparison.headline.low
        failed.append(f"up to {lost:.2f} points of {comparison.metric} may be lost, allowed are {at_most_lost:g}")
    if agree is not None:
        if "margin" not in found.second.evaluation.predictions:
            hint = "--at-most-lost holds for every task"
            raise InarchError(f"{comparison.second.task} does not say how close its choices were", where="--agree", hint=hint)
        differing = comparison.disagreements(agree).tolist()
        if differing:
            failed.append(f"{len(differing)} samples differ outside a margin of {agree:g}")
    return Outcome(found.second, found.first, comparison, found.placement, tuple(failed), differing)


def as_data(found: Outcome) -> dict[str, object]:
    """What ``evaluate --json`` prints."""
    second = found.second
    data: dict[str, object] = {
        "ok": not found.failed,
        "failed": list(found.failed),
        "task": second.evaluation.task,
        "headline": second.evaluation.headline,
        "samples": dict(second.samples),
        "count": _count(second.evaluation),
        "model": _side(second),
    }
    if found.placement is not None:
        data["placement"] = found.placement.to_json()
    comparison = found.comparison
    if comparison is not None and found.first is not None:
        data["against"] = _side(found.first)
        data["comparison"] = {
            "metric": comparison.metric,
            "metrics": {name: vars(item) for name, item in comparison.metrics.items()},
            "better": comparison.better.tolist(),
            "worse": comparison.worse.tolist(),
            "disagreements": None if found.disagreements is None else list(found.disagreements),
        }
    return data


def _side(side: Predictions) -> dict[str, object]:
    return {**side.made, "overall": dict(side.evaluation.overall)}


def _count(evaluation: Evaluation) -> int:
    return len(next(iter(evaluation.scores.values())))


def show(found: Outcome, changed: int = 0) -> None:
    """Print the metrics, what changed, and what failed."""
    if found.comparison is None or found.first is None:
        show_alone(found.second)
    else:
        show_comparison(found.comparison)
        _show_changed(found, found.comparison, changed)
    if found.placement is not None:
        render.say(f"ran as {found.placement.summary}")
        if found.placement.warning:
            render.say(f"WARNING: {found.placement.warning}", style="bold yellow")
    for sentence in found.failed:
        render.say(f"FAILED: {sentence}", style="bold red")


def show_alone(found: Predictions) -> None:
    """Print one model's metrics, with the interval of each that is a mean over samples."""
    import numpy as np

    from inarch.runtime.accuracy import paired

    evaluation = found.evaluation
    title = f"{evaluation.task}, {_count(evaluation):,} samples"
    shown = render.table("metric", ("value", "right"), "95 % interval", title=title)
    for name, value in evaluation.overall.items():
        scores = evaluation.scores.get(name)
        interval = ""
        if scores is not None and len(scores) > 1:
            of_mean = paired(np.zeros_like(scores), scores)
            interval = f"{100 * of_mean.low:.2f} to {100 * of_mean.high:.2f}"
        render.add_row(shown, name, f"{100 * value:.2f} %", interval, style="bold" if name == evaluation.headline else None)
    render.show(shown)


def show_comparison(comparison: Comparison, names: tuple[str, str] = ("against", "model")) -> None:
    """Print both models' metrics, and their differences in points."""
    first, second = comparison.first, comparison.second
    title = f"{second.task}, {_count(second):,} samples"
    columns = ((name, "right") for name in (*names, "points"))
    shown = render.table("metric", *columns, "95 % interval", title=title)
    for name, before in first.overall.items():
        after = second.overall.get(name)
        if after is None:
            continue
        item = comparison.metrics.get(name)
        interval = f"{100 * item.low:+.2f} to {100 * item.high:+.2f}" if item is not None else ""
        cells = (f"{100 * before:.2f} %", f"{100 * after:.2f} %", f"{100 * (after - before):+.2f}", interval)
        render.add_row(shown, name, *cells, style="bold" if name == second.headline else None)
    render.show(shown)
    better, worse = len(comparison.better), len(comparison.worse)
    render.say(
        f"{better + worse:,} of {_count(second):,} samples changed by {comparison.metric}: {better:,} better, {worse:,} worse"
    )


def _show_changed(found: Outcome, comparison: Comparison, count: int) -> None:
    rows = [(row, "worse") for row in comparison.worse.tolist()] + [(row, "better") for row in comparison.better.tolist()]
    if not count or not rows:
        return
    texts = found.second.texts
    shown = render.table(("sample", "right"), "is", "about" if texts else "")
    for row, direction in rows[:count]:
        render.add_row(shown, f"{row:,}", direction, texts[row] if texts else "")
    render.say("")
    render.show(shown)
