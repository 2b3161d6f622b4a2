"""Where a model really runs: nodes that each provider ran, counted from ONNX Runtime's own profile.

A provider that a session lists may run nothing: ORT gives what it cannot run to the CPU, without a word. Of what is measured on
such a session nothing may be reported under the provider's name.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inarch.runtime.providers import CPU, short_name
from inarch.runtime.session import Array, ModelLike, Session, SessionOptions
from inarch.structure.errors import RuntimeFailure

_HEAVY = ("MatMul", "Gemm", "Conv", "Attention", "Einsum")
"""Operators whose names end so do nearly all of a transformer's work: FusedMatMul, GroupQueryAttention, FusedConv ..."""


@dataclass(frozen=True)
class Placement:
    """What ran where, in one run of a model.

    Attributes:
        provider: the one that was asked for.
        runs: provider -> operator -> node runs.
    """

    provider: str
    runs: Mapping[str, Mapping[str, int]]

    @property
    def counts(self) -> dict[str, int]:
        """Provider -> node runs, the wanted one first."""
        names = sorted(self.runs, key=lambda name: (name != self.provider, name))
        return {name: sum(self.runs[name].values()) for name in names}

    @property
    def heavy(self) -> int:
        """Runs of operators that do most of the work, wherever; a subgraph that a provider compiled into one node is one."""
        return sum(count for ops in self.runs.values() for op, count in ops.items() if _is_heavy(op))

    @property
    def strayed(self) -> dict[str, int]:
        """Operator -> runs of heavy operators that other providers ran."""
        found: Counter[str] = Counter()
        for name, ops in self.runs.items():
            if name != self.provider:
                found.update({op: count for op, count in ops.items() if _is_heavy(op)})
        return dict(sorted(found.items()))

    @property
    def warning(self) -> str:
        """What share of the work ran elsewhere; empty where none did."""
        strayed = self.strayed
        if not strayed:
            return ""
        total = sum(strayed.values())
        ops = ", ".join(f"{op} {count}" for op, count in strayed.items())
        share = f"{total} of {self.heavy} heavy operators ({total / self.heavy:.0%})"
        return f"{share} did not run on {short_name(self.provider)}: {ops}"

    @property
    def summary(self) -> str:
        """``1334 of 1396 node runs on webgpu, 62 on cpu``."""
        counts = self.counts
        first, *others = (f"{count} on {short_name(name)}" for name, count in counts.items())
        mine, _, where = first.partition(" ")
        return ", ".join([f"{mine} of {sum(counts.values())} node runs {where}", *others])

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        runs = {name: dict(sorted(ops.items(), key=lambda item: (-item[1], item[0]))) for name, ops in self.runs.items()}
        return {"provider": self.provider, "counts": self.counts, "runs": runs, "warning": self.warning}


def is_subgraph(operator: str) -> bool:
    """Whether a provider made this of many nodes: an operator's name is one word, such a one has a number or a name behind it."""
    return "_" in operator


def _is_heavy(operator: str) -> bool:
    return operator.endswith(_HEAVY) or is_subgraph(operator)


def measure_placement(
    model: ModelLike, feeds: Mapping[str, Array], provider: str = CPU, *, options: SessionOptions | None = None
) -> Placement:
    """Run a model once under ORT's profiler, in a session of its own.

    Args:
        model: the model.
        feeds: inputs that it accepts.
        provider: ORT's name of the provider that it is to run on.
        options: further options; their providers and profile are not looked at.

    Raises:
        RuntimeFailure: ORT refuses the model or the inputs, or the provider ran none of its nodes.
    """
    given = options or SessionOptions()
    with tempfile.TemporaryDirectory(prefix="inarch-") as folder:
        profiled = SessionOptions(
            given.optimisation, (provider,), given.threads, exact=given.exact, profile=Path(folder) / "profile"
        )
        with Session(model, profiled) as session:
            session.run(feeds)
            runs: dict[str, Counter[str]] = {}
            for about in nodes_run(session):
                runs.setdefault(about["provider"], Counter())[about.get("op_name", "")] += 1
    return require(Placement(provider, runs))


def nodes_run(session: Session) -> Iterator[Mapping[str, Any]]:
    """What a session's profile says of each node that ran: ``provider``, ``op_name``, shapes of what it read and made."""
    for event in json.loads(session.end_profile().read_text(encoding="utf-8")):
        about = event.get("args") or {}
        if event.get("cat") == "Node" and "provider" in about and event["name"].endswith("_kernel_time"):
            yield about


def require(placement: Placement) -> Placement:
    """The placement, where the wanted provider ran something.

    Raises:
        RuntimeFailure: it ran nothing.
    """
    if not placement.runs:
        raise RuntimeFailure("ONNX Runtime's profile names no node, so nothing says where the model ran")
    if not placement.counts.get(placement.provider):
        others = ", ".join(f"{count} on {short_name(name)}" for name, count in placement.counts.items())
        raise RuntimeFailure(
            f"{placement.provider} started and ran none of the model's nodes: {others}",
            hint="nothing is reported under the name of a provider that did not run the model",
        )
    return placement
