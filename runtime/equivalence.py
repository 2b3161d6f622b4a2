"""Does the compiled model compute what the reference computes?

Both models run with ORT's optimisation off and with all of it, on the same inputs, and every output is compared wherever the
reference is finite. How far two right answers may lie apart is measured, not guessed::

    noise      = max |reference(off) - reference(all)|          the same graph, two orders of rounding
    floor      = 8 * eps * sqrt(depth) * scale                  what reordering sums costs where ORT happens to change nothing
    tolerance  = min(max(4 * noise, floor), max(cap * scale, 2 * noise))

All of it is measured on the provider that is asked for, with its products in the precision of their type (no TF32): a GPU's noise
is not the CPU's. ``scale`` is the largest finite magnitude of the reference's output that is no mask's constant
(:mod:`inarch.runtime.fills`), ``depth`` the number of products on the longest path, ``eps`` and ``cap`` belong to the precision
that the weights are stored in (cap: 1e-5 in fp32). Where the reference alone is noisier than the cap, twice its noise is allowed,
and the report says so. Where a difference is larger than allowed, the noise is measured a second way, since ORT may round the
same on both levels: by the reference with the last bits of its weights changed (:mod:`inarch.runtime.noise`), in several ways.
Integers have to be equal wherever the reference agrees with itself.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from inarch.runtime.fills import fills
from inarch.runtime.inputs import Case
from inarch.runtime.noise import shaken
from inarch.runtime.precision import Precision, depth, precision_of
from inarch.runtime.providers import CPU
from inarch.runtime.session import ModelLike, Session, SessionOptions, load, model_file
from inarch.structure.errors import RuntimeFailure

Array = npt.NDArray[Any]
Level = Literal["off", "all"]
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many steps are done, and how many there are."""

Chains = Sequence[Sequence[str]]
"""One chain a call of a site: names of values from its last product on. The last one that both models have is compared, since a
product that was split into blocks may give its old name to a part of the sum."""

LEVELS: tuple[Level, ...] = ("off", "all")

_SHAKES = 3
"""How often the last bits of the weights are changed, where that is needed."""

_DOUBT = 1000
"""Differences of more than so many caps are no rounding, and nothing is run again for them."""

_TINY = 1e-6
"""Scale that outputs smaller than this are held to: an output of exact zeros has none of its own."""


@dataclass(frozen=True)
class OutputCheck:
    """One output on one case at one optimisation level.

    Attributes:
        output: its name.
        case: name of the inputs.
        level: ORT's optimisation, the same for both models.
        max_abs: largest difference where the reference is finite.
        relative: the same over ``scale``.
        scale: largest finite magnitude of the reference.
        noise: largest difference of the reference to itself between the levels, or with other last bits of its weights.
        tolerance: largest difference that is allowed.
        compared: numbers compared.
        total: numbers in the output.
        ok: the verdict.
        reason: why not, where the difference alone does not say it; or a remark.
    """

    output: str
    case: str
    level: Level
    max_abs: float
    relative: float
    scale: float
    noise: float
    tolerance: float
    compared: int
    total: int
    ok: bool
    reason: str = ""


@dataclass(frozen=True)
class OutputSummary:
    """One output at its worst, of all cases and levels; attributes as :class:`OutputCheck`."""

    output: str
    case: str
    level: Level
    max_abs: float
    relative: float
    noise: float
    tolerance: float
    ok: bool
    reason: str = ""


@dataclass(frozen=True)
class SiteDifference:
    """The first site at which two models part.

    Attributes:
        site: its name.
        value: the value that was compared.
        max_abs: largest difference.
        relative: the same over the value's scale.
        case: name of the inputs.
    """

    site: str
    value: str
    max_abs: float
    relative: float
    case: str


