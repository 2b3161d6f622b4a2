"""Judging a model on samples, and two models against each other: against plain formulas, scipy, and simulation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from inarch.runtime.accuracy import Arrays, Evaluation, compare, evaluate, first_samples, paired, paired_over_seeds
from inarch.structure.errors import RuntimeFailure
from inarch.structure.units import Indices

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Signs:
    """Whether a number is positive; the truth is a fixed random sign."""

    samples: int = 23
    name = "signs"
    headline = "accuracy"

    @property
    def numbers(self) -> Floats:
        return np.random.default_rng(0).normal(size=self.samples)

    @property
    def truth(self) -> npt.NDArray[np.bool_]:
        return np.random.default_rng(1).random(self.samples) < 0.5

    def feeds(self, rows: Indices) -> Arrays:
        return {"x": self.numbers[rows]}

    def predict(self, rows: Indices, outputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        return {"sign": outputs["y"] > 0, "row": rows}

    def score(self, rows: Indices, predictions: Arrays) -> dict[str, Floats]:
        return {"accuracy": (predictions["sign"] == self.truth[rows]).astype(np.float64)}

    def overall(self, predictions: Arrays) -> dict[str, float]:
        return {"positive": float(predictions["sign"].mean()), "seen": float(len(predictions["row"]))}


def double(feeds: Arrays) -> Mapping[str, Floats]:
    return {"y": 2 * feeds["x"]}


@pytest.mark.parametrize("batch", [1, 5, 23, 256])
def test_batches_change_nothing(batch: int) -> None:
    task, seen = Signs(), list[tuple[str, int, int]]()
    found = evaluate(double, task, batch=batch, progress=lambda *at: seen.append(at))
    right = (task.numbers > 0) == task.truth
    np.testing.assert_array_equal(found.scores["accuracy"], right.astype(np.float64))
    np.testing.assert_array_equal(found.predictions["row"], np.arange(23))
    assert found.value == pytest.approx(right.mean())
    assert found.overall == {"accuracy": found.value, "positive": (task.numbers > 0).mean(), "seen": 23}
    assert (found.task, found.headline) == ("signs", "accuracy")
    assert seen == [("evaluating", min(done, 23), 23) for done in range(batch, 23 + batch, batch)]


@pytest.mark.parametrize(("limit", "count"), [(1, 1), (7, 7), (23, 23), (99, 23)])
def test_only_the_first_samples(limit: int, count: int) -> None:
    found, whole = evaluate(double, Signs(), batch=4, limit=limit), evaluate(double, Signs())
    np.testing.assert_array_equal(found.scores["accuracy"], whole.scores["accuracy"][:count])
    assert found.overall["seen"] == count


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite_are_refused(wrong: float) -> None:
    def model(feeds: Arrays) -> Mapping[str, Floats]:
        return {"y": np.where(feeds["x"] == Signs().numbers[13], wrong, feeds["x"])}

    with pytest.raises(RuntimeFailure, match=r"output 'y' is not finite on samples 10 to 14"):
        evaluate(model, Signs(), batch=5)
    assert evaluate(model, Signs(), limit=13).overall["seen"] == 13


def test_integers_are_no_concern_of_that() -> None:
    assert evaluate(lambda feeds: {"y": (feeds["x"] > 0).astype(np.int64)}, Signs()).value == evaluate(double, Signs()).value


@pytest.mark.parametrize(("samples", "limit"), [(0, None), (23, 0)])
def test_no_samples_are_refused(samples: int, limit: int | None) -> None:
    with pytest.raises(RuntimeFailure, match="no samples"):
        evaluate(double, Signs(samples), limit=limit)


def rights(seed: int, count: int = 400, part: float = 0.6) -> Floats:
    return (np.random.default_rng(seed).random(count) < part).astype(np.float64)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_paired_is_the_normal_interval_of_the_mean_difference(confidence: float) -> None:
    first, second = rights(0), rights(1, part=0.7)
    found = paired(first, second, confidence=confidence)
    apart = second - first
    low, high = stats.norm.interval(confidence, loc=apart.mean(), scale=stats.sem(apart))
    assert (found.difference, found.low, found.high) == pytest.approx((apart.mean(), low, high))
    assert (found.changed, found.samples) == (int((first != second).sum()), 400)
    back = paired(second, first, confidence=confidence)
    assert (back.difference, back.low, back.high) == pytest.approx((-found.difference, -found.high, -found.low))


def test_equal_models_do_not_differ() -> None:
    found = paired(rights(0), rights(0))
    assert (found.difference, found.low, found.high, found.changed) == (0, 0, 0, 0)


@pytest.mark.parametrize("shapes", [((3,), (4,)), ((1,), (1,)), ((2, 2), (2, 2)), ((0,), (0,))])
def test_what_is_no_pair(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="no pairs"):
        paired(*(np.zeros(shape) for shape in shapes))
    with pytest.raises(ValueError, match="no pairs"):
        paired_over_seeds([np.zeros(5)], [])
    with pytest.raises(ValueError, match="no pairs"):
        paired_over_seeds([], [])


def test_one_seed_is_one_pair() -> None:
    assert paired_over_seeds([rights(0)], [rights(1)]) == paired(rights(0), rights(1))


def test_over_seeds_it_is_students_interval_or_the_pooled_one() -> None:
    steady = [rights(seed) for seed in range(4)], [rights(seed + 9) for seed in range(4)]
    # One seed turns out very differently: then it is the seeds that matter.
    shaky = [rights(seed, part=0.2 + 0.2 * seed) for seed in range(4)], [rights(seed + 9) for seed in range(4)]
    wider = []
    for first, second in (steady, shaky):
        found = paired_over_seeds(first, second)
        means = [float((b - a).mean()) for a, b in zip(first, second, strict=True)]
        low, high = stats.t.interval(0.95, 3, loc=np.mean(means), scale=stats.sem(means))
        pooled = paired(np.concatenate(first), np.concatenate(second))
        assert found.difference == pytest.approx(np.mean(means)) == pytest.approx(pooled.difference)
        assert found.high - found.low == pytest.approx(max(high - low, pooled.high - pooled.low))
        assert (found.changed, found.samples) == (pooled.changed, 1600)
        wider.append(high - low > pooled.high - pooled.low)
    assert wider[1]


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_more_seeds_never_make_it_narrower_than_all_pairs(seeds: int) -> None:
    for case in range(40):
        first, second = ([rights(100 * case + 10 * k + s, 50) for s in range(seeds)] for k in range(2))
        found, pooled = paired_over_seeds(first, second), paired(np.concatenate(first), np.concatenate(second))
        assert found.high - found.low >= pooled.high - pooled.low - 1e-12


@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_cover_the_true_difference(seeds: int) -> None:
    rng, covered, rounds = np.random.default_rng(0), 0, 400
    for _ in range(rounds):
        # A seed makes both methods better or worse than they are on average; samples vary beside that.
        luck = rng.normal(0, 0.03 if seeds > 1 else 0, (2, seeds))
        first = [(rng.random(300) < 0.5 + luck[0, s]).astype(np.float64) for s in range(seeds)]
        second = [(rng.random(300) < 0.6 + luck[1, s]).astype(np.float64) for s in range(seeds)]
        found = paired_over_seeds(first, second)
        covered += found.low <= 0.1 <= found.high
    # 95 % of 400, less three standard deviations.
    assert covered / rounds > 0.917


def judged(
    *rights: float, margins: tuple[float, ...] | None = None, task: str = "task", headline: str = "accuracy"
) -> Evaluation:
    scores = {"other": np.zeros(len(rights)), "accuracy": np.asarray(rights, np.float64)}
    predictions = {} if margins is None else {"margin": np.asarray(margins)}
    overall = {"accuracy": float(np.mean(rights)), "other": 0.0, "mAP": 0.25}
    return Evaluation(task, headline, predictions, scores, overall)


def test_two_models_are_compared_sample_by_sample() -> None:
    first, second = judged(1, 0, 1, 0, 1, 1), judged(1, 1, 0, 0, 0, 1)
    found = compare(first, second)
    assert (found.metric, found.better.tolist(), found.worse.tolist()) == ("accuracy", [1], [2, 4])
    assert found.headline == paired(first.scores["accuracy"], second.scores["accuracy"])
    assert found.headline.difference == pytest.approx(-1 / 6)
    assert found.headline.changed == 3
    assert found.metrics["other"].changed == 0
    back = compare(second, first)
    assert (back.better.tolist(), back.worse.tolist()) == ([2, 4], [1])


def test_a_headline_that_is_no_mean_is_not_what_samples_are_compared_by() -> None:
    found = compare(judged(1, 0, headline="mAP"), judged(0, 0, headline="mAP"))
    assert (found.metric, found.worse.tolist()) == ("other", [])


def test_disagreements_are_clear_ones() -> None:
    first = judged(1, 0, 1, 1, margins=(0.5, 0.5, 0.5, 0.5))
    second = judged(0, 1, 0, 1, margins=(0.2, 0.1, 0.3, 0.0))
    found = compare(first, second)
    assert found.disagreements(0.0).tolist() == [0, 1, 2]
    assert found.disagreements(0.1).tolist() == [0, 2]
    assert found.disagreements(0.25).tolist() == [2]
    assert found.disagreements(0.5).tolist() == []
    # A choice that was close in either model is close; without margins none is.
    assert compare(second, first).disagreements(0.1).tolist() == [0, 2]
    assert compare(judged(1, 0), judged(0, 0)).disagreements(9.0).tolist() == [0]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (judged(1, 0, task="another"), "for task and for another"),
        (judged(1, 0, 1), "on 2 samples, the other on 3"),
        (Evaluation("task", "accuracy", {}, {"accuracy": np.ones(2)}, {"accuracy": 1.0}), "for task and for task"),
    ],
)
def test_what_cannot_be_compared(second: Evaluation, message: str) -> None:
    with pytest.raises(RuntimeFailure, match=message):
        compare(judged(1, 0), second)


def test_one_sample_is_too_few() -> None:
    with pytest.raises(RuntimeFailure, match="too few"):
        compare(judged(1), judged(0))


def test_the_first_samples_are_those_of_a_shorter_run() -> None:
    whole, short = evaluate(double, Signs()), evaluate(double, Signs(), limit=9)
    cut = first_samples(whole, 9)
    np.testing.assert_array_equal(cut.scores["accuracy"], short.scores["accuracy"])
    np.testing.assert_array_equal(cut.predictions["row"], short.predictions["row"])
    assert cut.overall == {"accuracy": short.value}
    # What is computed from all samples is not known of some.
    assert first_samples(judged(1, 0, 0, headline="mAP"), 2).headline == "other"
