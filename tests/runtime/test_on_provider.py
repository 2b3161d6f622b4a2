"""Verification on another provider than the CPU: where its tolerance comes from, and what it reports."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from inarch.compiler.reference import apply_by_values
from inarch.runtime import equivalence
from inarch.runtime import verify as room
from inarch.runtime.equivalence import compare
from inarch.runtime.inputs import Case
from inarch.runtime.placement import Placement
from inarch.runtime.session import Array, ModelLike, Session, SessionOptions
from inarch.runtime.verify import verify
from inarch.structure.discover import discover
from inarch.structure.errors import RuntimeFailure
from inarch.structure.plan import Plan
from inarch.structure.resolve import AxisDecision, build_plan, resolve

from tests.runtime.handmade import HIDDEN, encoder

GPU = "WebGpuExecutionProvider"
FEEDS = {"input_ids": np.array([[1, 2, 3]]), "attention_mask": np.ones((1, 3), np.int64)}


@dataclass
class Noisy:
    """The CPU under another provider's name, 2e-5 off where ORT optimises: more than fp32 explains."""

    seen: list[SessionOptions] = field(default_factory=list)

    def __call__(self, model: ModelLike, options: SessionOptions) -> NoisySession:
        self.seen.append(options)
        return NoisySession(Session(model, SessionOptions(options.optimisation)), 2e-5 if options.optimisation == "all" else 0.0)


@dataclass
class NoisySession:
    inner: Session
    off: float

    def run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        return {name: array * np.float32(1 + self.off) for name, array in self.inner.run(feeds).items()}

    def __enter__(self) -> NoisySession:
        return self

    def __exit__(self, *unused: object) -> None:
        self.inner.close()


def test_the_noise_is_that_of_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both models run on it at both levels, exactly, and how far the reference is from itself there decides."""
    model, case, noisy = encoder().model, Case("three words", FEEDS), Noisy()
    monkeypatch.setattr(equivalence, "Session", noisy)
    report = compare(model, model.clone(), [case], providers=(GPU,))
    assert {(options.providers, options.exact) for options in noisy.seen} == {((GPU,), True)}
    assert sorted(options.optimisation for options in noisy.seen) == ["all", "all", "off", "off"]
    assert report.ok
    for check in report.checks:
        assert check.noise == pytest.approx(2e-5 * check.scale, rel=0.1)
        assert check.tolerance == pytest.approx(2 * check.noise), "noisier than the cap: twice the noise is allowed"


@pytest.fixture
def built() -> tuple[ir.Model, Plan, ir.Model]:
    """A model, a plan, and what the plan asks for by values."""
    model = encoder().model
    found = discover(model)
    site = next(site.name for site in found.table.sites if site.kind == "ffn")
    plan = build_plan(found.table, {site: {"hidden": AxisDecision(keep=np.arange(HIDDEN - 2))}}, "encoder", {})
    return model, plan, apply_by_values(model, found.table, resolve(plan, found.table), found.uses)


def test_a_verification_says_where_the_model_ran(built: tuple[ir.Model, Plan, ir.Model], monkeypatch: pytest.MonkeyPatch) -> None:
    model, plan, compiled = built
    asked: list[str] = []

    def placed(model: ModelLike, feeds: dict[str, Array], provider: str) -> Placement:
        asked.append(provider)
        return Placement(GPU, {GPU: {"MatMul": 9}, "CPUExecutionProvider": {"MatMul": 1}})

    monkeypatch.setattr(room, "measure_placement", placed)
    assert verify(model, plan, compiled).placement is None
    assert not asked
    for name in ("Session", "compare", "measure_damage", "check_sharing"):
        monkeypatch.setattr(room, name, on_the_cpu(getattr(room, name)))
    result = verify(model, plan, compiled, providers=(GPU,))
    assert result.ok
    assert asked == [GPU]
    assert result.placement is not None
    document = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert document["placement"]["counts"] == {GPU: 9, "CPUExecutionProvider": 1}
    assert "1 of 10 heavy operators (10%) did not run on webgpu" in document["placement"]["warning"]


def on_the_cpu(function: Any) -> Callable[..., Any]:
    """The function with the CPU in another provider's place."""

    def called(*arguments: Any, **options: Any) -> Any:
        settled = [SessionOptions(item.optimisation) if isinstance(item, SessionOptions) else item for item in arguments]
        return function(*settled, **{name: value for name, value in options.items() if name != "providers"})

    return called


def test_a_verification_on_a_provider_that_ran_nothing_is_refused(
    built: tuple[ir.Model, Plan, ir.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(*arguments: object) -> Placement:
        raise RuntimeFailure("ran none of the model's nodes")

    monkeypatch.setattr(room, "measure_placement", nowhere)
    for name in ("Session", "compare", "measure_damage", "check_sharing"):
        monkeypatch.setattr(room, name, on_the_cpu(getattr(room, name)))
    with pytest.raises(RuntimeFailure, match="ran none"):
        verify(*built, providers=(GPU,))
