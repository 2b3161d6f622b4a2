"""From a run folder to what the page shows: one tree of plain values, so that a template only lays it out.

A section that the folder has no data for is None, and :attr:`Page.missing` says which command gives it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from inarch.tools import report_words as words
from inarch.tools.report_files import ExamplesFile, OutputDamage, Verified
from inarch.tools.report_structure import Structure

MODEL_MEMORY, DEVICE_MEMORY = "Memory of the model", "GPU memory of the model"


@dataclass(frozen=True)
class Missing:
    """A section without data.

    Attributes:
        section: its title.
        what: what would stand there.
        command: what gives it.
    """

    section: str
    what: str
    command: str


@dataclass(frozen=True)
class Figure:
    """One big number of the summary.

    Attributes:
        label: what it is.
        value: the number, in words.
        detail: what it is made of; why it is missing where it is.
        tone: ``good``, ``bad`` or empty.
    """

    label: str
    value: str
    detail: str
    tone: str = ""


@dataclass(frozen=True)
class Step:
    """One bar of the waterfall; all figures in parameters.

    Attributes:
        label: what it is.
        kind: ``total``, ``less`` or ``more``.
        fate: a colour's name.
        low, high: the bar's ends.
        amount: what it adds; negative for ``less``; the whole for ``total``.
        note: one sentence.
    """

    label: str
    kind: str
    fate: str
    low: int
    high: int
    amount: int
    note: str = ""


@dataclass(frozen=True)
class DecisionRow:
    """What the lowering decided about one site.

    Attributes:
        site: its name.
        dense: parameters before.
        own, shared: parameters that the file holds for it alone, and that it reads from shared segments.
        products_before, products: matrix products of one call.
        reasons: what is stored beyond the plan, and why.
    """

    site: str
    dense: int
    own: int
    shared: int
    products_before: int
    products: int
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Score:
    """One model on one metric: its mean and its 95 % interval, all in [0, 1]."""

    model: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Metric:
    """One metric of a task.

    Attributes:
        name: the metric's.
        headline: whether it stands for the task.
        scores: dense, then compiled; compiled alone where it was not compared.
        difference, low, high: compiled less dense with its 95 % interval; None where it was not paired.
    """

    name: str
    headline: bool
    scores: tuple[Score, ...]
    difference: float | None = None
    low: float = 0.0
    high: float = 0.0

    @property
    def verdict(self) -> str:
        """What the interval says, in words."""
        if self.difference is None:
            return ""
        if self.low > 0:
            return "better than dense"
        if self.high < 0:
            return "worse than dense"
        return "no difference that these samples show"


@dataclass(frozen=True)
class Accuracy:
    """Both models on one task; ``better`` and ``worse`` are samples that the compiled one does better or worse."""

    task: str
    samples: int
    provider: str
    metrics: tuple[Metric, ...]
    better: int = 0
    worse: int = 0

    @property
    def headline(self) -> Metric:
        """The metric that stands for the task."""
        return next((metric for metric in self.metrics if metric.headline), self.metrics[0])


@dataclass(frozen=True)
class Bar:
    """One model's bar.

    Attributes:
        model: ``dense``, ``pruned``, ``shared`` or ``compiled``.
        value: its length.
        text: the same in words.
        ratio: against the dense model, in words; empty for that one.
    """

    model: str
    value: float
    text: str
    ratio: str = ""


@dataclass(frozen=True)
class Bars:
    """Several models' bars of one figure.

    Attributes:
        label: what is compared.
        bars: the dense model's first, the compiled model's last.
        note: what else is to be known.
    """

    label: str
    bars: tuple[Bar, ...]
    note: str = ""

    @property
    def most(self) -> float:
        """The longest bar; 1 where all are nothing."""
        return max(bar.value for bar in self.bars) or 1.0

    @property
    def change(self) -> float:
        """The compiled model's figure over the dense one's."""
        return self.bars[-1].value / self.bars[0].value if self.bars[0].value else 1.0


@dataclass(frozen=True)
class Speed:
    """One bench: latency by threads and inputs, memory and file size."""

    provider: str
    inputs: str
    latency: tuple[Bars, ...]
    bytes: tuple[Bars, ...]
    notes: tuple[str, ...] = ()

    @property
    def memory(self) -> Bars:
        """The model's own memory: of the GPU where it is on one and that is known."""
        return next(item for item in self.bytes if item.label in (DEVICE_MEMORY, MODEL_MEMORY))


@dataclass(frozen=True)
class Proof:
    """What verification found, on one provider."""

    provider: str
    found: Verified
    shared_bytes: int
    bad_tensors: tuple[str, ...]


@dataclass(frozen=True)
class DamageColumn:
    """One site of the damage chart."""

    site: str
    label: words.Label
    kind: str
    modality: str
    value: float | None


@dataclass(frozen=True)
class DamageChart:
    """How far a plan moves a model.

    Attributes:
        title: whose weights.
        columns: every site.
        outputs: the model's outputs.
        warning: one loud sentence, or None.
    """

    title: str
    columns: tuple[DamageColumn, ...]
    outputs: tuple[OutputDamage, ...]
    warning: str | None

    @property
    def most(self) -> float:
        """The largest change of a site's weights."""
        return max((column.value or 0.0 for column in self.columns), default=0.0)


@dataclass(frozen=True)
class Provenance:
    """How everything was made."""

    facts: tuple[tuple[str, str], ...]
    files: tuple[tuple[str, str, str], ...]
    commands: tuple[str, ...]


@dataclass(frozen=True)
class Page:
    """Everything that the report shows.

    Attributes:
        title: the run's.
        state: ``equivalent``, ``different``, ``unshared`` or ``unverified``.
        summary: sentences of the paragraph.
        figures: the big numbers.
        notes: what a reader has to know before believing anything here.
        structure: for the map.
        labels: site -> label.
        given_back: site -> (units, parameters) stored beyond the plan.
        steps: the waterfall; empty where not even the totals are known.
        decisions: how the compiler stores every site, where compile's JSON says so.
        proofs, accuracy, speed, damage, examples: sections, empty where there is no data.
        provenance: how it was made.
        missing: sections without data.
    """

    title: str
    state: str
    summary: tuple[str, ...]
    figures: tuple[Figure, ...]
    notes: tuple[str, ...]
    structure: Structure
    labels: Mapping[str, words.Label]
    given_back: Mapping[str, tuple[int, int]]
    steps: tuple[Step, ...]
    decisions: tuple[DecisionRow, ...]
    proofs: tuple[Proof, ...]
    accuracy: tuple[Accuracy, ...]
    speed: tuple[Speed, ...]
    damage: tuple[DamageChart, ...]
    examples: tuple[ExamplesFile, ...]
    provenance: Provenance
    missing: Mapping[str, Missing] = field(default_factory=dict)
