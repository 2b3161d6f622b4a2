"""``make bench-models``: MDETR and GLIP at full size, step by step, each step a process of its own.

Every model is exported with random weights, inspected, planned without training, compiled, and verified at two image sizes and
two text lengths; time and peak memory of each step are printed. Of the models that are verified, memory and latency are measured
as well, of the plan's sharing and pruning alone too, and the last line says whether any is slower than dense by more than 2 %.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inarch.tools import render
from inarch.tools.benchmarks import machine
from inarch.tools.benchmarks.watch import watch

KEEP = 0.63
MEMORY_SHARE = 0.95
STEPS = ("export", "eager", "inspect", "plan", "compile", "verify", "bench")
SLOWER = 1.02
"""Of a model, and of the plan's sharing alone."""
PRUNED = 1.05
"""Of the plan's pruning alone, times the multiplications that are left."""


@dataclass(frozen=True)
class Subject:
    """A model and what is done with it.

    Attributes:
        name: its preset.
        msa, ffn: sites that its architecture implies.
        steps: what is done, in order.
        sizes: (batch, height, width, text length) of the inputs that it is verified on.
    """

    name: str
    msa: int
    ffn: int
    steps: tuple[str, ...] = STEPS
    sizes: tuple[tuple[int, int, int, int], ...] = ((1, 256, 320, 12), (2, 192, 160, 7))


SUBJECTS = (
    Subject("mdetr-r101", msa=12 + 6 + 12, ffn=12 + 6 + 6),
    Subject("mdetr-vit-b", msa=12 + 12 + 6 + 12, ffn=12 + 12 + 6 + 6),
    Subject("glip-t", msa=12 + 12 + 6 + 6, ffn=12 + 12 + 6),
    Subject("glip-l", msa=24 + 12 + 8 + 8, ffn=24 + 12 + 8, steps=("export", "inspect", "plan", "compile")),
)


@dataclass(frozen=True)
class Step:
    """One step's costs, and what it said.

    Attributes:
        model: the preset.
        step: what was done.
        seconds: wall time of the process.
        anonymous: most anonymous memory, in bytes.
        resident: most resident memory, mapped files included, in bytes.
        said: the result in short.
    """

    model: str
    step: str
    seconds: float
    anonymous: int
    resident: int
    said: str


def save_inputs(subject: Subject, path: Path) -> None:
    """Write the inputs that a model is verified on, one case a size."""
    from inarch.learning.models import build

    model = build(subject.name, device="meta")
    arrays: dict[str, Any] = {}
    for number, size in enumerate(subject.sizes):
        for name, tensor in model.example(*size, seed=number).items():
            arrays[f"{'x'.join(map(str, size))}/{name}"] = tensor.numpy()
    np.savez(path, **arrays)


def run(subject: Subject, folder: Path, keep: float) -> tuple[list[Step], dict[str, Any] | None]:
    """All steps of one model; the last value is what ``inarch bench`` said, where it ran."""
    name = subject.name
    dense, plan, compiled, inputs = (folder / f"{name}{end}" for end in (".onnx", ".plan.json", ".compiled.onnx", ".npz"))
    commands: dict[str, list[str | Path]] = {
        "export": ["export", "--model", name, "--out", dense],
        "eager": [name, dense, inputs],
        "inspect": ["inspect", dense],
        "plan": ["plan", "make", dense, "--keep", str(keep), "--out", plan],
        "compile": ["compile", dense, plan, "--out", compiled],
        "verify": ["verify", dense, plan, compiled, "--inputs", inputs],
        "bench": ["bench", dense, compiled, "--inputs", inputs, "--parts", plan],
    }
    save_inputs(subject, inputs)
    steps, measured = [], None
    for step in subject.steps:
        render.say(f"{name}: {step}")
        program = "inarch.tools.benchmarks.eager" if step == "eager" else "inarch"
        done = watch([sys.executable, "-m", program, *map(str, commands[step]), "--json"])
        document = json.loads(done.output)
        if step == "inspect":
            check_sites(subject, document)
        steps.append(Step(name, step, done.seconds, done.anonymous, done.resident, said(step, document)))
        render.say(f"  {done.seconds:.0f} s, {done.anonymous / 1e9:.2f} GB anonymous: {steps[-1].said}")
        measured = document if step == "bench" else measured
    return steps, measured


def check_sites(subject: Subject, document: dict[str, Any]) -> None:
    """Refuse to go on where the sites are not those of the architecture.

    Raises:
        SystemExit: they are not.
    """
    kinds = [site["kind"] for site in document["sites"]]
    found = kinds.count("msa"), kinds.count("ffn")
    if found != (subject.msa, subject.ffn):
        raise SystemExit(f"{subject.name}: found {found} MSAs and FFNs, and its architecture has {(subject.msa, subject.ffn)}")


def said(step: str, document: dict[str, Any]) -> str:
    """A step's result in a few words."""
    if step == "export":
        return f"{document['parameters']:,} parameters, {document['nodes']} nodes"
    if step == "eager":
        return f"ONNX Runtime against torch: largest relative difference {document['worst']:.1e} over {document['cases']} sizes"
    if step == "inspect":
        kinds = [site["kind"] for site in document["sites"]]
        inside = sum(site["parameters"] for site in document["sites"])
        return f"{kinds.count('msa')} MSAs and {kinds.count('ffn')} FFNs with {inside:,} parameters"
    if step == "plan":
        return f"{document['kept_model']:.1%} of the model kept, {document['kept_sites']:.1%} of its sites"
    if step == "compile":
        share = document["stored_parameters"] / document["parameters"]
        return f"{document['stored_parameters']:,} parameters stored, {share:.1%}"
    if step == "verify":
        return "equivalent" if document["ok"] else "NOT equivalent"
    return ", ".join(map(figures, document["latency"]))


