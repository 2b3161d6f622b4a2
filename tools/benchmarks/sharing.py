"""``make bench-sharing``: what sharing and pruning save on the two-tower model, and what they cost.

For a hand-made plan and for every planner's: the compiled model is verified first, and only then measured. Targets:

- the file is within 1 % of its unique bytes;
- anonymous memory after load falls by at least 95 % of the unique bytes that were saved;
- where a plan only shares, the upper bound of the latency ratio's interval is at most 1.02 at one thread and 1.03 at more;
- where it prunes, the latency ratio is at most 1.05 times the ratio of multiplications.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from inarch.api import compile, discover, draft_plan, verify
from inarch.runtime.inputs import Case
from inarch.runtime.latency import MIN_PAIRS, LatencyReport, measure_latency
from inarch.runtime.memory import measure_memory
from inarch.runtime.size import SizeReport, measure_size
from inarch.structure.lowered import ResolvedPlan
from inarch.structure.plan import Plan, save_plan
from inarch.structure.resolve import AxisDecision, build_plan, identity, resolve
from inarch.structure.sites import Site, SiteTable
from inarch.tools import render
from inarch.tools.benchmarks import machine
from inarch.tools.benchmarks.twin import TwinEncoders, feeds

FILE_SLACK = 0.01
MEMORY_SHARE = 0.95
SHARED_LIMITS: Mapping[int, float] = {1: 1.02}
SHARED_LIMIT = 1.03
PRUNED_LIMIT = 1.05
KEPT_HEADS, KEPT_HIDDEN = 7 / 12, 1840 / 3072
"""What the 40 % plan keeps by hand: 7 of 12 heads, 1,840 of 3,072 FFN units."""


def half_shared(table: SiteTable, name: str) -> Plan:
    """By hand: half of the text tower's heads and FFN units are the vision tower's, layer by layer."""
    decisions: dict[str, dict[str, AxisDecision]] = {}
    for text, vision in _twins(table):
        axis = "hidden" if text.kind == "ffn" else "head"
        half = np.arange(text.axes[axis].size // 2, dtype=np.int64)
        decisions[text.name] = {axis: AxisDecision(share=((vision.name, half, half),))}
    return build_plan(table, decisions, name, {"planner": "by hand", "shares": "half of the text tower"})


def pruned(table: SiteTable, name: str) -> Plan:
    """By hand: 5 of 12 heads and 40 % of the FFN units go, everywhere."""
    decisions: dict[str, dict[str, AxisDecision]] = {}
    for site in table.sites:
        axis, kept = ("hidden", KEPT_HIDDEN) if site.kind == "ffn" else ("head", KEPT_HEADS)
        count = round(site.axes[axis].size * kept)
        decisions[site.name] = {axis: AxisDecision(keep=np.arange(count, dtype=np.int64))}
    return build_plan(table, decisions, name, {"planner": "by hand", "keeps": "7 of 12 heads, 1840 of 3072 units"})


def _twins(table: SiteTable) -> list[tuple[Site, Site]]:
    """Text and vision sites of the same place."""

    def tower(prefix: str) -> list[Site]:
        return [site for site in table.sites if all(m.param.startswith(prefix) for m in site.members.values() if m.is_matrix)]

    return list(zip(tower("text."), tower("vision."), strict=True))


def _planned(
    model: Path, method: str, keep: float, *, share_fraction: float = 0.5, block: int = 4
) -> Callable[[SiteTable, str], Plan]:
    """A planner's plan, made when it is asked for."""

    def make(table: SiteTable, name: str) -> Plan:
        with render.progress() as report:
            return draft_plan(model, keep=keep, method=method, share_fraction=share_fraction, block=block, progress=report).plan

    return make


@dataclass(frozen=True)
class Row:
    """One plan's measurements.

    Attributes:
        plan: what it is called.
        kept: stored parameters, as a fraction of the dense model's.
        shares: whether units are shared.
        prunes: whether units are pruned.
        size: of the compiled model.
        anonymous: bytes of anonymous memory that loading it adds.
        memory_share: how much of the saved unique bytes anonymous memory fell by.
        ideal: multiplications, as a fraction of the dense model's.
        latency: one a thread count.
        missed: targets that were missed, each in one sentence.
    """

    plan: str
    kept: float
    shares: bool
    prunes: bool
    size: SizeReport
    anonymous: int
    memory_share: float
    ideal: float
    latency: tuple[LatencyReport, ...]
    missed: tuple[str, ...] = field(default=())