@dataclass(frozen=True)
class EquivalenceReport:
    """Whether two models compute the same.

    Attributes:
        checks: every output, case and level.
        precision: ``fp32`` ...
        depth: products on the longest path.
        first_site: where they part, if they do and a site's value shows it.
        searched: how many sites could be looked at for it.
    """

    checks: tuple[OutputCheck, ...]
    precision: str
    depth: int
    first_site: SiteDifference | None = None
    searched: int = 0

    @property
    def ok(self) -> bool:
        """Every check passed, and there was something to check."""
        return bool(self.checks) and all(check.ok for check in self.checks)

    @property
    def outputs(self) -> tuple[OutputSummary, ...]:
        """One summary an output, in the model's order."""
        summaries = []
        for name in dict.fromkeys(check.output for check in self.checks):
            mine = [check for check in self.checks if check.output == name]
            failed = [check for check in mine if not check.ok]
            at = max(failed or mine, key=lambda check: (check.max_abs / max(check.tolerance, 1e-300), check.relative))
            summaries.append(
                OutputSummary(name, at.case, at.level, at.max_abs, at.relative, at.noise, at.tolerance, not failed, at.reason)
            )
        return tuple(summaries)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON types; numbers that are not finite become None."""
        record: dict[str, Any] = finite_json({**asdict(self), "ok": self.ok, "outputs": [asdict(item) for item in self.outputs]})
        return record


def compare(
    reference: ModelLike,
    compiled: ModelLike,
    cases: Sequence[Case],
    *,
    site_outputs: Mapping[str, Chains] | None = None,
    providers: Sequence[str] = (CPU,),
    threads: int = 0,
    progress: Progress | None = None,
) -> EquivalenceReport:
    """Compare two models on the same inputs.

    Args:
        reference: what is right.
        compiled: what is checked.
        cases: inputs that the reference's original accepts.
        site_outputs: site -> the values by which its result can be seen; where an output differs, the first of them that
            differs names the site.
        providers: execution providers.
        threads: intra-op threads; 0 leaves it to ORT.
        progress: told about every run.

    Raises:
        RuntimeFailure: a file cannot be read, or ORT refuses the REFERENCE. A compiled model that it refuses fails its checks.
    """
    truth = load(reference)
    load(compiled)
    precision, deep = precision_of(truth), depth(truth)
    runs: dict[tuple[str, Level], list[dict[str, Array] | RuntimeFailure]] = {}
    steps = [(who, level) for level in LEVELS for who in ("reference", "compiled")]
    with model_file(reference) as truth_path, model_file(compiled) as compiled_path:  # written once, not once a level
        for done, (who, level) in enumerate(steps):
            if progress is not None:
                progress("running reference and compiled model", done, len(steps))
            options = SessionOptions(level, tuple(providers), threads, exact=True)
            right = who == "reference"
            runs[who, level] = _run(truth_path if right else compiled_path, cases, options, strict=right)
    if progress is not None:
        progress("running reference and compiled model", len(steps), len(steps))

    def judged(number: int, again: Sequence[Mapping[str, Array]] = ()) -> list[OutputCheck]:
        truths = {level: _succeeded(runs["reference", level][number]) for level in LEVELS}
        results = {level: runs["compiled", level][number] for level in LEVELS}
        return _compared(cases[number].name, truths, results, precision, deep, again)

    found = [judged(number) for number in range(len(cases))]
    doubtful = [number for number, mine in enumerate(found) if any(_is_doubtful(check, precision) for check in mine)]
    if doubtful:
        options = SessionOptions("off", tuple(providers), threads, exact=True)
        wanted = [cases[number] for number in doubtful]
        again = [_run(shaken(truth, precision.eps, seed), wanted, options, strict=True) for seed in range(_SHAKES)]
        for place, number in enumerate(doubtful):
            found[number] = judged(number, [_succeeded(results[place]) for results in again])
    checks = [check for mine in found for check in mine]
    report = EquivalenceReport(_something_compared(checks, _always_empty(truth)), precision.name, deep)
    if report.ok or not site_outputs:
        return report
    failing = {check.case for check in report.checks if not check.ok}
    ran = [isinstance(result, dict) for result in runs["compiled", "off"]]
    suspects = [case for case, good in zip(cases, ran, strict=True) if good and case.name in failing]
    if not suspects:
        return report  # it does not even run: there is nothing to look into
    first, searched = first_difference(truth, load(compiled), suspects[0], site_outputs, providers=providers, threads=threads)
    return EquivalenceReport(report.checks, report.precision, report.depth, first, searched)


def _is_doubtful(check: OutputCheck, precision: Precision) -> bool:
    """Whether a failed check may be one of noise that ORT's levels do not show."""
    return not check.ok and check.tolerance > 0 and check.relative <= _DOUBT * precision.cap


