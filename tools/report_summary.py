"""The report's first screen: a paragraph and five figures that a manager reads."""

from __future__ import annotations

from collections.abc import Sequence

from inarch.tools import report_words as words
from inarch.tools.report_data import Accuracy, Figure, Proof, Speed
from inarch.tools.report_files import RunFolder

Totals = tuple[int, int] | None

SLOWER = 1.02
"""What takes more than this of the dense model's time or memory is shown as bad."""


def state_of(proofs: Sequence[Proof]) -> str:
    """``equivalent`` where all verifications say so, else ``different`` or ``unshared``; ``unverified`` where there is none."""
    if not proofs:
        return "unverified"
    if not all(proof.found.equivalence.ok for proof in proofs):
        return "different"
    return "equivalent" if all(proof.found.ok for proof in proofs) else "unshared"


def summary_of(
    run: RunFolder,
    totals: Totals,
    state: str,
    proofs: Sequence[Proof],
    accuracy: Sequence[Accuracy],
    speed: Sequence[Speed],
) -> tuple[str, ...]:
    """The paragraph, sentence by sentence; what was not measured is not spoken of."""
    name = run.plan.model.name
    there = run.compiled is not None or bool(proofs)
    first = (
        f"inarch pruned and shared the weights of {name}." if there else f"This is a plan for {name}; no compiled model is here."
    )
    sentences = [run.run.about or first]
    if totals is not None:
        dense, stored = totals
        holds = "The compiled model holds" if run.compiled else "The plan keeps"
        sentences.append(
            f"{holds} {words.count(stored)} of {words.count(dense)} parameters, {words.percent(1 - stored / dense)} fewer."
        )
    sentences.append(_proved(state, proofs))
    sentences += [_judged(item) for item in accuracy]
    if not accuracy:
        sentences += [found for proof in proofs[:1] if (found := _warned(proof))]
    if speed:
        sentences.append(_measured(speed[0]))
    return tuple(sentence for sentence in sentences if sentence)


def _proved(state: str, proofs: Sequence[Proof]) -> str:
    if state == "equivalent":
        return "On every input tried it computes what the plan asks for, to float rounding, and what is shared stays shared."
    if state == "unshared":
        return (
            "It computes what the plan asks for, but ONNX Runtime copies shared weights apart: memory falls less than it could."
        )
    if state == "unverified":
        return "Whether it computes what the plan asks for was not verified."
    first = next(proof.found.equivalence for proof in proofs if not proof.found.equivalence.ok)
    where = f", first at {first.first_site.site}" if first.first_site else ""
    return f"It does not compute what the plan asks for{where}: do not use it."


def _judged(item: Accuracy) -> str:
    metric = item.headline
    sentence = f"On {item.samples:,} held-out samples of {item.task}, {metric.name} is {words.percent(metric.scores[-1].value)}"
    if len(metric.scores) == 1:
        return f"{sentence}."
    sentence += f", {words.percent(metric.scores[0].value)} for the dense model"
    if metric.difference is None:
        return f"{sentence}."
    return f"{sentence}: {words.points(metric.difference)} points [{words.points(metric.low)}, {words.points(metric.high)}]."


def _warned(proof: Proof) -> str:
    loud = [output for output in proof.found.damage.outputs if output.loud]
    if not loud:
        return ""
    return "The plan was not trained for, and it changes what the model says: fine-tune the model under it before using it."


def _measured(speed: Speed) -> str:
    parts = []
    if speed.latency:
        first = speed.latency[0]
        parts.append(f"a run takes {first.change:.2f} of the dense model's time ({first.label.lower()})")
    less = 1 - speed.memory.change
    parts.append(f"loading it takes {words.percent(abs(less), 0)} {'less' if less >= 0 else 'more'} memory")
    return f"On the {speed.provider}, {' and '.join(parts)}."


def figures_of(
    totals: Totals, state: str, proofs: Sequence[Proof], accuracy: Sequence[Accuracy], speed: Sequence[Speed]
) -> tuple[Figure, ...]:
    """Smaller by, accuracy, equivalent, latency, memory."""
    return (_smaller(totals), _accuracy(accuracy), _equivalent(state, proofs), _latency(speed), _memory(speed))


def _smaller(totals: Totals) -> Figure:
    if totals is None:
        return Figure("fewer parameters", words.NONE, "not known without the dense model")
    dense, stored = totals
    return Figure("fewer parameters", words.percent(1 - stored / dense), f"{words.count(dense)} → {words.count(stored)}")


def _accuracy(accuracy: Sequence[Accuracy]) -> Figure:
    if not accuracy:
        return Figure("accuracy", words.NONE, "not measured")
    metric, task = accuracy[0].headline, accuracy[0].task
    if metric.difference is None:
        dense = f"dense {words.percent(metric.scores[0].value)}, " if len(metric.scores) > 1 else ""
        detail = f"{dense}{accuracy[0].samples:,} samples of {task}"
        return Figure(metric.name, words.percent(metric.scores[-1].value), detail)
    tone = "bad" if metric.high < 0 else "good" if metric.low > 0 else ""
    interval = f"[{words.points(metric.low)}, {words.points(metric.high)}] on {accuracy[0].samples:,} samples of {task}"
    return Figure(f"points of {metric.name}", words.points(metric.difference), interval, tone)


def _equivalent(state: str, proofs: Sequence[Proof]) -> Figure:
    label = "equivalent"
    if state == "unverified":
        return Figure(label, words.NONE, "not verified")
    if state == "different":
        return Figure(label, "No", "it does not compute the plan", "bad")
    worst = max((output.relative or 0.0 for proof in proofs for output in proof.found.equivalence.outputs), default=0.0)
    detail = f"largest difference {words.small(worst)} of an output"
    return Figure(label, "Yes", detail if state == "equivalent" else "but shared weights are copied apart", "good")


def _latency(speed: Sequence[Speed]) -> Figure:
    found = next((bars for item in speed for bars in item.latency), None)
    if found is None:
        return Figure("latency", words.NONE, "not measured")
    dense, compiled = (words.milliseconds(bar.value) for bar in (found.bars[0], found.bars[-1]))
    interval = found.bars[-1].ratio.partition(" ")[2]
    tone = "bad" if found.change > SLOWER else "good"
    return Figure(
        "of the latency", f"{found.change:.2f}{words.TIMES}", f"{interval}, {dense} → {compiled} ms, {found.label.lower()}", tone
    )


def _memory(speed: Sequence[Speed]) -> Figure:
    if not speed:
        return Figure("memory", words.NONE, "not measured")
    found = speed[0].memory
    dense, compiled = found.bars[0], found.bars[-1]
    tone = "bad" if found.change > SLOWER else "good"
    return Figure(found.label.lower().replace("gpu", "GPU"), compiled.ratio, f"{dense.text} → {compiled.text}", tone)