def multiplications(table: SiteTable, resolved: ResolvedPlan, batch: int, sequence: int) -> int:
    """Multiplications of all sites on inputs of [batch, sequence]: projections, scores and weighted sums.

    A shared unit is multiplied by each of its readers, so only pruning makes them fewer.
    """
    total = 0
    for site in table.sites:
        for name, axis in resolved.axes[site.name].items():
            kept = int(np.count_nonzero(~axis.pruned))
            total += kept * site.unit_parameters(name)[0] * batch * sequence
            if site.kind == "msa":
                total += kept * batch * sequence * sequence
    return total


def check(row: Row) -> tuple[str, ...]:
    """The targets that a row misses."""
    missed = []
    excess = row.size.file_bytes / row.size.unique_bytes - 1
    if excess > FILE_SLACK:
        missed.append(f"the file is {excess:.1%} larger than its unique bytes")
    if row.memory_share < MEMORY_SHARE:
        missed.append(f"anonymous memory fell by {row.memory_share:.1%} of the saved bytes")
    for report in row.latency:
        threads = f"{report.threads} thread{'s' if report.threads > 1 else ''}"
        if row.prunes:
            limit = PRUNED_LIMIT * row.ideal
            if report.ratio > limit:
                missed.append(f"latency ratio {report.ratio:.3f} at {threads}, allowed {limit:.3f}")
        else:
            limit = SHARED_LIMITS.get(report.threads, SHARED_LIMIT)
            if report.high > limit:
                missed.append(f"latency ratio up to {report.high:.3f} at {threads}, allowed {limit:.2f}")
    return tuple(missed)


@dataclass(frozen=True)
class Dense:
    """The dense model's measurements.

    Attributes:
        size: its sizes.
        anonymous: bytes of anonymous memory that loading it adds.
        control: the dense model against itself, one a thread count: how far from 1 this machine's noise alone goes.
    """

    size: SizeReport
    anonymous: int
    control: tuple[LatencyReport, ...]


def as_text(rows: Sequence[Row], dense: Dense, about: Mapping[str, object]) -> str:
    """The measurement as a Markdown page."""
    counts = [report.threads for report in dense.control]
    columns = ["plan", "stored", "file MB", "unique MB", "anonymous MB", "of saved bytes", "multiplications"]
    columns += [f"latency, {count} thread{'s' if count > 1 else ''}" for count in counts]
    lines = ["# Sharing and pruning a two-tower model", ""]
    lines += [f"- {key}: {value}" for key, value in about.items()]
    lines += ["", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    cells = ["dense", "100.0 %", _mb(dense.size.file_bytes), _mb(dense.size.unique_bytes), _mb(dense.anonymous), "", "1.000"]
    lines.append("| " + " | ".join(cells + [_ratio(report) for report in dense.control]) + " |")
    for row in rows:
        cells = [
            row.plan, f"{100 * row.kept:.1f} %", _mb(row.size.file_bytes), _mb(row.size.unique_bytes), _mb(row.anonymous),
            f"{100 * row.memory_share:.1f} %", f"{row.ideal:.3f}",
        ]  # fmt: skip
        cells += [_ratio(report) for report in row.latency]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "Latency: compiled over dense, median of interleaved pairs with its 95 % bootstrap interval; in the first row dense",
    ]
    lines += ["over itself, which is the machine's noise. Every model was verified against its reference before it was measured."]
    lines += ["MB are 10^6 bytes.", ""]
    misses = [f"- {row.plan}: {sentence}" for row in rows for sentence in row.missed]
    lines += ["## Targets missed", "", *misses, ""] if misses else ["All targets are met.", ""]
    return "\n".join(lines)


def _ratio(report: LatencyReport) -> str:
    return f"{report.ratio:.3f} [{report.low:.3f}, {report.high:.3f}]"


def _mb(count: int) -> str:
    return f"{count / 1e6:.1f}"