def _compared(
    case: str,
    truths: Mapping[Level, dict[str, Array]],
    results: Mapping[Level, dict[str, Array] | RuntimeFailure],
    precision: Precision,
    deep: int,
    again: Sequence[Mapping[str, Array]],
) -> list[OutputCheck]:
    """All outputs of one case, on both levels.

    Args:
        case: its name.
        truths: the reference's outputs.
        results: the compiled model's.
        precision: the reference's.
        deep: its depth.
        again: outputs of the reference with other last bits, optimisation off.
    """
    checks = []
    for level in LEVELS:
        for name, right in truths[level].items():
            noise = max(_noise(truths["off"].get(name), other.get(name)) for other in (truths["all"], *again))
            context = _Context(name, case, level, precision, deep, noise)
            checks.append(_check(context, right, results[level], _unstable(name, truths)))
    return checks


def first_difference(
    reference: ir.Model,
    compiled: ir.Model,
    case: Case,
    site_outputs: Mapping[str, Chains],
    *,
    providers: Sequence[str] = (CPU,),
    threads: int = 0,
) -> tuple[SiteDifference | None, int]:
    """The first site value, in the reference's graph order, that two models disagree on, with optimisation off.

    First by the precision's cap, then, where the models part slowly, by the rounding that the depth explains.

    Returns:
        The site, or None where all values agree or none can be compared; and how many values were compared.

    Raises:
        RuntimeFailure: ORT refuses one of the models with its inner values as outputs.
    """
    position = {value.name: i for i, node in enumerate(reference.graph) for value in node.outputs}
    there = {value.name for node in compiled.graph for value in node.outputs}
    owners: dict[str, set[str]] = {}
    for site, chains in site_outputs.items():
        for chain in chains:
            for value in chain:
                owners.setdefault(value, set()).add(site)
    places: list[tuple[int, str, str]] = []
    for site, chains in site_outputs.items():
        for chain in chains:
            common = [value for value in chain if value in position and value in there]
            # A sum that takes up two sites, as in a parallel block, cannot tell one from the other.
            alone = [value for value in common if len(owners[value]) == 1] or common
            places += [(position[value], site, value) for value in alone[-1:]]
    wanted = sorted(places)
    if not wanted:
        return None, 0
    names = [value for _, _, value in wanted]
    options = SessionOptions("off", tuple(providers), threads, exact=True)
    results = []
    for model in (reference, compiled):
        with Session(_with_outputs(model, names), options) as session:
            results.append(session.run(case.feeds, list(dict.fromkeys(names))))
    right, other = results
    precision, deep = precision_of(reference), depth(reference)
    for allowed in (precision.cap, _floor(precision, deep)):
        for _, site, value in wanted:
            difference, scale, bad = _difference(right[value], other[value])
            if bad or difference > allowed * scale:
                return SiteDifference(site, value, difference, difference / scale, case.name), len(wanted)
    return None, len(wanted)


