"""``make bench-models PROVIDER=cuda``: MDETR and GLIP at full size on a GPU, in fp32 and fp16.

Every model is exported with random weights, planned without training and compiled; in fp16 the dense model is converted first and
compiled with the same plan. Then, on the provider, the compiled model is proved equal to its reference at two image sizes and two
text lengths, and timed beside the dense one at several batch sizes. Without the device it says so, and is done.
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

from inarch.tools import render
from inarch.tools.benchmarks import machine
from inarch.tools.benchmarks.models import KEEP, SUBJECTS, save_inputs
from inarch.tools.benchmarks.watch import watch

MODELS = ("mdetr-vit-b", "glip-t")
PRECISIONS = ("fp32", "fp16")
BATCHES = "1,4"


@dataclass(frozen=True)
class Found:
    """One model in one precision on one provider.

    Attributes:
        model: the preset.
        precision: fp32 or fp16.
        verified: what ``inarch verify --json`` said.
        bench: what ``inarch bench --json`` said.
    """

    model: str
    precision: str
    verified: dict[str, Any]
    bench: dict[str, Any]

    @property
    def ok(self) -> bool:
        """Whether the compiled model is what its plan asks for."""
        return bool(self.verified["ok"])


def commands(name: str, precision: str, folder: Path, keep: float, provider: str) -> list[list[str]]:
    """What is run for one model in one precision, in order; the last two are verify and bench."""
    whole, plan, inputs = (folder / f"{name}{end}" for end in (".onnx", ".plan.json", ".npz"))
    dense, compiled = whole, folder / f"{name}.compiled.onnx"
    steps: list[list[str | Path]] = [
        ["export", "--model", name, "--out", whole],
        ["plan", "make", whole, "--keep", str(keep), "--out", plan],
    ]
    there: list[str | Path] = ["--inputs", inputs, "--provider", provider]
    if precision == "fp16":
        dense, compiled = folder / f"{name}.fp16.onnx", folder / f"{name}.fp16.compiled.onnx"
        # The plan fits, since it counts units and not bytes; export and plan were run for fp32.
        steps = [["quantize", whole, "--to", "fp16", "--out", dense, "--pairs", "0", *there]]
    steps += [
        ["compile", dense, plan, "--out", compiled],
        ["verify", dense, plan, compiled, *there],
        ["bench", dense, compiled, "--batches", BATCHES, *there],
    ]
    return [[*map(str, step), "--json"] for step in steps]


def measure(names: Sequence[str], folder: Path, keep: float, provider: str) -> list[Found]:
    """Run everything; a step that fails ends it, but for verify, whose verdict is reported."""
    subjects = {subject.name: subject for subject in SUBJECTS}
    found = []
    for name in names:
        save_inputs(subjects[name], folder / f"{name}.npz")
        for precision in PRECISIONS:
            said = []
            for command in commands(name, precision, folder, keep, provider):
                render.say(f"{name}, {precision}: {command[0]}")
                done = watch([sys.executable, "-m", "inarch", *command], accept=(0, 1) if command[0] == "verify" else (0,))
                said.append(json.loads(done.output))
            found.append(Found(name, precision, *said[-2:]))
    return found


def as_text(found: Sequence[Found], about: dict[str, object]) -> str:
    """The measurement as a Markdown page."""
    lines = [f"# MDETR and GLIP on {about['provider']}", "", *(f"- {key}: {value}" for key, value in about.items()), ""]
    lines += ["| model | | equivalent | largest difference | node runs | device memory, dense | compiled |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for item in found:
        worst = max(output["relative"] for output in item.verified["equivalence"]["outputs"])
        memory = (_bytes(item.bench[name]["memory"]["model_device"]) for name in ("dense", "compiled"))
        verdict = "yes" if item.ok else "NO"
        cells = (item.model, item.precision, verdict, f"{worst:.1e}", _ran(item.verified["placement"]), *memory)
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| model | | inputs | dense ms | compiled ms | ratio | 95 % interval |", "|---|---|---|---|---|---|---|"]
    for item in found:
        for row in item.bench["latency"]:
            times = (f"{row[name]['median']:.2f}" for name in ("dense", "compiled"))
            ratio, interval = f"{row['ratio']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}"
            lines.append(f"| {' | '.join((item.model, item.precision, row['case'], *times, ratio, interval))} |")
    notes = dict.fromkeys(note for item in found for note in item.bench["notes"])
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)]) + "\n"


def _ran(placement: dict[str, Any] | None) -> str:
    """Node runs by provider; nothing of the CPU, where there is no question."""
    counts = placement["counts"] if placement else {}
    return ", ".join(f"{count} {name.removesuffix('ExecutionProvider')}" for name, count in counts.items()) or "-"


def _bytes(number: int | None) -> str:
    return "-" if number is None else render.size(number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 where a model is not equivalent."""
    from inarch.runtime.providers import device_name, missing_device, onnxruntime, short_name

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--provider", required=True, help="cuda, or another provider of ONNX Runtime")
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="where models are written (default: bench-out)")
    parser.add_argument("--models", default=",".join(MODELS), help=f"separated by commas (default: {','.join(MODELS)})")
    parser.add_argument("--keep", type=float, default=KEEP, help="fraction of each whole model that is kept")
    parser.add_argument("--record", action="store_true", help="write the result to docs/measurements")
    parser.add_argument("--has-device", action="store_true", help="only say whether there is a device: exit code 0 or 1")
    options = parser.parse_args(argv)
    unknown = sorted(set(options.models.split(",")) - {subject.name for subject in SUBJECTS})
    if unknown:
        parser.error(f"no model {unknown[0]!r}; there are {', '.join(subject.name for subject in SUBJECTS)}")
    missing = missing_device(options.provider)
    if missing:
        render.say(f"skipped: {missing}")
    if missing or options.has_device:
        return int(bool(missing and options.has_device))
    options.out.mkdir(parents=True, exist_ok=True)
    about: dict[str, object] = {
        "provider": options.provider,
        "device": device_name(options.provider),
        "onnxruntime": onnxruntime().__version__,
        "keep": options.keep,
        "planner": "similarity",
        **machine.describe(),
    }
    started = time.monotonic()
    found = measure(options.models.split(","), options.out, options.keep, options.provider)
    about["duration_seconds"] = round(time.monotonic() - started)
    text = as_text(found, about)
    target = Path("docs/measurements") if options.record else options.out
    data = {"about": about, "models": [asdict(item) for item in found]}
    for path in machine.record(target, f"models-{short_name(options.provider)}", data, text):
        render.say(f"wrote {path}")
    sys.stdout.write(text)
    return int(not all(item.ok for item in found))


if __name__ == "__main__":
    sys.exit(main())