def measure(
    model: Path,
    plans: Mapping[str, Callable[[SiteTable, str], Plan]],
    case: Case,
    folder: Path,
    pairs: int,
    threads: Sequence[int],
) -> tuple[list[Row], Dense]:
    """Make, compile, verify and measure every plan.

    Returns:
        The rows, and the dense model's own measurements.

    Raises:
        SystemExit: a compiled model is not equivalent to its reference; nothing more is measured.
    """
    table = discover(model).table
    batch, sequence = next(iter(case.feeds.values())).shape[:2]
    whole = multiplications(table, identity(table), batch, sequence)

    def timed(other: Path) -> tuple[LatencyReport, ...]:
        with render.progress() as report:
            return measure_latency(
                model, other, case, threads=threads, pairs=pairs, progress=lambda done, n: report("measuring latency", done, n)
            )

    render.say("[0] dense against itself")
    dense = Dense(measure_size(model), measure_memory(model, case).model_anonymous, timed(model))
    rows = []
    for number, (name, make) in enumerate(plans.items(), 1):
        render.say(f"[{number}/{len(plans)}] {name}")
        plan = make(table, model.stem)
        plan_path, compiled = folder / f"{name}.plan.json", folder / f"{name}.onnx"
        save_plan(plan, plan_path)
        resolved = resolve(plan, table)
        with render.progress() as report:
            lowered = compile(model, plan, compiled, progress=report).lowered
        with render.progress() as report:
            verification = verify(model, plan, compiled, progress=report)
        if not verification.ok:
            raise SystemExit(f"{name}: the compiled model is not equivalent to its reference; nothing is measured")
        size, anonymous = measure_size(compiled), measure_memory(compiled, case).model_anonymous
        saved = dense.size.unique_bytes - size.unique_bytes
        latency = timed(compiled)
        axes = [axis for sites in resolved.axes.values() for axis in sites.values()]
        row = Row(
            name,
            lowered.stored / lowered.parameters,
            bool(lowered.segments),
            any(axis.pruned.any() for axis in axes),
            size,
            anonymous,
            (dense.anonymous - anonymous) / saved if saved else 1.0,
            multiplications(table, resolved, batch, sequence) / whole,
            latency,
        )
        rows.append(Row(**{**row.__dict__, "missed": check(row)}))
        for sentence in rows[-1].missed:
            render.warn(f"{name}: {sentence}")
    return rows, dense


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="where models are built (default: bench-out)")
    parser.add_argument("--layers", type=int, default=12, help="layers of each encoder")
    parser.add_argument("--pairs", type=int, default=MIN_PAIRS, help="latency pairs a thread count")
    parser.add_argument("--threads", default="1,2", help="thread counts")
    parser.add_argument("--sequence", type=int, default=128, help="tokens of each tower")
    parser.add_argument("--plans", default="", help="only these plans, separated by commas")
    parser.add_argument("--record", action="store_true", help="write the result to docs/measurements")
    options = parser.parse_args(argv)
    started, about_machine = time.monotonic(), machine.describe()
    twin = TwinEncoders(layers=options.layers)
    model = twin.save(options.out)
    plans: dict[str, Callable[[SiteTable, str], Plan]] = {
        "hand-half-shared": half_shared,
        "similarity-half-shared": _planned(model, "similarity", 0.75, share_fraction=1.0, block=2),
        "hand-pruned": pruned,
        "magnitude": _planned(model, "magnitude", 0.6),
        "uniform": _planned(model, "uniform", 0.6),
        "similarity": _planned(model, "similarity", 0.6),
    }
    chosen = [name for name in options.plans.split(",") if name] or list(plans)
    unknown = sorted(set(chosen) - set(plans))
    if unknown:
        parser.error(f"no plan {unknown[0]!r}; there are {', '.join(plans)}")
    case = Case(f"batch 1, sequence {options.sequence}", feeds(twin, (1, options.sequence)))
    threads = [int(count) for count in options.threads.split(",")]
    rows, dense = measure(model, {name: plans[name] for name in chosen}, case, options.out, options.pairs, threads)
    about = {
        "model": f"2 encoders of {twin.layers} layers, {twin.width} wide, random weights",
        "inputs": case.name,
        "pairs": options.pairs,
        **about_machine,
        "duration_seconds": round(time.monotonic() - started),
    }
    text = as_text(rows, dense, about)
    data = {"about": about, "dense": asdict(dense), "rows": [asdict(row) for row in rows]}
    target = Path("docs/measurements") if options.record else options.out
    for path in machine.record(target, "sharing", data, text):
        render.say(f"wrote {path}")
    sys.stdout.write(text)
    return 1 if any(row.missed for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