def finite_json(value: Any) -> Any:
    """Plain JSON types, with None for numbers that JSON cannot write."""
    if isinstance(value, dict):
        return {str(key): finite_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_json(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


@dataclass(frozen=True)
class _Context:
    output: str
    case: str
    level: Level
    precision: Precision
    depth: int
    noise: float


def _run(
    model: ModelLike, cases: Sequence[Case], options: SessionOptions, *, strict: bool
) -> list[dict[str, Array] | RuntimeFailure]:
    """Outputs of every case; what failed in its place, unless ``strict``."""
    try:
        with Session(model, options) as session:
            results: list[dict[str, Array] | RuntimeFailure] = []
            for case in cases:
                try:
                    results.append(session.run(case.feeds))
                except RuntimeFailure as error:
                    if strict:
                        raise
                    results.append(error)
            return results
    except RuntimeFailure as error:
        if strict:
            raise
        return [error] * len(cases)


def _succeeded(result: dict[str, Array] | RuntimeFailure) -> dict[str, Array]:
    if isinstance(result, RuntimeFailure):
        raise result
    return result


def _noise(off: Array | None, on: Array | None) -> float:
    if off is None or on is None or off.shape != on.shape or not _is_float(off):
        return 0.0
    both = np.isfinite(off) & np.isfinite(on)
    return float(np.max(np.abs(_wide(off) - _wide(on)), where=both, initial=0.0))


def _unstable(name: str, truths: Mapping[Level, Mapping[str, Array]]) -> Array | None:
    """Where a reference of integers does not agree with itself."""
    off, on = truths["off"].get(name), truths["all"].get(name)
    if off is None or on is None or off.shape != on.shape or _is_float(off):
        return None
    return np.asarray(off != on)


def _check(context: _Context, right: Array, result: dict[str, Array] | RuntimeFailure, unstable: Array | None) -> OutputCheck:
    def failed(reason: str) -> OutputCheck:
        infinite = float("inf")
        return OutputCheck(
            context.output, context.case, context.level, infinite, infinite, 0.0, context.noise, 0.0, 0, right.size, False, reason
        )

    if isinstance(result, RuntimeFailure):
        return failed(result.message)
    other = result.get(context.output)
    if other is None:
        return failed("the compiled model has no such output")
    if other.shape != right.shape:
        return failed(f"shape {list(other.shape)} instead of {list(right.shape)}")
    if other.dtype != right.dtype:
        return failed(f"{other.dtype.name} instead of {right.dtype.name}")
    if not _is_float(right):
        wrong = np.asarray(other != right) if unstable is None else np.asarray(other != right) & ~unstable
        count = int(np.count_nonzero(wrong))
        reason = f"{count} of {right.size} differ" if count else ""
        size, wrongest = right.size, float(count > 0)
        return OutputCheck(
            context.output, context.case, context.level, wrongest, wrongest, 1.0, 0.0, 0.0, size, size, not count, reason
        )
    difference, scale, bad = _difference(right, other)
    explained = max(4 * context.noise, _floor(context.precision, context.depth) * scale)
    capped = context.precision.cap * scale
    tolerance = min(explained, max(capped, 2 * context.noise))
    reason = ""
    if bad:
        reason = f"not finite at {bad} places where the reference is"
    elif 2 * context.noise > capped:
        reason = "the reference alone is noisier than the cap"
    compared = int(np.count_nonzero(np.isfinite(right)))
    return OutputCheck(
        context.output, context.case, context.level, difference, difference / scale, scale, context.noise, tolerance, compared,
        right.size, not bad and difference <= tolerance, reason,
    )  # fmt: skip


def _always_empty(model: ir.Model) -> frozenset[str]:
    """Outputs that are declared to hold nothing."""
    shaped = ((value, value.shape) for value in model.graph.outputs)
    return frozenset(str(value.name) for value, shape in shaped if shape is not None and 0 in shape)


def _something_compared(checks: Sequence[OutputCheck], empty: Set[str]) -> tuple[OutputCheck, ...]:
    """Fail outputs of which no case had anything finite to compare: nothing was shown about them.

    Args:
        checks: of all cases.
        empty: outputs that hold nothing by their shape, which is right; but something has to be compared.
    """
    compared: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for check in checks:
        compared[check.output] += check.compared
        total[check.output] += check.total

    if not total.total():
        return tuple(_failed(check, "every output is empty in every case, so nothing was compared") for check in checks)

    def judged(check: OutputCheck) -> OutputCheck:
        if not total[check.output] and check.output not in empty:
            return _failed(check, "empty in every case, so nothing was compared: it takes inputs that fill it")
        if check.total and not compared[check.output]:
            return _failed(check, "the reference is finite nowhere, so nothing was compared")
        return check

    return tuple(judged(check) for check in checks)


def _failed(check: OutputCheck, reason: str) -> OutputCheck:
    return replace(check, ok=False, reason=reason) if check.ok else check


def _difference(right: Array, other: Array) -> tuple[float, float, int]:
    """(largest difference where the reference is finite, its results' scale, places where only it is finite)."""
    if right.shape != other.shape:
        return float("inf"), 1.0, right.size
    if not _is_float(right):
        return float(np.count_nonzero(right != other)), 1.0, 0
    wide, wide_other = _wide(right), _wide(other)
    finite = np.isfinite(right)
    bad = int(np.count_nonzero(finite & ~np.isfinite(other)))
    results = finite & ~fills(wide, wide_other)
    scale = max(float(np.max(np.abs(wide), where=results, initial=0.0)), _TINY)
    with np.errstate(invalid="ignore"):
        distance = np.abs(wide - wide_other)
    largest = float("inf") if bad else float(np.max(distance, where=finite, initial=0.0))
    return largest, scale, bad


def _floor(precision: Precision, deep: int) -> float:
    return 8 * precision.eps * math.sqrt(deep)


def _is_float(array: Array) -> bool:
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def _wide(array: Array) -> npt.NDArray[np.float64]:
    return array.astype(np.float64)


def _with_outputs(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy of a model that also returns inner values."""
    copy = model.clone()
    present = {value.name for value in copy.graph.outputs}
    values = {value.name: value for node in copy.graph for value in node.outputs}
    for name in dict.fromkeys(names):
        if name not in present:
            copy.graph.outputs.append(values[name])
    return copy
