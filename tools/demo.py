"""``inarch demo``: the whole way on generated scenes: learn, harden, tune, export, compile, verify, measure, judge.

``inarch demo towers`` shows the compiler alone on two real trained transformers.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from inarch.structure.errors import RuntimeFailure
from inarch.tools import bench, compile, demo_towers, render, verify
from inarch.tools.options import Debug, Json, Seed
from inarch.tools.torch_extra import needs_learning

if TYPE_CHECKING:
    from inarch.learning.config import LearnConfig, TuneConfig
    from inarch.learning.harden import Hardened
    from inarch.runtime.accuracy import Evaluation, Paired, Task
    from inarch.runtime.verify import Verification

FAILED = 1
KEEP = 0.62
STEPS = "2000,900,600"
"""Steps of dense pre-training, of learning the structure, and of tuning: what 2 cores do in a few minutes."""

MARGIN = 1e-4
"""Decisions that are nearer than this may differ between torch and ONNX Runtime."""

app = typer.Typer(invoke_without_command=True, no_args_is_help=False)
app.command("towers")(demo_towers.run)


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where everything goes.")] = Path("demo-out"),
    keep: Annotated[float, typer.Option("--keep", help="Fraction of the whole model's parameters to store.")] = KEEP,
    level: Annotated[str, typer.Option("--level", help="easy, medium or hard scenes.")] = "easy",
    steps: Annotated[str, typer.Option("--steps", metavar="N,N,N", help="Pre-training, learning, tuning.")] = STEPS,
    seed: Seed = 0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a small MDETR, learn what it can share and prune, and compile it: the whole way, in minutes.

    A run that was stopped goes on where it was. ``inarch demo towers`` shows the compiler on two real trained transformers.
    """
    if context.invoked_subcommand is not None:
        return
    needs_learning()
    parts = bench.thread_counts(steps)
    if len(parts) != 3:
        raise typer.BadParameter(f"{steps!r} is not three numbers", param_hint="--steps")
    demo = Demo(out, keep, level, parts, seed, quiet=json)
    result = demo.run()
    if json:
        render.emit_json(result)
    if not result["ok"]:
        raise typer.Exit(FAILED)


