"""The demo's voice: what it prints, chapter by chapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from inarch.tools import bench, compile, plan, render, verify

if TYPE_CHECKING:
    from inarch.compiler.compile import CompileResult
    from inarch.runtime.verify import Verification
    from inarch.structure.planners import PlanResult
    from inarch.structure.sites import SiteTable
    from inarch.tools.demo_inputs import Answers
    from inarch.tools.demo_result import DemoResult, Saving

WAYS = {
    "cross-modal": "shared between text and vision",
    "layer-wise": "shared between layers of one tower",
    "pruned": "pruned",
}


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
            render.say(f"\n{self._chapter}. {title}", style="bold")

    def towers(self, path: Path, table: SiteTable) -> None:
        """What was joined, and what of it can be shared and pruned."""
        from inarch.tools.demo_result import tower_of

        if self.quiet:
            return
        shown = render.table(
            "tower", ("msa", "right"), ("heads", "right"), ("ffn", "right"), ("width", "right"), ("params", "right")
        )
        for tower in dict.fromkeys(tower_of(site) for site in table.sites):
            sites = [site for site in table.sites if tower_of(site) == tower]
            msas, ffns = ([site for site in sites if site.kind == kind] for kind in ("msa", "ffn"))
            heads = ", ".join(sorted({f"{site.heads} of {site.axes['qk'].per_head}" for site in msas}))
            width = ", ".join(sorted({str(site.axes["hidden"].size) for site in ffns}))
            parameters = sum(site.parameters for site in sites)
            render.add_row(shown, tower, len(msas), heads, len(ffns), width, render.count(parameters))
        render.show(shown)
        inside = sum(site.parameters for site in table.sites)
        render.say(f"wrote {path}: {render.count(table.parameters)} parameters, {render.count(inside)} of them in sites")
        render.say("The rest (word and patch embeddings, norms, the decoder) stays as it is.")
        for item in table.rejected:
            render.say(f"not a site: {item.name}: {item.reason}")

    def plan(self, made: PlanResult, path: Path, savings: Mapping[str, Saving]) -> None:
        """What the plan decides."""
        if self.quiet:
            return
        plan.show_made(made, path)
        shown = render.table("way of saving", ("units", "right"), ("parameters", "right"))
        for way, saving in savings.items():
            render.add_row(shown, WAYS[way], f"{saving.units:,}", render.count(saving.parameters))
        render.show(shown)
        render.say("No training goes into it and none follows: expect the answers to suffer.")

    def compiled(self, result: CompileResult, path: Path) -> None:
        """What was stored."""
        if self.quiet:
            return
        compile.show(result.lowered)
        render.say(f"wrote {path} ({render.size(compile.written_bytes(result))})")

    def verified(self, found: Verification) -> None:
        """How far the compiled model is from the plan applied by values, and whether it stays shared."""
        if self.quiet:
            return
        verify.show_equivalence(found.equivalence)
        render.say(f"inputs: {'; '.join(found.cases)}")
        verify.show_sharing(found.sharing)

    def damage(self, damage: Mapping[float, Answers], compiled: Answers) -> None:
        """What plans do to real answers."""
        if self.quiet:
            return
        columns = ("paraphrases found", "sentence cosine", "worst", "saliency r")
        shown = render.table("parameters kept", *((column, "right") for column in columns))
        rows = [(f"{100 * keep:g} %", answers) for keep, answers in damage.items()]
        for label, answers in [*rows, ("the compiled file", compiled)]:
            found = f"{answers.found} of {answers.sentences}"
            cosines = (f"{value:.3f}" for value in (answers.sentence_cosine, answers.worst_sentence_cosine))
            render.add_row(shown, label, found, *cosines, f"{answers.mean_correlation:.3f}")
        render.show(shown)
        render.say(
            "Sentence cosine and saliency r (correlation of the maps) are against the dense model. Equivalent does not mean "
            "undamaged: the compiler carries out the plan, and without training a deep plan costs what this table shows. "
            "Training with gates and alignment, before the plan is hardened, is what makes it cheap."
        )

    def summary(self, demo: DemoResult) -> None:
        """What became smaller, and the verdict on the last line."""
        if self.quiet:
            return
        bench.show(demo.measured)
        render.say(f"The whole demo took {demo.seconds:.0f} s. Compiled model against plan applied by values:")
        verify.verdict(demo.verification)

    def report(self, page: Path) -> None:
        """Where the page is that shows all of it."""
        if not self.quiet:
            render.say(f"report: {page}")
