"""``inarch demo towers``: two real trained transformers, grafted onto shared weights, compiled, proved equivalent and measured.

Nothing is trained here. So the demo shows two things, and says which is which: that the compiler does exactly what the plan asks
for, and what such a plan costs a model that was never fine-tuned for it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inarch.structure.errors import InarchError
from inarch.tools import bench, plan, render, report_run
from inarch.tools.demo_result import DemoResult, Saving, tower_of
from inarch.tools.options import Debug, Json, Seed
from inarch.tools.torch_extra import needs

if TYPE_CHECKING:
    from inarch.runtime.session import Array, ModelLike
    from inarch.runtime.verify import Verification
    from inarch.structure.discover import Discovery
    from inarch.structure.plan import Plan
    from inarch.structure.sites import SiteTable
    from inarch.tools.demo_inputs import Answers

FAILED = 1
KEEP = 0.65
GENTLER = (0.95, 0.85)
"""Fractions that are only looked at for their damage, beside the one that is compiled."""

TIMED_SENTENCES, TIMED_PICTURES = 8, 1
"""What one timed run gets: a batch of everything would take minutes to time."""


def run(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where everything goes.")] = Path("demo-out"),
    keep: Annotated[float, typer.Option("--keep", help="Fraction of the whole model's parameters to keep.")] = KEEP,
    method: Annotated[plan.Method, typer.Option("--method", help="How units are chosen.")] = plan.Method.similarity,
    threads: Annotated[str, typer.Option("--threads", metavar="N,N", help="Thread counts to time.")] = "1,2",
    pairs: Annotated[int, typer.Option("--pairs", help="Interleaved timed pairs a thread count.")] = 30,
    seed: Seed = 0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Run everything once on real weights: MiniLM-L6 and a ViT-S/14, joined into one two-tower model.

    No training happens here, so the plan damages the model the more the less it keeps; the demo shows by how much.
    """
    needs(("jinja2",), "the demo's report", "report")
    counts = bench.thread_counts(threads)
    result = run_demo(out, keep=keep, method=method.value, threads=counts, pairs=pairs, seed=seed, quiet=json)
    if json:
        render.emit_json(result.to_json() | {"report": str(out / report_run.REPORT)})
    if not result.ok:
        raise typer.Exit(FAILED)


def run_demo(
    out: Path,
    *,
    keep: float = KEEP,
    method: str = "similarity",
    threads: tuple[int, ...] = (1, 2),
    pairs: int = 30,
    seed: int = 0,
    quiet: bool = False,
) -> DemoResult:
    """Build, inspect, plan, compile, verify and measure, and tell the story on stdout.

    Args:
        out: folder for ``two_tower.onnx``, ``plan.json``, ``compiled.onnx``, ``inputs.npz`` and what ``report.html`` is made of,
            made if it is missing.
        keep: fraction of the model's parameters that stays.
        method: the planner.
        threads: thread counts to time.
        pairs: timed pairs a thread count.
        seed: of the inputs that verification makes.
        quiet: say nothing.

    Returns:
        What was found; :attr:`DemoResult.ok` is the verdict.

    Raises:
        InarchError: a package is missing or not the one expected, the folder cannot be written, or ``keep`` cannot be
            reached.
    """
    from inarch.api import compile as compile_model
    from inarch.api import discover, draft_plan
    from inarch.structure.plan import save_plan
    from inarch.tools.demo_inputs import demo_feeds
    from inarch.tools.demo_story import Story
    from inarch.tools.towers import find_assets

    started = time.monotonic()
    story = Story(quiet=quiet)
    dense, plan_file, compiled = out / "two_tower.onnx", out / "plan.json", out / "compiled.onnx"

    story.chapter("Two trained transformers, one ONNX model")
    with render.progress(quiet=quiet) as report:
        report("joining two towers", 0, 0)
        assets = find_assets()
        feeds = demo_feeds(assets.tokenizer)
        timed = write_inputs(out, dense, feeds)
        report_run.clear(out)
        discovery = discover(dense)
    story.towers(dense, discovery.table)

    story.chapter("A plan, from the weights alone")
    with render.progress(quiet=quiet) as report:
        made = draft_plan(dense, keep=keep, method=method, progress=report)
    save_plan(made.plan, plan_file)
    savings = count_savings(made.plan, discovery.table)
    story.plan(made, plan_file, savings)

    story.chapter("Compile")
    with render.progress(quiet=quiet) as report:
        result = compile_model(dense, plan_file, compiled, progress=report)
    report_run.write_compiled(out, compiled.name, result)
    story.compiled(result, compiled)

    story.chapter("Verify: does it compute what the plan asks for?")
    with render.progress(quiet=quiet) as report:
        verification = verify_all(dense, plan_file, compiled, feeds, seed, report)
    report_run.write(out, report_run.VERIFY, {"format": "inarch.verified/1", **verification.to_json()})
    story.verified(verification)

    story.chapter("Damage: what does the plan do to real answers?")
    with render.progress(quiet=quiet) as report:
        damage, answers = measure_answers(dense, made.plan, compiled, discovery, keep, method, feeds, report)
    story.damage(damage, answers)

    story.chapter("What became smaller")
    with render.progress(quiet=quiet) as report:
        measured = bench.measure(dense, compiled, threads, pairs=pairs, inputs=timed, seed=seed, report=report)
    report_run.write(out, report_run.BENCH, {"format": "inarch.bench/1", **bench.as_data(measured)})
    seconds = time.monotonic() - started
    demo = DemoResult(made, plan_file, savings, result, verification, damage, answers, measured, seconds)
    page = write_page(out, demo, keep, method, seed)
    story.summary(demo)
    story.report(page)
    return demo


