"""``inarch tune``: fine-tune a learned model on a task, structured by its plan; judge it; export it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from inarch.tools import render
from inarch.tools.options import Debug, Json, Seed
from inarch.tools.torch_extra import needs_learning


class Kind(StrEnum):
    """What is tuned for."""

    grounding = "grounding"
    referring = "referring"
    vqa = "vqa"
    detection = "detection"


def run(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A folder of inarch learn.", show_default=False)],
    task: Annotated[
        Kind | None,
        typer.Option(
            "--task",
            help="What for; easy-vqa has vqa alone, which is an MDETR's, as detection (scenes) is a GLIP's.",
            show_default="referring, or vqa",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="Where it goes.", show_default="RUN/TASK")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1)] = 2000,
    rate: Annotated[float, typer.Option("--rate", help="Learning rate.")] = 5e-4,
    distil: Annotated[
        float, typer.Option("--distil", min=0.0, help="Weight of a tuned dense model's outputs in the loss.")
    ] = 0.0,
    teacher: Annotated[
        Path | None,
        typer.Option("--teacher", metavar="FOLDER", help="What --dense made, to distil from.", show_default="RUN/TASK-dense"),
    ] = None,
    dense: Annotated[bool, typer.Option("--dense", help="Tune the dense model instead, to compare with.")] = False,
    precision: Annotated[str, typer.Option("--precision", help="no, bf16 or fp16.")] = "no",
    device: Annotated[str, typer.Option("--device", help="cpu, or cuda where there is one.")] = "cpu",
    seed: Seed = 0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Fine-tune a learned model.

    What is shared is one parameter, what is pruned is none. The folder gets weights.safetensors (in the dense layout, holding to
    the plan), model.onnx (to be compiled with the run's plan), evaluation.json and logs. A run that was stopped goes on. The
    model is judged on every held-out split: what is like training, and what training does not have.
    """
    needs_learning()
    from inarch.compiler.writer import write_model
    from inarch.learning.config import TuneConfig, validated
    from inarch.learning.runs import dense_folder, export_tuned, kinds_of, read_run, summary, tune
    from inarch.learning.trainer import is_main

    kind = task.value if task is not None else kinds_of(read_run(folder))[0]
    where = out or (dense_folder(folder, kind) if dense else folder / kind)
    values = {
        "kind": kind,
        "optimisation": {"steps": steps, "rate": rate, "warmup": min(100, steps // 10)},
        "distil": distil,
        "teacher": None if teacher is None else str(teacher),
        "precision": precision,
        "seed": seed,
    }
    config = validated(TuneConfig, values, "inarch tune")
    with render.progress(quiet=json) as report:
        judged = tune(folder, config, where, dense=dense, device=device, progress=report)
        if not is_main():
            return
        report("exporting with torch", 0, 1)
        model = where / "model.onnx"
        write_model(export_tuned(folder, where), model)
        report("exporting with torch", 1, 1)
    if json:
        render.emit_json({"format": "inarch.tune/1", "model": str(model), **summary(judged)})
        return
    shown = render.table("metric", *((split, "right") for split in judged))
    for name in dict.fromkeys(name for found in judged.values() for name in found.overall):
        render.add_row(shown, name, *(_percent(found.overall.get(name)) for found in judged.values()))
    render.show(shown)
    render.say(f"wrote {model}; next: inarch compile {model} {folder / 'plan.json'} -o compiled.onnx")


def _percent(value: float | None) -> str:
    """A metric; a split need not have every one."""
    return "-" if value is None else f"{100 * value:.2f} %"
