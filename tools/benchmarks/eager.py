"""Does an exported model compute in ONNX Runtime what its module computes in torch? One process of ``make bench-models``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from inarch.runtime.given import load_npz
from inarch.runtime.session import Session

LIMIT = 1e-4
"""Largest difference that is allowed, relative to the output's largest value."""


def worst_difference(preset: str, model: Path, inputs: Path) -> tuple[float, int]:
    """Run both on every case.

    Args:
        preset: the module, with the weights of seed 0.
        model: what was exported from it.
        inputs: the cases, an ``.npz`` file.

    Returns:
        The largest difference of any output in any case, relative to the output's largest value; and the number of cases.
    """
    from inarch.learning.models import build
    from inarch.learning.models.examples import run_eager

    module = build(preset)
    worst = 0.0
    with Session(model) as session:
        cases = load_npz(inputs)
        for case in cases:
            got = session.run(case.feeds)
            for name, want in run_eager(module, case.feeds).items():
                scale = float(np.abs(want).max()) or 1.0
                worst = max(worst, float(np.abs(got[name] - want).max()) / scale)
    return worst, len(cases)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare and print; 1 where they differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset")
    parser.add_argument("model", type=Path)
    parser.add_argument("inputs", type=Path)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    worst, cases = worst_difference(options.preset, options.model, options.inputs)
    text = json.dumps({"worst": worst, "cases": cases}) if options.json else f"{worst:.1e} over {cases} sizes"
    sys.stdout.write(text + "\n")
    return 0 if worst <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
