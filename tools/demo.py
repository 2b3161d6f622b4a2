"""``inarch demo``: two real trained transformers, shared and pruned across, compiled, proven equivalent and measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inarch.tools import bench, compile, plan, render, verify
from inarch.tools.options import Debug, Json, Seed

if TYPE_CHECKING:
    from inarch.compiler.compile import CompileResult
    from inarch.runtime.verify import Verification
    from inarch.structure.planners import PlanResult
    from inarch.tools.demo_inputs import Answers, Array

FAILED = 1
TIMED_SENTENCES, TIMED_PICTURES = 4, 1
"""What one timed run gets: a batch of everything would take minutes to time."""


def run(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where everything goes.")] = Path("demo-out"),
    keep: Annotated[float, typer.Option("--keep", help="Fraction of the whole model's parameters to keep.")] = 0.65,
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
    counts = bench.thread_counts(threads)
    report = Demo(out, quiet=json)
    with render.progress(quiet=json) as progress:
        report.prepare(progress)
        made = report.plan(keep, method.value, progress)
        compiled = report.compile(progress)
        checked = report.verify(seed, progress)
        before, after = report.answers(progress)
        measured = bench.measure(
            report.dense, report.compiled, counts, pairs=pairs, inputs=report.timed_inputs, seed=seed, report=progress
        )
    if json:
        render.emit_json(
            {
                "format": "inarch.demo/1",
                "ok": checked.ok,
                "plan": plan.made_data(made, report.plan_file),
                "compile": compile.as_data(compiled),
                "verify": checked.to_json(),
                "answers": {"dense": before.found, "compiled": after.found, "sentences": after.sentences},
                "bench": bench.as_data(measured),
            }
        )
    else:
        heading("The plan")
        plan.show_made(made, report.plan_file)
        heading("What is stored")
        compile.show(compiled.lowered)
        heading("What became smaller")
        bench.show(measured)
        heading("What it costs, without training")
        show_answers(before, after)
        heading("Is it what the plan asks for?")
        verify.show(checked)
    if not checked.ok:
        raise typer.Exit(FAILED)


def heading(text: str) -> None:
    """Print a heading."""
    render.say(f"\n{text}", style="bold")


def show_answers(before: Answers, after: Answers) -> None:
    """Print how the two models answer the demo's questions."""
    shown = render.table("on the demo's sentences and pictures", ("dense", "right"), ("compiled", "right"))
    found = (f"{answers.found} of {answers.sentences}" for answers in (before, after))
    render.add_row(shown, "paraphrases found", *found)
    cosines = (f"{answers.sentence_cosine:.3f}" for answers in (before, after))
    render.add_row(shown, "embeddings' cosine to the dense model's", *cosines)
    maps = (f"{answers.mean_correlation:.3f}" for answers in (before, after))
    render.add_row(shown, "saliency maps' correlation to the dense model's", *maps)
    render.show(shown)


class Demo:
    """The demo's steps; each writes its file into one folder and the next reads it.

    Args:
        folder: where everything goes; made where it is missing.
        quiet: print nothing on the way.
    """

    def __init__(self, folder: Path, *, quiet: bool) -> None:
        self.folder = folder
        self.quiet = quiet
        self.dense = folder / "two_tower.onnx"
        self.plan_file = folder / "plan.json"
        self.compiled = folder / "compiled.onnx"
        self.inputs = folder / "inputs.npz"
        self.timed_inputs = folder / "timed_inputs.npz"
        self.feeds: dict[str, Array] = {}

    def say(self, text: str) -> None:
        """Print a step."""
        if not self.quiet:
            render.say(text)

    def prepare(self, progress: render.Report) -> None:
        """Write the dense model and its inputs.

        Raises:
            InarchError: a package with weights is missing, or the folder cannot be written.
        """
        from inarch.structure.errors import InarchError
        from inarch.tools.demo_inputs import demo_feeds
        from inarch.tools.towers import find_assets, save_model, two_tower_model

        progress("joining two towers", 0, 0)
        assets = find_assets()
        self.feeds = demo_feeds(assets.tokenizer)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_model(two_tower_model(assets), self.dense)
            save_inputs(self.inputs, self.feeds)
            save_inputs(self.timed_inputs, some(self.feeds))
        except OSError as error:
            raise InarchError(f"cannot be written: {error.strerror or error}", where=str(self.folder)) from error
        self.say(f"MiniLM-L6 (12 heads of 32) and ViT-S/14 (6 heads of 64), joined: {self.dense}")

    def plan(self, keep: float, method: str, progress: render.Report) -> PlanResult:
        """Make the plan and write it."""
        from inarch.api import draft_plan
        from inarch.structure.plan import save_plan

        made = draft_plan(self.dense, keep=keep, method=method, progress=progress)
        save_plan(made.plan, self.plan_file)
        return made

    def compile(self, progress: render.Report) -> CompileResult:
        """Compile the plan that was written."""
        from inarch.api import compile

        return compile(self.dense, self.plan_file, self.compiled, progress=progress)

    def verify(self, seed: int, progress: render.Report) -> Verification:
        """Verify on inputs of several shapes, and on the demo's own."""
        from inarch.api import verify
        from inarch.runtime.inputs import Case
        from inarch.runtime.session import load
        from inarch.runtime.verify import choose_cases

        made = choose_cases(load(self.dense), self.dense, None, seed=seed).cases
        cases = [*made, Case("sentences and pictures", self.feeds)]
        return verify(self.dense, self.plan_file, self.compiled, inputs=cases, progress=progress)

    def answers(self, progress: render.Report) -> tuple[Answers, Answers]:
        """What both models say to the sentences and pictures: dense, compiled."""
        from inarch.runtime.session import Session
        from inarch.tools.demo_inputs import judge

        outputs = []
        for done, path in enumerate((self.dense, self.compiled)):
            progress("asking both models", done, 2)
            with Session(path) as session:
                outputs.append(session.run(self.feeds))
        return judge(outputs[0], outputs[0]), judge(outputs[0], outputs[1])


def some(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """A few of the sentences and pictures."""
    return {name: array[: TIMED_SENTENCES if name.startswith("text.") else TIMED_PICTURES] for name, array in feeds.items()}


def save_inputs(path: Path, feeds: Mapping[str, Array]) -> None:
    """Write inputs as ``inarch verify --inputs`` reads them."""
    import numpy as np

    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **feeds)