def write_page(out: Path, demo: DemoResult, keep: float, method: str, seed: int) -> Path:
    """Say how the run was made, and write its report."""
    from inarch.tools.report import write_report

    dense, answers = demo.damage[1.0], demo.answers
    report_run.write_run(
        out,
        title="Two towers, grafted",
        about="A sentence encoder (MiniLM-L6) and a vision transformer (ViT-S/14) that others trained were joined, a plan was "
        "made from their weights alone, and it was compiled.",
        model="two_tower.onnx",
        commands=(
            f"inarch demo towers --out RUN --keep {keep:g} --method {method} --seed {seed}",
            *report_run.commands("two_tower.onnx", "two_tower.onnx"),
        ),
        files=("two_tower.onnx", "compiled.onnx"),
        seconds={"all": demo.seconds},
        settings={
            "paraphrases found": f"{answers.found} of {answers.sentences} (dense {dense.found})",
            "sentence cosine": f"{answers.sentence_cosine:.3f} with dense, {answers.worst_sentence_cosine:.3f} at worst",
            "saliency maps": f"correlation {answers.mean_correlation:.3f} with the dense model's",
        },
    )
    page = out / report_run.REPORT
    write_report(out, page)
    return page


def write_inputs(folder: Path, dense: Path, feeds: Mapping[str, Array]) -> Path:
    """Write the dense model, the demo's inputs as ``inarch verify --inputs`` reads them, and a few of them for timing.

    Returns:
        The file of those for timing.

    Raises:
        InarchError: the folder cannot be written, or a package with weights is missing.
    """
    import numpy as np

    from inarch.tools.towers import find_assets, save_model, two_tower_model

    some = {name: array[: TIMED_SENTENCES if name.startswith("text.") else TIMED_PICTURES] for name, array in feeds.items()}
    timed = folder / "timed_inputs.npz"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_model(two_tower_model(find_assets()), dense)
        for path, arrays in ((folder / "inputs.npz", feeds), (timed, some)):
            with path.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        hint = "--out names a folder that can be written, with some 400 MB of space"
        raise InarchError(f"cannot be written: {error.strerror or error}", where=str(folder), hint=hint) from error
    return timed


def count_savings(decided: Plan, table: SiteTable) -> dict[str, Saving]:
    """What a plan saves: by sharing across the towers, by sharing between layers of one tower, and by pruning."""
    import numpy as np

    from inarch.structure.resolve import resolve

    resolved = resolve(decided, table)
    totals = {"cross-modal": Saving(), "layer-wise": Saving(), "pruned": Saving()}

    def add(way: str, units: int, each: int) -> None:
        totals[way] = Saving(totals[way].units + units, totals[way].parameters + units * each)

    for number, site in enumerate(table.sites):
        for name, axis in resolved.axes[site.name].items():
            vectors, own = site.unit_parameters(name)
            add("pruned", int(np.count_nonzero(axis.pruned)), vectors + own)
            foreign = axis.root_site[~axis.pruned & (axis.root_site != number)]
            for root, units in zip(*np.unique(foreign, return_counts=True), strict=True):
                same = tower_of(site) == tower_of(table.sites[int(root)])
                add("layer-wise" if same else "cross-modal", int(units), vectors)
    return totals


def verify_all(
    dense: Path, plan_file: Path, compiled: Path, feeds: Mapping[str, Array], seed: int, report: render.Report
) -> Verification:
    """Verify on inputs of several shapes, and on the demo's own sentences and pictures."""
    from inarch.api import verify
    from inarch.runtime.inputs import Case
    from inarch.runtime.session import load
    from inarch.runtime.verify import choose_cases

    made = choose_cases(load(dense), dense, None, seed=seed).cases
    cases = [*made, Case("sentences and pictures", feeds)]
    return verify(dense, plan_file, compiled, inputs=cases, progress=report)


def answers_of(model: ModelLike, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs of a model on the demo's sentences and pictures."""
    from inarch.runtime.session import Session

    with Session(model) as session:
        return session.run(feeds)


def measure_answers(
    dense: Path,
    decided: Plan,
    compiled: Path,
    discovery: Discovery,
    keep: float,
    method: str,
    feeds: Mapping[str, Array],
    report: render.Report,
) -> tuple[dict[float, Answers], Answers]:
    """What plans do to the answers.

    Returns:
        Kept fraction -> the answers under this plan and under gentler ones, computed by their references; and those of the
        compiled model.
    """
    from inarch.api import draft_plan
    from inarch.compiler.reference import apply_by_values
    from inarch.structure.resolve import resolve
    from inarch.tools.demo_inputs import judge

    original = answers_of(dense, feeds)
    damage = {1.0: judge(original, original)}
    rates = [*(rate for rate in GENTLER if rate > keep), keep]
    for done, rate in enumerate(rates):
        report("trying gentler plans too", done, len(rates))
        tried = decided if rate == keep else draft_plan(dense, keep=rate, method=method).plan
        reference = apply_by_values(discovery.model, discovery.table, resolve(tried, discovery.table), discovery.uses)
        damage[rate] = judge(original, answers_of(reference, feeds))
    report("trying gentler plans too", len(rates), len(rates))
    return damage, judge(original, answers_of(compiled, feeds))