def figures(report: dict[str, Any]) -> str:
    """A latency ratio with its interval."""
    threads = f"{report['threads']} thread{'s' if report['threads'] > 1 else ''}"
    return f"{threads} {report['ratio']:.3f} [{report['low']:.3f}, {report['high']:.3f}]"


def ideal(bench: dict[str, Any], part: str) -> float:
    """Multiplications of one model, as a fraction of the dense one's."""
    return float(bench[part]["multiplications"] / bench["dense"]["multiplications"])


def memory_saved(bench: dict[str, Any]) -> tuple[int, int]:
    """Bytes of tensors that were saved, and bytes that the loaded model's anonymous memory fell by."""
    dense, compiled = bench["dense"], bench["compiled"]
    saved = dense["size"]["unique_bytes"] - compiled["size"]["unique_bytes"]
    return saved, dense["memory"]["model_anonymous"] - compiled["memory"]["model_anonymous"]


def missed(bench: dict[str, Any]) -> list[str]:
    """Targets that a model misses, each in one sentence."""
    saved, fell = memory_saved(bench)
    sentences = []
    if fell < MEMORY_SHARE * saved:
        sentences.append(f"anonymous memory fell by {fell / saved:.1%} of the bytes saved, wanted {MEMORY_SHARE:.0%}")
    limits = {"compiled": SLOWER, "shared": SLOWER, "pruned": PRUNED * ideal(bench, "pruned")}
    for part, limit in limits.items():
        for report in bench[part]["latency"] if part != "compiled" else bench["latency"]:
            if report["ratio"] > limit:
                sentences.append(f"latency of {part}: {figures(report)}, allowed {limit:.3f}")
    return sentences


def parts(bench: dict[str, Any]) -> list[str]:
    """The plan's parts alone, one line each."""
    lines = []
    for part, words in (("shared", "sharing"), ("pruned", "pruning")):
        ratios = ", ".join(map(figures, bench[part]["latency"]))
        lines.append(f"- {words} alone: latency {ratios}; multiplications {ideal(bench, part):.3f}")
    return [*lines, f"- both: multiplications {ideal(bench, 'compiled'):.3f}"]


def verdict(benches: dict[str, dict[str, Any]]) -> str:
    """Whether any model is slower than dense by more than is allowed, in one sentence."""
    ratio, name, threads = max(
        (report["ratio"], name, report["threads"]) for name, bench in benches.items() for report in bench["latency"]
    )
    which = f"the slowest is {name} at {threads} thread{'s' if threads > 1 else ''}, {ratio:.3f}"
    return f"{'No' if ratio <= SLOWER else 'A'} model is slower than dense by more than {SLOWER - 1:.0%}: {which}."


def as_text(steps: Sequence[Step], benches: dict[str, dict[str, Any]], about: dict[str, object]) -> str:
    """The measurement as a Markdown page."""
    lines = ["# MDETR and GLIP at full size", "", *(f"- {key}: {value}" for key, value in about.items()), ""]
    lines += ["| model | step | seconds | anonymous GB | resident GB | |", "|---|---|---|---|---|---|"]
    for s in steps:
        lines.append(f"| {s.model} | {s.step} | {s.seconds:.1f} | {s.anonymous / 1e9:.2f} | {s.resident / 1e9:.2f} | {s.said} |")
    lines += ["", "Resident memory counts mapped files, which the system takes back when it needs the space."]
    for name, bench in benches.items():
        saved, fell = memory_saved(bench)
        lines += ["", f"{name}: {saved / 1e6:.1f} MB of tensors saved; anonymous memory of the loaded model falls by"]
        lines += [f"{fell / 1e6:.1f} MB ({fell / saved:.1%}).", ""]
        lines += [*parts(bench), *(f"- missed: {sentence}" for sentence in missed(bench))]
    if benches:
        lines += ["", verdict(benches)]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="where models are written (default: bench-out)")
    parser.add_argument("--models", default="", help="only these, separated by commas")
    parser.add_argument("--keep", type=float, default=KEEP, help="fraction of each whole model that is kept")
    parser.add_argument("--record", action="store_true", help="write the result to docs/measurements")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    known = {subject.name: subject for subject in SUBJECTS}
    chosen = [name for name in options.models.split(",") if name] or list(known)
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        parser.error(f"no model {unknown[0]!r}; there are {', '.join(known)}")
    about: dict[str, object] = {"keep": options.keep, "planner": "similarity", **machine.describe()}
    started = time.monotonic()
    steps: list[Step] = []
    benches: dict[str, dict[str, Any]] = {}
    for name in chosen:
        done, bench = run(known[name], options.out, options.keep)
        steps += done
        if bench is not None:
            benches[name] = bench
    about["duration_seconds"] = round(time.monotonic() - started)
    text = as_text(steps, benches, about)
    data = {"about": about, "steps": [asdict(step) for step in steps], "bench": benches}
    target = Path("docs/measurements") if options.record else options.out
    for path in machine.record(target, "models", data, text):
        render.say(f"wrote {path}")
    sys.stdout.write(text)
    return 1 if any(missed(bench) for bench in benches.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
