"""What the plan does to the model: the original against the reference.

Equivalence says that the compiler did what the plan asks for. It says nothing about whether the plan is a good idea, so this is
printed beside it: how far every output moves, and how far every site's weights do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from inarch.compiler.values import SiteValues
from inarch.runtime.equivalence import finite_json
from inarch.runtime.fills import fills
from inarch.runtime.inputs import Case
from inarch.runtime.session import Array, ModelLike, Session, SessionOptions

MIN_COSINE = 0.99
"""Below this the warning is loud: a fine-tuned network's outputs keep well above it, and rankings below it start to change."""

MAX_RELATIVE = 0.1
"""Relative error (Frobenius) above which the warning is loud: a tenth of the output is not what the model was trained to say."""


@dataclass(frozen=True)
class OutputDamage:
    """How far one output moves, over all cases together.

    Attributes:
        output: its name.
        relative: ||original - reference|| / ||original|| over what is finite in both and no :mod:`fill <inarch.runtime.fills>`;
            for integers the fraction that differs.
        cosine: of the two, taken as one long vector; 1 for integers that are equal.
        loud: whether that is beyond :data:`MIN_COSINE` or :data:`MAX_RELATIVE`.
    """

    output: str
    relative: float
    cosine: float
    loud: bool


@dataclass(frozen=True)
class DamageReport:
    """What the plan does to a model.

    Attributes:
        outputs: in the model's order.
        sites: site -> ||W - W_reference|| / ||W||, for every site, in model order.
    """

    outputs: tuple[OutputDamage, ...]
    sites: Mapping[str, float]

    @property
    def ruined(self) -> bool:
        """Whether any output is damaged beyond the thresholds."""
        return any(output.loud for output in self.outputs)

    @property
    def warning(self) -> str | None:
        """One loud sentence, or None."""
        if not self.ruined:
            return None
        worst = max((output for output in self.outputs if output.loud), key=lambda output: output.relative)
        return (
            f"this plan changes what the model computes: output {worst.output!r} moves by {worst.relative:.1%} "
            f"(cosine {worst.cosine:.3f}); fine-tune before using it, or prune and share less"
        )

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON types; numbers that are not finite become None."""
        record: dict[str, Any] = finite_json({**asdict(self), "ruined": self.ruined, "warning": self.warning})
        return record


def measure_damage(
    original: ModelLike,
    reference: ModelLike,
    cases: Sequence[Case],
    *,
    values: SiteValues | None = None,
    sites: Sequence[str] = (),
    providers: Sequence[str] = ("CPUExecutionProvider",),
    threads: int = 0,
) -> DamageReport:
    """Run both models, and compare outputs and weights.

    Args:
        original: the model as it was.
        reference: the plan applied by values.
        cases: inputs that the original accepts.
        values: the plan by values, for the sites' weights; without it only outputs are compared.
        sites: the sites to look at, in the order wanted.
        providers: execution providers.
        threads: intra-op threads; 0 leaves it to ORT.

    Raises:
        RuntimeFailure: ORT refuses a model or an input.
    """
    options = SessionOptions("all", tuple(providers), threads)
    results: list[list[dict[str, Array]]] = []
    for model in (original, reference):
        with Session(model, options) as session:
            results.append([session.run(case.feeds) for case in cases])
    names = list(dict.fromkeys(name for result in results[0] for name in result))
    outputs = tuple(_damage(name, *([result[name] for result in side if name in result] for side in results)) for name in names)
    return DamageReport(outputs, {site: values.change(site) for site in sites} if values is not None else {})


def _damage(name: str, before: Sequence[Array], after: Sequence[Array]) -> OutputDamage:
    """Sums over the cases, so that a case of ten numbers doesn't weigh what a case of ten thousand does."""
    distance = own = other = product = 0.0
    differing = total = 0
    exact = False
    for a, b in zip(before, after, strict=True):
        if a.dtype.kind in "iubOSU":
            exact = True
            differing += int(np.count_nonzero(a != b)) if a.shape == b.shape else a.size
            total += a.size
            continue
        if a.shape != b.shape:
            return OutputDamage(name, float("inf"), 0.0, True)
        x, y = a.astype(np.float64).reshape(-1), b.astype(np.float64).reshape(-1)
        both = np.isfinite(x) & np.isfinite(y)
        if np.isfinite(x).sum() != both.sum():
            return OutputDamage(name, float("inf"), 0.0, True)
        results = both & ~fills(x, y)
        x, y = x[results], y[results]
        distance += float(np.sum((x - y) ** 2))
        own += float(x @ x)
        other += float(y @ y)
        product += float(x @ y)
    if exact:
        relative = differing / total if total else 0.0
        return OutputDamage(name, relative, 1.0 - relative, relative > MAX_RELATIVE)
    relative = float(np.sqrt(distance / own)) if own else (float("inf") if distance else 0.0)
    cosine = product / float(np.sqrt(own * other)) if own and other else (1.0 if own == other else 0.0)
    return OutputDamage(name, relative, cosine, cosine < MIN_COSINE or relative > MAX_RELATIVE)
