"""``inarch demo``: the whole way on generated scenes: learn, harden, tune, export, compile, verify, measure, judge, report.

``inarch demo towers`` shows the compiler alone on two real trained transformers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import typer

from inarch.structure.errors import RuntimeFailure
from inarch.tools import bench, compile, demo_towers, render, report_run, verify
from inarch.tools.learn import of_units
from inarch.tools.options import Debug, Json, Seed
from inarch.tools.torch_extra import needs, needs_learning

if TYPE_CHECKING:
    from inarch.learning.config import LearnConfig, TuneConfig
    from inarch.learning.harden import Hardened
    from inarch.runtime.accuracy import Comparison, Task
    from inarch.runtime.verify import Verification

FAILED = 1
KEEP = 0.62
STEPS = "1200,500,400"
"""Steps of dense pre-training, of learning the structure, and of tuning: 2 slow cores do them in less than ten minutes."""

JUDGED = "inarch evaluate compiled.onnx --against dense/model.onnx --run . --examples examples.json --json > evaluation.json"
BATCH = 256
CORE = 6.0
"""Bases are kept for the families that read them: a demo of sharing has to share across the backbones."""

DISTIL = 40.0
"""Weight of what the tuned dense model says, in the loss of the small one."""

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
    needs(("jinja2",), "the demo's report", "report")  # not after minutes of training
    parts = bench.numbers(steps, "--steps", "numbers of steps", STEPS)
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
    _precision: Literal["no", "bf16", "fp16"] = "no"
    _chapter: int = 0
    _seconds: dict[str, float] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """All of it; returns what was found, ``ok`` among it."""
        started = time.monotonic()
        with self._titled("learn", "Learn: a dense model, then what of it can be shared and pruned"):
            hardened = self._learn()
        report_run.clear(self.out)
        with self._titled("tune", "Tune for referring expressions: the dense model, then the structured one, which it teaches"):
            self._tune()
        with self._titled("compile", "Compile"):
            compiled = self._compile()
        with self._titled("verify", "Verify: does it compute what the plan asks for?"):
            verification = self._verify()
            agreement = self._agreement()
        with self._titled("judge", "Accuracy in ONNX Runtime"):
            judged = self._accuracy(compiled)
        with self._titled("measure", "What became smaller"):
            self._bench()
        with self._titled("report", "A page to read and to show"):
            report = self._report(agreement)
        ok = verification.ok and agreement["relative"] <= 1e-5 and not agreement["decisions"]
        seconds = time.monotonic() - started
        self._say(f"The whole demo took {seconds:.0f} s. Compiled model against plan applied by values:")
        if not self.quiet:
            verify.verdict(verification)
        self._say(f"report: {report}")
        return {
            "format": "inarch.demo/1",
            "ok": ok,
            "stored": hardened.stored,
            "parameters": hardened.table.parameters,
            "dense": judged.first.value,
            "compiled": judged.second.value,
            "difference": [judged.headline.difference, judged.headline.low, judged.headline.high],
            "agreement": agreement,
            "report": str(report),
            "seconds": seconds,
        }

    def _config(self) -> LearnConfig:
        from inarch.learning.config import LearnConfig, validated

        dense, learning, _ = self.steps
        values = {
            "data": {"task": "scenes", "level": self.level, "scenes": self.scenes, "held_out": self.held_out},
            "dense": {"steps": dense, "warmup": min(200, dense // 4)},
            "learning": {"steps": learning, "rate": 1e-3, "warmup": min(100, learning // 4)},
            "structure": {"keep": self.keep, "core": CORE},
            "precision": self._precision,
            "seed": self.seed,
        }
        return validated(LearnConfig, values, "inarch demo")

    def _choose_precision(self) -> None:
        """A run that was begun keeps what it has; a new one takes what is faster here."""
        from inarch.learning.folders import CONFIG, read_run
        from inarch.learning.precision import faster_precision
        from inarch.learning.runs import check
        from inarch.learning.workshop import workshop

        if (self.out / CONFIG).exists():
            self._precision = read_run(self.out).precision
        else:
            shop = workshop(self._config())
            check(shop)  # before a trial of what cannot be
            self._precision = faster_precision(shop)

    def _learn(self) -> Hardened:
        from inarch.learning.plots import plot_run, plot_structure
        from inarch.learning.runs import learn
        from inarch.learning.tally import backbone_parameters, tally

        self._choose_precision()
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
        self._say(of_units(tally(hardened.plan)))
        self._say(f"wrote {self.out / 'plan.json'}, curves.png and structure.png beside it")
        return hardened

    def _tune(self) -> None:
        from inarch.compiler.writer import write_model
        from inarch.learning.config import Optimisation, TuneConfig
        from inarch.learning.runs import export_tuned, tune

        settings = Optimisation(steps=self.steps[2], rate=7e-4, warmup=min(50, self.steps[2] // 4))
        config: TuneConfig = TuneConfig(kind="referring", optimisation=settings, precision=self._precision, seed=self.seed)
        taught = {"distil": DISTIL, "teacher": str(self.out / "dense")}
        for name, changes in (("dense", {"dense": True}), ("small", taught)):
            folder = self.out / name
            with render.progress(quiet=self.quiet) as report:
                judged = tune(self.out, config.model_copy(update=changes), folder, device="cpu", progress=report)["test"]
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
        report_run.write_compiled(self.out, compiled.name, result)
        if not self.quiet:
            compile.show(result.lowered)
        self._say(f"wrote {compiled} ({render.size(compile.written_bytes(result))})")
        return compiled

    def _verify(self) -> Verification:
        from inarch.api import verify as verify_model

        with render.progress(quiet=self.quiet) as report:
            found = verify_model(*self._paths, progress=report)
        report_run.write(self.out, report_run.VERIFY, {"format": "inarch.verified/1", **found.to_json()})
        task = self._task()
        rows = np.arange(min(64, task.samples))
        report_run.write_untrained(self.out, self.out / "dense" / "model.onnx", self._paths[1], task.feeds(rows))
        if not self.quiet:
            verify.show_equivalence(found.equivalence)
            verify.show_sharing(found.sharing)
        return found

    def _task(self) -> Task:
        from inarch.learning.workshop import task_of

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

    def _accuracy(self, compiled: Path) -> Comparison:
        """Both models, judged as ``inarch evaluate compiled.onnx --against dense/model.onnx --run RUN`` does."""
        from inarch.runtime.accuracy import compare
        from inarch.tools import evaluate
        from inarch.tools.tasks import Wanted

        wanted, running = Wanted(run=self.out), evaluate.Running(batch=BATCH)
        with render.progress(quiet=self.quiet) as report:
            dense, subject, _ = evaluate.judge(self.out / "dense" / "model.onnx", wanted, running, report)
            small, _, _ = evaluate.judge(compiled, wanted, running, report, subject)
        found = compare(dense.evaluation, small.evaluation)
        report_run.write_accuracy(self.out, subject.task, evaluate.Outcome(small, dense, found), seed=self.seed)
        if not self.quiet:
            evaluate.show_comparison(found, ("dense", "compiled"))
        apart = found.headline
        self._say(
            f"{found.metric}: {100 * apart.difference:+.2f} points [{100 * apart.low:+.2f}, {100 * apart.high:+.2f}] against "
            f"the dense model, its teacher, over {apart.samples:,} samples"
        )
        return found

    def _bench(self) -> None:
        with render.progress(quiet=self.quiet) as report:
            measured = bench.measure(
                self.out / "dense" / "model.onnx",
                self._paths[2],
                (1, 2),
                pairs=30,
                seed=self.seed,
                parts=self._paths[1],
                report=report,
            )
        report_run.write(self.out, report_run.BENCH, {"format": "inarch.bench/1", **bench.as_data(measured)})
        if not self.quiet:
            bench.show(measured)

    def _report(self, agreement: dict[str, float]) -> Path:
        """Say how the run was made, and write the page."""
        from inarch.tools.report import write_report

        parts = ",".join(map(str, self.steps))
        report_run.write_run(
            self.out,
            title="A small MDETR, grafted",
            about="A small MDETR was trained on generated scenes, learned which weights its backbones can share and which can "
            "go, was tuned in that form for referring expressions, and was compiled.",
            model="small/model.onnx",
            commands=(
                f"inarch demo --out RUN --keep {self.keep:g} --level {self.level} --steps {parts} --seed {self.seed}",
                *report_run.commands("small/model.onnx", "dense/model.onnx", JUDGED, parts=True),
            ),
            files=("dense/model.onnx", "small/model.onnx", "compiled.onnx"),
            seconds=self._seconds,
            settings={
                "scenes": f"{self.scenes:,} of level {self.level}, {self.held_out:,} held out",
                "steps": f"{parts} (dense, structure, tuning)",
                "seed": self.seed,
                "trained in": {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}[self._precision],
                "torch against ONNX Runtime": f"outputs within {render.number(agreement['relative'])}, "
                f"{agreement['decisions']:g} decisions differ",
            },
        )
        page = self.out / report_run.REPORT
        write_report(self.out, page)
        self._say(f"wrote {page} ({render.size(page.stat().st_size)})")
        return page

    @contextmanager
    def _titled(self, name: str, text: str) -> Iterator[None]:
        """A chapter: its title, and how long it took."""
        self._chapter += 1
        self._say(f"\n{self._chapter}. {text}", style="bold")
        started = time.monotonic()
        yield
        self._seconds[name] = time.monotonic() - started

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
