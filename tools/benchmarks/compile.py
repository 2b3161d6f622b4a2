"""``make bench-compile``: what compiling costs beside reading and writing the same model with onnx_ir.

Pairs are interleaved in one process, after a warm-up, and the model is in the page cache. Memory is that of a process of its own,
sampled from outside. Targets:

- compiling takes at most 1.5 times as long as ``onnx_ir.load`` and ``onnx_ir.save`` of the dense model, plus 2 seconds;
- the peak of anonymous memory is at most three times the largest tensor plus 300 MB.

Reading and writing with inarch and no plan is measured beside them: what is left is the compiler's own.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx_ir as ir

from inarch.api import compile, make_plan
from inarch.compiler.writer import write_model
from inarch.frontends.onnx_file import load_model
from inarch.structure.plan import save_plan
from inarch.tools import render
from inarch.tools.benchmarks import machine
from inarch.tools.benchmarks.twin import TwinEncoders
from inarch.tools.benchmarks.watch import watch

TIME_FACTOR, TIME_REST = 1.5, 2.0
MEMORY_TENSORS, MEMORY_REST = 3, 300_000_000


@dataclass(frozen=True)
class Result:
    """The measurement.

    Attributes:
        baseline: seconds of onnx_ir's load and save, one a pair.
        copied: seconds of inarch's load and write without a plan, one a pair.
        compiled: seconds of compiling, one a pair.
        peak_anonymous: most anonymous memory while compiling, in bytes.
        largest: bytes of the model's largest tensor.
        model_bytes: bytes of the dense model's files.
    """

    baseline: tuple[float, ...]
    copied: tuple[float, ...]
    compiled: tuple[float, ...]
    peak_anonymous: int
    largest: int
    model_bytes: int

    @property
    def excess(self) -> float:
        """Median over the pairs of the seconds above what is allowed; not positive where the target is met."""
        pairs = zip(self.compiled, self.baseline, strict=True)
        return statistics.median(ours - (TIME_FACTOR * theirs + TIME_REST) for ours, theirs in pairs)

    @property
    def allowed_memory(self) -> int:
        """Most anonymous memory that the target allows, in bytes."""
        return MEMORY_TENSORS * self.largest + MEMORY_REST

    @property
    def missed(self) -> tuple[str, ...]:
        """The targets that are missed, each in one sentence."""
        sentences = []
        if self.excess > 0:
            sentences.append(f"compiling takes {self.excess:.2f} s more than is allowed")
        if self.peak_anonymous > self.allowed_memory:
            sentences.append(f"{_mb(self.peak_anonymous)} MB of anonymous memory, allowed {_mb(self.allowed_memory)}")
        return tuple(sentences)


def load_and_save(model: Path, folder: Path) -> None:
    """Read and write with onnx_ir."""
    ir.save(ir.load(model), folder / "baseline.onnx", external_data="baseline.data")


def load_and_write(model: Path, folder: Path) -> None:
    """Read and write with inarch, no plan applied."""
    write_model(load_model(model), folder / "copied.onnx")


def measure(model: Path, plan: Path, folder: Path, pairs: int) -> Result:
    """Measure time in interleaved rounds, then memory."""

    def carry_out(source: Path, target: Path) -> None:
        compile(source, plan, target / "compiled.onnx")

    steps: tuple[Callable[[Path, Path], None], ...] = (load_and_save, load_and_write, carry_out)
    seconds: list[list[float]] = [[] for _ in steps]
    with render.progress() as report:
        for number in range(pairs + 1):  # the first round warms up
            for step, times in zip(steps, seconds, strict=True):
                started = time.perf_counter()
                step(model, folder)
                if number:
                    times.append(time.perf_counter() - started)
            report("measuring time", number + 1, pairs + 1)
    tensors = [tensor.nbytes for tensor in load_model(model).graph.initializers.tensors()]
    command = [sys.executable, "-m", "inarch", "compile", str(model), str(plan), "-o", str(folder / "compiled.onnx"), "--json"]
    peak = watch(command).anonymous
    files = sum(path.stat().st_size for path in (model, *_data_files(model)))
    baseline, copied, compiled = (tuple(times) for times in seconds)
    return Result(baseline, copied, compiled, peak, max(tensors), files)


def as_text(result: Result, about: dict[str, object]) -> str:
    """The measurement as a Markdown page."""
    lines = ["# What compiling costs", "", *(f"- {key}: {value}" for key, value in about.items())]
    lines += ["", "| | median seconds | lowest | highest |", "|---|---|---|---|"]
    rows = {
        "onnx_ir load and save": result.baseline,
        "inarch load and write, no plan": result.copied,
        "inarch compile": result.compiled,
    }
    for name, times in rows.items():
        lines.append(f"| {name} | {statistics.median(times):.2f} | {min(times):.2f} | {max(times):.2f} |")
    side = "above" if result.excess > 0 else "below"
    lines += [
        "",
        f"Allowed: {TIME_FACTOR} x load and save + {TIME_REST:.0f} s; {abs(result.excess):.2f} s {side} it (median of pairs).",
    ]
    lines += [f"Peak anonymous memory while compiling: {_mb(result.peak_anonymous)} MB, allowed {_mb(result.allowed_memory)} MB"]
    lines += [f"(the largest tensor has {_mb(result.largest)} MB, the model {_mb(result.model_bytes)} MB).", ""]
    lines += [f"- missed: {sentence}" for sentence in result.missed] or ["All targets are met."]
    return "\n".join(lines) + "\n"


def _data_files(model: Path) -> list[Path]:
    """External data files of a model."""
    tensors = (value.const_value for value in ir.load(model).graph.initializers.values())
    return sorted({Path(tensor.path) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)})


def _mb(count: int) -> str:
    return f"{count / 1e6:.0f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="where models are built (default: bench-out)")
    parser.add_argument("--layers", type=int, default=12, help="layers of each encoder")
    parser.add_argument("--pairs", type=int, default=7, help="rounds that are measured")
    parser.add_argument("--method", default="similarity", help="the planner that makes the plan")
    parser.add_argument("--keep", type=float, default=0.65, help="fraction of the parameters that the plan keeps")
    parser.add_argument("--record", action="store_true", help="write the result to docs/measurements")
    options = parser.parse_args(argv)
    twin = TwinEncoders(layers=options.layers)
    model = twin.save(options.out)
    plan = options.out / "compile.plan.json"
    save_plan(make_plan(model, keep=options.keep, method=options.method), plan)
    result = measure(model, plan, options.out, options.pairs)
    about: dict[str, object] = {
        "model": f"2 encoders of {twin.layers} layers, {twin.width} wide, random weights",
        "plan": f"{options.method}, {options.keep:.0%} of the parameters kept",
        "pairs": options.pairs,
        **machine.describe(),
    }
    text = as_text(result, about)
    target = Path("docs/measurements") if options.record else options.out
    data = {"about": about, **asdict(result), "excess_seconds": result.excess, "missed": result.missed}
    for path in machine.record(target, "compile", data, text):
        render.say(f"wrote {path}")
    sys.stdout.write(text)
    return 1 if result.missed else 0


if __name__ == "__main__":
    sys.exit(main())
