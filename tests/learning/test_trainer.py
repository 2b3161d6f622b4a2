"""The training loop: what a killed run leaves, and that it goes on bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from inarch.learning import trainer
from inarch.learning.config import Optimisation
from inarch.learning.phases import LearnPhase
from inarch.learning.trainer import CHECKPOINT, LOG, Phase, rate_at, read_log, run
from inarch.learning.workshop import Workshop
from inarch.structure.errors import InarchError

from tests.learning import tiny

Make = Callable[[Workshop], Phase]


def dense(shop: Workshop) -> Phase:
    return tiny.weights(shop, steps=13, interval=4, average=0.9)


def learned(shop: Workshop) -> Phase:
    """Frozen at step 6, arrived at step 10."""
    return tiny.learning(shop, steps=14, average=0.9, keep=0.6, freeze=0.4, arrive=0.7, alignment=0.1, pull=0.05)


def filled(shop: Workshop) -> Phase:
    """First gathered, then its free slots filled."""
    return tiny.learning(shop, steps=14, gather=0.2, freeze=0.5, fill="all")


class Killed(Exception):
    pass


def kill_at(step: int) -> Callable[[str, int, int], None]:
    def progress(_: str, done: int, __: int) -> None:
        if done == step:
            raise Killed

    return progress


@pytest.fixture(scope="module", params=[dense, learned, filled], ids=["weights", "learning", "filled"])
def whole(request: pytest.FixtureRequest, shop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> tuple[Make, Phase, Path]:
    """How the phase is made, an uninterrupted run of it, and its folder."""
    make: Make = request.param
    phase, folder = make(shop), tmp_path_factory.mktemp("whole")
    assert run(phase, folder)
    return make, phase, folder


def check_equal(phase: Phase, folder: Path, expected: Phase, there: Path) -> None:
    assert tiny.differing(phase.state(), expected.state()) == []
    assert (folder / LOG).read_text() == (there / LOG).read_text()
    if isinstance(phase, LearnPhase) and isinstance(expected, LearnPhase):
        assert phase.harden().plan == expected.harden().plan


@pytest.mark.parametrize("stop", [1, 3, 5, 8, 12])
def test_a_stopped_run_goes_on_bit_for_bit(whole: tuple[Make, Phase, Path], shop: Workshop, tmp_path: Path, stop: int) -> None:
    make, expected, there = whole
    assert not run(make(shop), tmp_path, stop=stop)
    phase = make(shop)
    assert run(phase, tmp_path)
    check_equal(phase, tmp_path, expected, there)


@pytest.mark.parametrize("killed", [2, 5, 11])
def test_a_killed_run_goes_on_from_its_last_checkpoint(
    whole: tuple[Make, Phase, Path], shop: Workshop, tmp_path: Path, killed: int
) -> None:
    make, expected, there = whole
    with pytest.raises(Killed):
        run(make(shop), tmp_path, progress=kill_at(killed))
    (tmp_path / CHECKPOINT).with_suffix(".part").write_bytes(b"half a checkpoint")
    phase, seen = make(shop), []
    assert run(phase, tmp_path, progress=lambda _, done, __: seen.append(done))
    assert seen[0] == killed - killed % phase.settings.interval + 1
    check_equal(phase, tmp_path, expected, there)


def test_a_complete_run_is_left_as_it_is(whole: tuple[Make, Phase, Path], shop: Workshop) -> None:
    make, expected, there = whole
    before = (there / LOG).read_bytes()
    phase = make(shop)
    assert run(phase, there, progress=kill_at(1))
    assert (there / LOG).read_bytes() == before
    assert tiny.differing(phase.state(), expected.state()) == []


class Counting:
    """A phase whose state is a number."""

    def __init__(self, name: str = "counting", wrong: int | None = None, **settings: Any) -> None:
        self.name, self.wrong, self.value = name, wrong, 0
        self.settings = Optimisation.model_validate({"steps": 25, "interval": 10, **settings})

    def step(self, number: int) -> dict[str, float]:
        self.value += number
        return {"loss": math.nan if number == self.wrong else float(number), "even": 1.0 - number % 2}

    def state(self) -> dict[str, Any]:
        return {"value": self.value}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.value = state["value"]


def test_a_loss_that_is_not_finite_is_refused_and_the_checkpoint_kept(tmp_path: Path) -> None:
    with pytest.raises(InarchError, match="loss is not finite at step 13"):
        run(Counting(wrong=13), tmp_path)
    saved = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert (saved["step"], saved["state"]) == (10, {"value": 45})
    again = Counting()
    assert run(again, tmp_path)
    assert again.value == sum(range(25))


def test_weights_that_are_not_finite_are_refused(shop: Workshop, tmp_path: Path) -> None:
    phase = tiny.weights(shop)
    run(phase, tmp_path, stop=2)
    before = (tmp_path / CHECKPOINT).read_bytes()
    phase = tiny.weights(shop, rate=1e30)
    with pytest.raises(InarchError, match="is not finite"):
        run(phase, tmp_path)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_a_hypernetwork_that_is_not_finite_is_refused_before_it_is_kept(shop: Workshop, tmp_path: Path) -> None:
    phase = tiny.learning(shop, freeze=0.9, arrive=1.0)
    seen: list[int] = []

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        seen.append(len(seen))
        return gradient * (math.nan if len(seen) == 3 else 1)  # steps 1, 3 and 5 are the hypernetwork's; 3 and 6 are kept

    spoiled: Any = next(phase.hypernetwork.parameters())
    spoiled.register_hook(spoil)
    with pytest.raises(InarchError, match="structure_gradient is not finite at step 5"):
        run(phase, tmp_path)
    saved = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert saved["step"] == 3
    assert all(value.isfinite().all() for value in saved["state"]["hypernetwork"].values())


def test_another_phases_checkpoint_is_refused(tmp_path: Path) -> None:
    run(Counting(), tmp_path, stop=3)
    with pytest.raises(InarchError, match="of 'counting', not 'other'"):
        run(Counting("other"), tmp_path)


def test_another_models_checkpoint_is_refused(shop: Workshop, tmp_path: Path) -> None:
    run(Counting("dense"), tmp_path, stop=3)
    with pytest.raises(InarchError, match="of another model"):
        run(tiny.weights(shop), tmp_path)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    run(Counting(), tmp_path, stop=3)
    path = tmp_path / CHECKPOINT
    whole = path.read_bytes()
    for damaged in (whole[:200], b"", b"garbage"):
        path.write_bytes(damaged)
        with pytest.raises(InarchError, match="no checkpoint") as caught:
            run(Counting(), tmp_path)
        assert "weights_only" not in str(caught.value), "torch's advice"


def test_the_log_holds_means_of_ten_steps(tmp_path: Path) -> None:
    assert run(Counting(), tmp_path)
    assert read_log(tmp_path / LOG) == {
        "loss": ([10, 20, 25], [4.5, 14.5, 22.0]),
        "even": ([10, 20, 25], [0.5, 0.5, 0.6]),
    }
    with (tmp_path / LOG).open("a") as file:
        file.write("30,lo")
    assert read_log(tmp_path / LOG)["loss"][0] == [10, 20, 25]
    with pytest.raises(InarchError, match="cannot be read"):
        read_log(tmp_path / "nosuch")


def test_processes_that_do_not_write_leave_nothing(tmp_path: Path) -> None:
    assert run(Counting(), tmp_path / "run", main=False)
    assert list((tmp_path / "run").iterdir()) == []


def test_rates_grow_and_fall() -> None:
    settings = Optimisation(steps=110, warmup=10, rate=0.5)
    rates = [rate_at(settings, number) for number in range(110)]
    assert rates[:10] == pytest.approx([0.05 * (n + 1) for n in range(10)])
    assert rates[10] == pytest.approx(0.5)
    assert rates[60] == pytest.approx(0.5 * (0.02 + 0.98 / 2))
    assert sorted(rates[10:], reverse=True) == rates[10:]
    assert rate_at(settings, 110) == pytest.approx(0.01)
    assert rate_at(Optimisation(steps=5, warmup=0, rate=1.0), 0) == 1.0
    short = Optimisation(steps=6, warmup=200, rate=1.0)
    assert [rate_at(short, number) for number in range(4)] == pytest.approx([1 / 3, 2 / 3, 1, 1])


def test_averaged_weights_are_what_is_kept(shop: Workshop, tmp_path: Path) -> None:
    decay, expected = 0.7, dict[str, torch.Tensor]()
    phase = tiny.weights(shop, steps=4, average=decay)
    module = phase._weights.raw
    expected = {name: value.detach().clone() for name, value in module.named_parameters()}
    for number in range(3):
        phase.step(number)
        young = min(decay, (1 + number) / (10 + number))
        for name, value in module.named_parameters():
            expected[name] = young * expected[name] + (1 - young) * value.detach()
    plain = tiny.weights(shop, steps=4)
    for number in range(4):
        plain.step(number)
    phase.step(3)
    last = dict(plain._weights.raw.named_parameters())
    for name, value in module.named_parameters():
        torch.testing.assert_close(value.detach(), 4 / 13 * expected[name] + 9 / 13 * last[name].detach())


@pytest.mark.parametrize(
    ("precision", "device", "message"),
    [("no", "tpu", "no device"), ("fp16", "cpu", "precision: fp16 needs a GPU"), ("no", "cuda", "no GPU")],
)
def test_devices_and_precisions(precision: str, device: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InarchError, match=message):
        trainer.accelerator(precision, device)
    # A process may have runs of several precisions, one after the other.
    assert [trainer.accelerator(name, "cpu").mixed_precision for name in ("bf16", "no")] == ["bf16", "no"]
