"""What the demo found, and how it names the towers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inarch.tools import bench, compile, plan

if TYPE_CHECKING:
    from inarch.compiler.compile import CompileResult
    from inarch.runtime.verify import Verification
    from inarch.structure.planners import PlanResult
    from inarch.structure.sites import Site
    from inarch.tools.demo_inputs import Answers


@dataclass(frozen=True)
class Saving:
    """What a plan saves in one way.

    Attributes:
        units: units that are not stored for their site.
        parameters: weights and biases that they would have been.
    """

    units: int = 0
    parameters: int = 0


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        made: the plan.
        plan_file: where it is.
        savings: ``cross-modal``, ``layer-wise`` and ``pruned`` -> what the plan saves that way.
        compiled: what was stored.
        verification: of the compiled model.
        damage: kept fraction -> the model's answers under a plan of that rate, computed by its reference.
        answers: the compiled model's answers.
        measured: both models' sizes, memory and latency.
        seconds: how long the demo took.
    """

    made: PlanResult
    plan_file: Path
    savings: Mapping[str, Saving]
    compiled: CompileResult
    verification: Verification
    damage: Mapping[float, Answers]
    answers: Answers
    measured: bench.Comparison
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether the compiled model is equivalent to its reference and every shared tensor is stored once."""
        return self.verification.ok

    def to_json(self) -> dict[str, object]:
        """Everything as plain JSON types."""
        return {
            "format": "inarch.demo/1",
            "ok": self.ok,
            "plan": plan.made_data(self.made, self.plan_file),
            "savings": {way: asdict(saving) for way, saving in self.savings.items()},
            "compile": compile.as_data(self.compiled),
            "verify": self.verification.to_json(),
            "damage": {f"{keep:g}": asdict(answers) for keep, answers in self.damage.items()},
            "answers": asdict(self.answers),
            "bench": bench.as_data(self.measured),
            "seconds": self.seconds,
        }


def tower_of(site: Site) -> str:
    """The tower that a site of the joined model belongs to: the prefix of its parameters' names."""
    return next(iter(site.members.values())).param.partition(".")[0]
