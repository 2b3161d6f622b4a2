"""Accuracy on held-out samples: what a task says of a model's outputs, and two models compared sample by sample.

A task is numpy only, so that a deployed model is judged without torch. Shapes: N samples of a task, n of them in one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from inarch.structure.errors import RuntimeFailure
from inarch.structure.units import Indices

Arrays = Mapping[str, npt.NDArray[Any]]
Model = Callable[[Arrays], Arrays]
"""From inputs by name to outputs by name: a session's ``run``, or a module's."""
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


BATCH = 256
"""Samples that are judged at once unless their size forbids it."""


class Task(Protocol):
    """Held-out samples, and what counts as right."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def samples(self) -> int:
        """N."""

    @property
    def headline(self) -> str:
        """The metric that stands for the task."""

    def feeds(self, rows: Indices) -> Arrays:
        """A model's inputs for these samples, each with n rows."""

    def predict(self, rows: Indices, outputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """What a model's outputs say of these samples: arrays with n rows, the same names and widths for every batch."""

    def score(self, rows: Indices, predictions: Arrays) -> dict[str, npt.NDArray[np.float64]]:
        """Metric -> how right each prediction is, [n], in [0, 1]."""

    def overall(self, predictions: Arrays) -> dict[str, float]:
        """Metrics that are no mean over samples (mAP), from the predictions of all N; often none."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A model on a task.

    Attributes:
        task: the task's name.
        headline: its main metric.
        predictions: arrays with N rows.
        scores: metric -> [N].
        overall: metric -> value: the mean of each score, and what the task computes from all predictions.
    """

    task: str
    headline: str
    predictions: Arrays
    scores: Mapping[str, npt.NDArray[np.float64]]
    overall: Mapping[str, float]

    @property
    def value(self) -> float:
        """The main metric."""
        return self.overall[self.headline]

    @property
    def metric(self) -> str:
        """The score that samples are compared by: the headline where it is one, else the first."""
        return self.headline if self.headline in self.scores else next(iter(self.scores))

    @property
    def compared(self) -> npt.NDArray[np.float64]:
        """That score, [N]."""
        return self.scores[self.metric]


def evaluate(
    model: Model, task: Task, *, batch: int = BATCH, limit: int | None = None, progress: Progress | None = None
) -> Evaluation:
    """Run a model over a task.

    Args:
        model: from inputs to outputs.
        task: the samples.
        batch: samples at a time.
        limit: only the first so many samples.
        progress: called after every batch.

    Raises:
        RuntimeFailure: there is no sample, or the model's outputs are not finite on some.
    """
    total = task.samples if limit is None else min(limit, task.samples)
    if total < 1:
        raise RuntimeFailure("there are no samples", where=task.name)
    predicted: list[dict[str, npt.NDArray[Any]]] = []
    scored: list[dict[str, npt.NDArray[np.float64]]] = []
    for start in range(0, total, batch):
        rows = np.arange(start, min(start + batch, total))
        outputs = model(task.feeds(rows))
        for name, values in outputs.items():
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise RuntimeFailure(f"output {name!r} is not finite on samples {start} to {rows[-1]}", where=task.name)
        predictions = task.predict(rows, outputs)
        predicted.append(predictions)
        scored.append(task.score(rows, predictions))
        if progress is not None:
            progress("evaluating", int(rows[-1]) + 1, total)
    predictions_of_all = {name: np.concatenate([part[name] for part in predicted]) for name in predicted[0]}
    scores = {name: np.concatenate([part[name] for part in scored]) for name in scored[0]}
    overall = {name: float(values.mean()) for name, values in scores.items()} | task.overall(predictions_of_all)
    return Evaluation(task.name, task.headline, predictions_of_all, scores, overall)


@dataclass(frozen=True)
class Paired:
    """A difference of two means over the same samples.

    Attributes:
        difference: second less first.
        low, high: its confidence interval.
        changed: samples on which the two differ.
        samples: how many there are.
    """

    difference: float
    low: float
    high: float
    changed: int
    samples: int


def paired(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64], *, confidence: float = 0.95) -> Paired:
    """Compare two models' scores [N] on the same samples: the mean difference with its normal confidence interval.

    Raises:
        ValueError: other shapes, or fewer than two samples.
    """
    if first.shape != second.shape or first.ndim != 1 or len(first) < 2:
        raise ValueError(f"scores of shapes {first.shape} and {second.shape} are no pairs")
    from scipy.stats import norm

    apart = second - first
    mean = float(apart.mean())
    half = float(norm.ppf(0.5 + confidence / 2)) * float(apart.std(ddof=1)) / len(apart) ** 0.5
    return Paired(mean, mean - half, mean + half, int((apart != 0).sum()), len(apart))