@dataclass
class Demo:
    """One run of the demo, chapter by chapter.

    Attributes:
        out: its folder.
        keep: fraction to store.
        level: of the scenes.
        steps: of pre-training, learning and tuning.
        seed: of everything.
        quiet: print nothing.
        scenes, held_out: images to train on and to be judged on.
    """

    out: Path
    keep: float
    level: str
    steps: tuple[int, ...]
    seed: int
    quiet: bool
    scenes: int = 6000
    held_out: int = 2500
    _chapter: int = 0

    def run(self) -> dict[str, Any]:
        """All of it; returns what was found, ``ok`` among it."""
        started = time.monotonic()
        self._title("Learn: a dense model, then what of it can be shared and pruned")
        hardened = self._learn()
        self._title("Tune for referring expressions: the structured model, and the dense one to compare with")
        self._tune()
        self._title("Compile")
        compiled = self._compile()
        self._title("Verify: does it compute what the plan asks for?")
        verification = self._verify()
        agreement = self._agreement()
        self._title("Accuracy in ONNX Runtime")
        dense, small, difference = self._accuracy(compiled)
        self._title("What became smaller")
        self._bench()
        ok = verification.ok and agreement["relative"] <= 1e-5 and not agreement["decisions"]
        seconds = time.monotonic() - started
        self._say(f"The whole demo took {seconds:.0f} s. Compiled model against plan applied by values:")
        if not self.quiet:
            verify.verdict(verification)
        return {
            "format": "inarch.demo/1",
            "ok": ok,
            "stored": hardened.stored,
            "parameters": hardened.table.parameters,
            "dense": dense.value,
            "compiled": small.value,
            "difference": [difference.difference, difference.low, difference.high],
            "agreement": agreement,
            "seconds": seconds,
        }

    def _config(self) -> LearnConfig:
        from inarch.learning.config import DataSettings, LearnConfig, Optimisation, StructureSettings

        dense, learning, _ = self.steps
        return LearnConfig(
            data=DataSettings(level=self.level, scenes=self.scenes, held_out=self.held_out),
            dense=Optimisation(steps=dense, warmup=min(200, dense // 4)),
            learning=Optimisation(steps=learning, rate=1e-3, warmup=min(100, learning // 4)),
            structure=StructureSettings(keep=self.keep),
            precision="bf16",
            seed=self.seed,
        )

    def _learn(self) -> Hardened:
        from inarch.learning.plots import plot_run, plot_structure
        from inarch.learning.runs import backbone_parameters, learn

        with render.progress(quiet=self.quiet) as report:
            hardened = learn(self._config(), self.out, device="cpu", progress=report)
        plot_run(self.out, self.out / "curves.png")
        plot_structure(hardened.plan, self.out / "structure.png")
        total = hardened.table.parameters
        inside, kept = backbone_parameters(hardened.plan, hardened.table)
        self._say(
            f"{render.count(hardened.stored)} of {render.count(total)} parameters are to be stored "
            f"({render.percent(hardened.stored, total)}; of the two backbones alone {render.percent(kept, inside)})"
        )
        self._say(f"wrote {self.out / 'plan.json'}, curves.png and structure.png beside it")
        return hardened

    def _tune(self) -> None:
        from inarch.compiler.writer import write_model
        from inarch.learning.config import Optimisation, TuneConfig
        from inarch.learning.runs import export_tuned, tune

        settings = Optimisation(steps=self.steps[2], rate=7e-4, warmup=min(50, self.steps[2] // 4))
        config: TuneConfig = TuneConfig(kind="referring", optimisation=settings, precision="bf16", seed=self.seed)
        for name, dense in (("small", False), ("dense", True)):
            folder = self.out / name
            with render.progress(quiet=self.quiet) as report:
                judged = tune(self.out, config, folder, dense=dense, device="cpu", progress=report)
            write_model(export_tuned(self.out, folder), folder / "model.onnx")
            self._say(f"{name}: {100 * judged.value:.2f} % of {self._task().samples:,} expressions found, in torch")

    @property
    def _paths(self) -> tuple[Path, Path, Path]:
        return self.out / "small" / "model.onnx", self.out / "plan.json", self.out / "compiled.onnx"

    def _compile(self) -> Path:
        from inarch.api import compile as compile_model

        model, plan, compiled = self._paths
        with render.progress(quiet=self.quiet) as report:
            result = compile_model(model, plan, compiled, progress=report)
        if not self.quiet:
            compile.show(result.lowered)
        self._say(f"wrote {compiled} ({render.size(compile.written_bytes(result))})")
        return compiled

    def _verify(self) -> Verification:
        from inarch.api import verify as verify_model

        with render.progress(quiet=self.quiet) as report:
            found = verify_model(*self._paths, progress=report)
        if not self.quiet:
            verify.show_equivalence(found.equivalence)
            verify.show_sharing(found.sharing)
        return found

    def _task(self) -> Task:
        from inarch.learning.runs import task_of

        return task_of(self._config(), "referring")

    def _agreement(self) -> dict[str, float]:
        """How far the structured module's outputs and the compiled model's are from each other, over a few hundred samples."""
        from inarch.learning.runs import structured_model
        from inarch.runtime.session import Session

        task = self._task()
        rows = np.arange(min(256, task.samples))
        feeds = task.feeds(rows)
        torch_says = structured_model(self.out, self.out / "small")(feeds)
        with Session(self._paths[2]) as session:
            ort_says = session.run(feeds)
        apart = max(_relative(torch_says[name], ort_says[name]) for name in ort_says)
        first, second = (task.predict(rows, says) for says in (torch_says, ort_says))
        right = [task.score(rows, predictions)[task.headline] for predictions in (first, second)]
        clear = np.minimum(first["margin"], second["margin"]) > MARGIN
        changed = int(((right[0] != right[1]) & clear).sum())
        self._say(
            f"structured module in torch and compiled model in ONNX Runtime: outputs within {render.number(apart)}, "
            f"{changed} of {len(rows)} decisions differ outside a margin of {MARGIN:g}"
        )
        return {"relative": apart, "decisions": changed}

    def _accuracy(self, compiled: Path) -> tuple[Evaluation, Evaluation, Paired]:
        from inarch.runtime.accuracy import evaluate, paired
        from inarch.runtime.session import Session

        task = self._task()
        found = []
        for path in (self.out / "dense" / "model.onnx", compiled):
            with Session(path) as session, render.progress(quiet=self.quiet) as report:
                found.append(evaluate(session.run, task, progress=report))
        dense, small = found
        apart = paired(dense.scores[task.headline], small.scores[task.headline])
        if not self.quiet:
            shown = render.table(task.name, ("dense", "right"), ("compiled", "right"))
            for name, value in dense.overall.items():
                render.add_row(shown, name, f"{100 * value:.2f} %", f"{100 * small.overall[name]:.2f} %")
            render.show(shown)
        self._say(
            f"{task.headline}: {100 * apart.difference:+.2f} points [{100 * apart.low:+.2f}, {100 * apart.high:+.2f}] against "
            f"the dense model tuned alike, over {apart.samples:,} samples"
        )
        return dense, small, apart

    def _bench(self) -> None:
        with render.progress(quiet=self.quiet) as report:
            measured = bench.measure(
                self.out / "dense" / "model.onnx", self._paths[2], (1, 2), pairs=30, seed=self.seed, report=report
            )
        if not self.quiet:
            bench.show(measured)

    def _title(self, text: str) -> None:
        self._chapter += 1
        self._say(f"\n{self._chapter}. {text}", style="bold")

    def _say(self, text: str, style: str | None = None) -> None:
        if not self.quiet:
            lead = "\n" if text.startswith("\n") else ""
            render.say(lead + text.strip(), style=style)


def _relative(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
    """Largest difference, as part of the largest value.

    Raises:
        RuntimeFailure: the shapes differ.
    """
    if first.shape != second.shape:
        raise RuntimeFailure(f"outputs of shapes {first.shape} and {second.shape}")
    return float(np.abs(first - second).max() / max(float(np.abs(first).max()), 1e-12))
