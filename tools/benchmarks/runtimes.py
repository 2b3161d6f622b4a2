"""``make bench-runtimes``: other runtimes and tools, and two sessions over one bank of weights.

Each runtime and tool lives in an environment of its own below ``bench-out/envs``, made from pip or npm when it is first needed;
one that cannot be had is reported with the reason. Chromium (``apt-get install chromium libvulkan1``) runs onnxruntime-web, and
brings the software Vulkan that WebGPU needs. What was measured is kept in ``bench-out/runtimes``, and not measured again while
the models are the same; ``--fresh`` forgets it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inarch.runtime.memory import Footprint
from inarch.structure.files import whole
from inarch.tools import render
from inarch.tools.benchmarks import machine, runtimes_bank, runtimes_consumers, runtimes_tools
from inarch.tools.benchmarks.runtimes_bank import WAYS, Banked
from inarch.tools.benchmarks.runtimes_consumers import CONSUMERS, FORMS, Cell, Consumer
from inarch.tools.benchmarks.runtimes_envs import Unavailable
from inarch.tools.benchmarks.runtimes_page import Results, as_text
from inarch.tools.benchmarks.runtimes_subjects import Sharing, Subject, find_subjects
from inarch.tools.benchmarks.runtimes_tools import TOOLS, Rewritten, Row, Tool

STEPS = ("runtimes", "tools", "bank")
COMMAND = "make bench-runtimes"


@dataclass(frozen=True)
class Memo:
    """What was measured before, one file a measurement.

    Attributes:
        folder: where.
    """

    folder: Path

    def get(self, subject: Subject, name: str, compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """A measurement, from its file or computed now.

        Raises:
            Unavailable: it could not be made, now or then.
        """
        stamp = "".join(f"{path.stat().st_size}{path.stat().st_mtime_ns}" for path in (subject.dense, subject.compiled))
        key = hashlib.sha256(stamp.encode()).hexdigest()[:8]
        path = self.folder / f"{subject.name}-{key}-{name}.json"
        if not path.exists():
            render.say(f"{subject.name}: {name}")
            try:
                found = dict(compute())
            except Unavailable as error:
                found = {"problem": str(error)}
            self.folder.mkdir(parents=True, exist_ok=True)
            with whole(path) as draft:
                draft.write_text(json.dumps(render.plain(found)) + "\n", encoding="utf-8")
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if "problem" in kept:
            raise Unavailable(kept["problem"])
        return {key: math.inf if key == "difference" and value is None else value for key, value in kept.items()}

    def forget(self) -> None:
        """Remove everything."""
        for path in self.folder.glob("*.json"):
            path.unlink()


def run_consumers(found: Results, memo: Memo, envs: Path) -> None:
    """Every runtime, dense and compiled."""
    for consumer in CONSUMERS:
        try:
            found.cells[consumer.key] = {form: _cell(consumer, found.subject, form, memo, envs) for form in FORMS}
        except Unavailable as error:
            found.problems[consumer.key] = str(error)


def _cell(consumer: Consumer, subject: Subject, form: str, memo: Memo, envs: Path) -> Cell:
    name = f"runtime-{consumer.key}-{form}"
    return Cell(**memo.get(subject, name, lambda: asdict(runtimes_consumers.measure(consumer, subject, form, envs))))


def run_tools(found: Results, memo: Memo, envs: Path) -> None:
    """Every tool, dense and compiled."""
    for tool in TOOLS:
        forms, problems = {}, {}
        for form in FORMS:
            try:
                forms[form] = _rewritten(tool, found.subject, form, memo, envs)
            except Unavailable as error:
                problems[form] = str(error)
        found.tools.append(Row(tool, forms, problems))


def _rewritten(tool: Tool, subject: Subject, form: str, memo: Memo, envs: Path) -> Rewritten:
    kept = memo.get(subject, f"tool-{tool.key}-{form}", lambda: asdict(runtimes_tools.rewrite(tool, subject, form, envs)))
    return Rewritten(**{**kept, "sharing": Sharing(**kept["sharing"]) if kept["sharing"] else None})


def run_bank(found: Results, memo: Memo) -> None:
    """Every way to have both parts in one process."""
    for way in WAYS:

        def compute(way: runtimes_bank.Way = way) -> dict[str, Any]:
            banked, bank = runtimes_bank.measure(way, found.subject, found.subject.folder / "bank")
            return {**banked.to_json(), "shared": [len(bank.shared), bank.shared_bytes]}

        kept = memo.get(found.subject, f"bank-{way.key}", compute)
        found.shared = kept["shared"][0], kept["shared"][1]
        found.ways[way.key] = Banked(
            Footprint(**kept["loaded"]), Footprint(**kept["ran"]), kept["file_bytes"], kept["difference"]
        )


def as_json(results: Sequence[Results], about: Mapping[str, object]) -> dict[str, object]:
    """The measurement as plain JSON types."""
    subjects = {
        found.subject.name: {
            "saved_bytes": found.subject.saved,
            "noise": found.subject.noise,
            "runtimes": {key: {form: asdict(cell) for form, cell in forms.items()} for key, forms in found.cells.items()},
            "not_measured": found.problems,
            "tools": {
                row.tool.key: {"problems": dict(row.problems), **{form: asdict(made) for form, made in row.forms.items()}}
                for row in found.tools
            },
            "bank": {key: item.to_json() for key, item in found.ways.items()},
            "bank_shared": list(found.shared),
        }
        for found in results
    }
    return {"about": dict(about), "subjects": subjects}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="where everything goes (default: bench-out)")
    parser.add_argument("--demo", type=Path, default=Path("demo-out"), help="a demo's folder (default: demo-out)")
    parser.add_argument("--steps", default=",".join(STEPS), help="only these, separated by commas")
    parser.add_argument("--fresh", action="store_true", help="measure again what is kept")
    parser.add_argument("--record", action="store_true", help="write the result to docs/measurements")
    options = parser.parse_args(argv)
    steps = [name for name in options.steps.split(",") if name]
    unknown = sorted(set(steps) - set(STEPS))
    if unknown:
        parser.error(f"no step {unknown[0]!r}; there are {', '.join(STEPS)}")
    about: dict[str, object] = {"command": COMMAND, **machine.describe()}
    memo, envs = Memo(options.out / "runtimes" / "measured"), (options.out / "envs").resolve()
    envs.mkdir(parents=True, exist_ok=True)
    if options.fresh:
        memo.forget()
    results = [Results(subject) for subject in find_subjects(options.out, options.demo)]
    for found in results:
        if "runtimes" in steps:
            run_consumers(found, memo, envs)
        if "tools" in steps:
            run_tools(found, memo, envs)
        if "bank" in steps:
            run_bank(found, memo)
    text = as_text(results, about)
    target = Path("docs/measurements") if options.record else options.out
    for path in machine.record(target, "runtimes", as_json(results, about), text):
        render.say(f"wrote {path}")
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
