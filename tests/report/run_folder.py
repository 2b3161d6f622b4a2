"""A run's folder with everything in it, made in seconds.

A small two-tower model is really compiled and verified; the bench's figures and two models' answers on scenes are made up.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from inarch.api import compile as compile_model
from inarch.api import discover, verify
from inarch.learning.tasks.scenes.data import ScenesConfig, ScenesData
from inarch.learning.tasks.scenes.task import ScenesTask
from inarch.learning.tasks.scenes.world import LEVELS
from inarch.runtime.accuracy import Evaluation, compare
from inarch.runtime.inputs import Case
from inarch.runtime.predictions import Predictions
from inarch.structure.plan import Plan, save_plan
from inarch.structure.resolve import AxisDecision, build_plan
from inarch.structure.sites import SiteTable
from inarch.tools import report_run
from inarch.tools.evaluate import Outcome
from inarch.tools.report_provenance import file_facts

from tests.zoo.towers import two_tower

KEPT = 32
"""Units that are kept of an FFN of the vision tower; half of these are the text tower's."""


def make_plan(table: SiteTable) -> Plan:
    """Vision FFNs are pruned and read half of the rest from the text FFN of their number; text attention 1 reads attention 0."""
    decisions: dict[str, dict[str, AxisDecision]] = {}
    for site in table.sites:
        layer = next(part for part in site.name.split(".") if part.isdigit())
        if site.kind == "ffn" and site.name.startswith("vision"):
            base = f"text.encoder.layer.{layer}.ffn"
            shared = np.arange(KEPT // 2)
            decisions[site.name] = {"hidden": AxisDecision(np.arange(KEPT), [(base, shared, shared)])}
        elif site.kind == "msa" and layer == "1" and site.name.startswith("text"):
            units = np.arange(site.axes["qk"].size)
            shared_axis = AxisDecision(None, [(site.name.replace("1", "0"), units, units)])
            decisions[site.name] = {"qk": shared_axis, "vo": shared_axis}
    return build_plan(table, decisions, "two-tower", {"by": "hand"})


def make_run(folder: Path) -> Path:
    """Fill a folder; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    zoo = two_tower(np.random.default_rng(0))
    model, plan, compiled = folder / "model.onnx", folder / "plan.json", folder / "compiled.onnx"
    ir.save(zoo.model, model)
    save_plan(make_plan(discover(model).table), plan)
    report_run.write_compiled(folder, compiled.name, compile_model(model, plan, compiled))
    cases = [Case("words and patches", zoo.inputs(np.random.default_rng(1), 0))]
    found = verify(model, plan, compiled, inputs=cases)
    report_run.write(folder, report_run.VERIFY, {"format": "inarch.verified/1", **found.to_json()})
    bench = bench_document()
    bench["compiled"]["size"]["file_bytes"] = file_facts(folder / "compiled.onnx")[0]
    report_run.write(folder, report_run.BENCH, bench)
    for kind in ("referring", "vqa"):
        task, first, second = judged(kind)
        report_run.write_accuracy(folder, task, Outcome(second, first, compare(first.evaluation, second.evaluation)))
        for name in (report_run.EVALUATION, report_run.EXAMPLES):
            (folder / name).rename(folder / name.replace(".json", f"-{kind}.json"))
    report_run.write_run(
        folder,
        title="Two small towers",
        about="Two small towers were joined.",
        model=model.name,
        commands=report_run.commands(model.name, model.name),
        files=(model.name, compiled.name),
        seconds={"compile": 1.2, "verify": 3.4},
        settings={"seed": 0},
    )
    return folder


def judged(kind: str) -> tuple[ScenesTask, Predictions, Predictions]:
    """A task on scenes, and what two models say: the first is right of 6 samples in 10, the second of other 6 in 10."""
    data = ScenesData.make(ScenesConfig(LEVELS["easy"], "test", 30, 4, 48, 0))
    texts = data.texts("referring" if kind == "referring" else "vqa")
    task = ScenesTask("referring" if kind == "referring" else "vqa", data, texts)
    rows = np.arange(task.samples)
    found = []
    for turn in (0, 1):
        right = (rows + turn) % 10 < 6
        if kind == "referring":
            targets = texts.targets.reshape(-1)
            boxes = data.scenes.boxes[rows // 4, np.where(right, targets, (targets + 1) % data.scenes.count[rows // 4])]
            said: dict[str, Any] = {"boxes": np.repeat(boxes[:, None], 10, 1), "margin": np.ones(len(rows))}
        else:
            answers = texts.answers.reshape(-1)
            said = {"answer": np.where(right, answers, (answers + 1) % 4), "margin": np.ones(len(rows))}
        scores = task.score(rows, said)
        overall = {name: float(values.mean()) for name, values in scores.items()} | task.overall(said)
        found.append(Predictions(Evaluation(task.name, task.headline, said, scores, overall), {"seed": 0}))
    return task, found[0], found[1]


def bench_document(**more: Any) -> dict[str, Any]:
    """What a bench prints: the compiled model takes half of everything."""

    def model(scale: float) -> dict[str, Any]:
        foot = {"anonymous": int(8e6 * scale), "rss": int(20e6 * scale), "pss": int(9e6 * scale)}
        memory = {"before": foot, "loaded": foot, "ran": foot, "peak_anonymous": int(9e6 * scale), "peak_rss": int(21e6 * scale)}
        size = {"stored": int(1e5 * scale), "file_bytes": int(4e5 * scale)}
        return {"size": size, "memory": memory | {"model_anonymous": int(4e6 * scale), "model_device": None}}

    dense, small = {"median": 2.0, "p95": 2.5, "spread": 0.1}, {"median": 1.0, "p95": 1.25, "spread": 0.1}
    latency = [
        {"threads": threads, "pairs": 30, "dense": dense, "compiled": small, "ratio": 0.5, "low": 0.48, "high": 0.52, "case": "a"}
        for threads in (1, 2)
    ]
    return {
        "format": "inarch.bench/1",
        "inputs": "words and patches",
        "provider": "CPUExecutionProvider",
        "notes": ["weights are fp32"],
        "dense": model(1),
        "compiled": model(0.5),
        "latency": latency,
        **more,
    }


def rewrite(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file."""
    document = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(document | changes), encoding="utf-8")