def paired_over_seeds(
    first: Sequence[npt.NDArray[np.float64]], second: Sequence[npt.NDArray[np.float64]], *, confidence: float = 0.95
) -> Paired:
    """Compare two methods over several seeds: run i of one against run i of the other, on the same samples.

    The interval covers both what varies from seed to seed and what varies from sample to sample: it is Student's over the seeds'
    mean differences, and never narrower than the normal one over all pairs.

    Raises:
        ValueError: no seeds, or as :func:`paired`.
    """
    if not first or len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} runs are no pairs")
    parts = [paired(a, b, confidence=confidence) for a, b in zip(first, second, strict=True)]
    pooled = paired(np.concatenate(list(first)), np.concatenate(list(second)), confidence=confidence)
    mean = float(np.mean([part.difference for part in parts]))
    half = (pooled.high - pooled.low) / 2
    if len(parts) > 1:
        from scipy.stats import t

        spread = float(np.std([part.difference for part in parts], ddof=1)) / len(parts) ** 0.5
        half = max(half, float(t.ppf(0.5 + confidence / 2, len(parts) - 1)) * spread)
    return Paired(mean, mean - half, mean + half, pooled.changed, pooled.samples)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two models on the same samples of a task.

    Attributes:
        first, second: the models' evaluations.
        metric: the score that samples are compared by (:attr:`Evaluation.metric`).
        metrics: every score -> its paired difference, second less first.
        better, worse: samples that the second does better or worse by ``metric``, in order.
    """

    first: Evaluation
    second: Evaluation
    metric: str
    metrics: Mapping[str, Paired]
    better: Indices
    worse: Indices

    @property
    def headline(self) -> Paired:
        """The difference by :attr:`metric`."""
        return self.metrics[self.metric]

    def disagreements(self, margin: float) -> Indices:
        """Samples on which the two differ by :attr:`metric`, though neither's choice was close.

        Args:
            margin: choices that were ahead of the second best by this or less were close. A task that does not say how far they
                were has no close ones.
        """
        clear = np.ones(len(self.first.scores[self.metric]), np.bool_)
        for side in (self.first, self.second):
            if "margin" in side.predictions:
                clear &= np.asarray(side.predictions["margin"]) > margin
        changed = self.first.scores[self.metric] != self.second.scores[self.metric]
        return np.flatnonzero(changed & clear)


def compare(first: Evaluation, second: Evaluation, *, confidence: float = 0.95) -> Comparison:
    """Compare two models that were judged on the same samples.

    Raises:
        RuntimeFailure: they were not, or on fewer than two.
    """
    counts = [len(next(iter(side.scores.values()))) for side in (first, second)]
    if first.task != second.task or set(first.scores) != set(second.scores):
        raise RuntimeFailure(f"these are predictions for {first.task} and for {second.task}", hint="compare models on one task")
    if counts[0] != counts[1]:
        raise RuntimeFailure(
            f"one model was judged on {counts[0]} samples, the other on {counts[1]}",
            where=first.task,
            hint=f"--limit {min(counts)} compares those that both have",
        )
    if counts[0] < 2:
        raise RuntimeFailure("one sample is too few to compare models by", where=first.task)
    metric = first.metric
    apart = second.scores[metric] - first.scores[metric]
    metrics = {name: paired(first.scores[name], second.scores[name], confidence=confidence) for name in first.scores}
    return Comparison(first, second, metric, metrics, np.flatnonzero(apart > 0), np.flatnonzero(apart < 0))


def first_samples(evaluation: Evaluation, count: int) -> Evaluation:
    """An evaluation's first so many samples: what is no mean over samples is left out, since it cannot be told from them."""
    scores = {name: values[:count] for name, values in evaluation.scores.items()}
    predictions = {name: values[:count] for name, values in evaluation.predictions.items()}
    overall = {name: float(values.mean()) for name, values in scores.items()}
    headline = evaluation.headline if evaluation.headline in scores else next(iter(scores))
    return Evaluation(evaluation.task, headline, predictions, scores, overall)
