"""The demo's voice: what it prints, chapter by chapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.rule import Rule

from inarch.tools import render

if TYPE_CHECKING:
    from rich.table import Table

    from inarch.compiler.compile import CompileResult
    from inarch.runtime.verify import Verification
    from inarch.structure.planners import PlanResult
    from inarch.structure.sites import SiteTable
    from inarch.tools.demo import DemoResult, Saving
    from inarch.tools.demo_inputs import Answers


class Story:
    """Prints the demo.

    Args:
        quiet: print nothing.
    """

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self._chapter = 0

    def chapter(self, title: str) -> None:
        """Begin a chapter."""
        self._chapter += 1
        if not self.quiet:
            render.out().print()
            render.out().print(Rule(f"{self._chapter}. {title}", align="left", style="dim"))

    @contextmanager
    def working(self) -> Iterator[render.Report]:
        """Show progress bars while the block runs."""
        with render.progress(quiet=self.quiet) as report:
            yield report

    def _say(self, *lines: str, style: str | None = None) -> None:
        if not self.quiet:
            for line in lines:
                render.say(line, style=style)

    def _show(self, table: Table) -> None:
        if not self.quiet:
            render.show(table)

    def towers(self, path: Path, table: SiteTable) -> None:
        """What was joined, and what of it can be shared and pruned."""
        from inarch.tools.demo import tower_of

        shown = render.table(
            "tower", ("attentions", "right"), ("heads", "right"), ("FFNs", "right"), ("parameters in sites", "right")
        )
        for tower in dict.fromkeys(tower_of(site) for site in table.sites):
            sites = [site for site in table.sites if tower_of(site) == tower]
            msas = [site for site in sites if site.kind == "msa"]
            heads = ", ".join(sorted({f"{site.heads} x {site.axes['qk'].per_head}" for site in msas}))
            inside = sum(site.parameters for site in sites)
            render.add_row(shown, tower, len(msas), heads, len(sites) - len(msas), render.count(inside))
        self._show(shown)
        inside = sum(site.parameters for site in table.sites)
        self._say(
            f"{path}: {render.count(table.parameters)} parameters, {render.count(inside)} of them in sites",
            "The rest (word embeddings, patch embedding, norms, the decoder) stays as it is.",
        )

    def plan(self, drafted: PlanResult, savings: Mapping[str, Saving], path: Path) -> None:
        """What the plan decides."""
        shown = render.table("way of saving", ("units", "right"), ("parameters", "right"))
        labels = {
            "cross-modal": "shared between text and vision",
            "layer-wise": "shared between layers of one tower",
            "pruned": "pruned",
        }
        for way, saving in savings.items():
            render.add_row(shown, labels[way], f"{saving.units:,}", render.count(saving.parameters))
        self._show(shown)
        self._say(
            f"{path}: keeps {drafted.kept_model:.1%} of the model, {drafted.kept_sites:.1%} of its sites.",
            "No training went into it, and none follows: expect the answers to suffer.",
        )

    def compiled(self, result: CompileResult, path: Path) -> None:
        """What was written."""
        lowered = result.lowered
        changed = sum(site.touched for site in lowered.sites)
        self._say(
            f"{path}: {changed} of {len(lowered.sites)} sites changed, {len(lowered.segments)} shared segments,",
            f"{render.count(lowered.stored)} parameters stored ({render.count(lowered.planned)} planned).",
        )

    def verified(self, found: Verification) -> None:
        """How far the compiled model is from its reference."""
        shown = render.table("output", ("difference", "right"), ("relative", "right"), ("noise floor", "right"), "verdict")
        for output in found.equivalence.outputs:
            verdict = "equal" if output.ok else "DIFFERS"
            cells = (render.number(value) for value in (output.max_abs, output.relative, output.noise))
            render.add_row(shown, output.output, *cells, verdict)
        self._show(shown)
        held = sum(tensor.ok for tensor in found.sharing.tensors)
        self._say(
            f"On {len(found.cases)} input shapes, ONNX Runtime's optimisation off and on.",
            f"{held} of {len(found.sharing.tensors)} shared tensors are stored once after it, read by one kind of operator.",
        )

    def damage(self, damage: Mapping[float, Answers], compiled: Answers) -> None:
        """What plans do to real answers."""
        shown = render.table(
            "parameters kept",
            ("paraphrases found", "right"),
            ("sentence cosine", "right"),
            ("worst", "right"),
            ("saliency map r", "right"),
        )
        rows = [(f"{keep:.0%}", answers) for keep, answers in damage.items()] + [("compiled file", compiled)]
        for label, answers in rows:
            found = f"{answers.found} of {answers.sentences}"
            cosines = (f"{value:.3f}" for value in (answers.sentence_cosine, answers.worst_sentence_cosine))
            render.add_row(shown, label, found, *cosines, f"{answers.mean_correlation:.3f}")
        self._show(shown)
        self._say(
            "Equivalent does not mean undamaged: the plan changes the model, the compiler only",
            "carries it out. Without fine-tuning a plan this deep costs what the table shows;",
            "training with the plan (gates and alignment) is what makes it cheap.",
        )

    def summary(self, demo: DemoResult) -> None:
        """The table that everything was for, and the verdict."""
        shown = render.table("", ("dense", "right"), ("compiled", "right"), ("change", "right"))
        before, after = demo.dense, demo.compiled
        pairs: list[tuple[str, str, str, str]] = [
            (
                "parameters",
                render.count(demo.parameters),
                render.count(demo.stored),
                render.change(demo.parameters, demo.stored),
            )
        ]
        sizes = (
            ("file", before.size.file_bytes, after.size.file_bytes),
            ("unique bytes", before.size.unique_bytes, after.size.unique_bytes),
            ("after ORT's optimisation", before.size.optimised_bytes, after.size.optimised_bytes),
            ("memory after load", before.memory.model_anonymous, after.memory.model_anonymous),
            ("peak memory", before.memory.peak_anonymous, after.memory.peak_anonymous),
        )
        pairs += [(label, render.size(old), render.size(new), render.change(old, new)) for label, old, new in sizes]
        for report in demo.latency:
            label = f"latency, {report.threads} thread{'s' if report.threads > 1 else ''}"
            medians = (f"{report.dense.median:.1f} ms", f"{report.compiled.median:.1f} ms")
            pairs.append((label, *medians, f"{report.ratio:.3f} [{report.low:.3f}, {report.high:.3f}]"))
        for row in pairs:
            render.add_row(shown, *row)
        self._show(shown)
        self._say(f"{demo.seconds:.0f} s in all. Latency change: ratio with its 95 % interval.")
        if demo.ok:
            self._say("The compiled model is equivalent to the plan applied by values.", style="bold green")
        else:
            self._say("FAILED: the compiled model differs from the plan applied by values.", style="bold red")
