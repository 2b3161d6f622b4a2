"""``inarch tune``: fine-tune a learned model on a task, structured by its plan; judge it; export it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from inarch.tools import render
from inarch.tools.options import Debug, Json
from inarch.tools.settings import Config, Settings, named
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
            help="What for, of what the run's data have; vqa is an MDETR's, detection a GLIP's.",
            show_default="the first",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="Where it goes.", show_default="RUN/TASK")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, show_default="2000")] = None,
    rate: Annotated[
        float | None,
        typer.Option("--rate", help="Learning rate.", show_default="5e-4; small MDETRs on drawn images 2e-3, full size 5e-5"),
    ] = None,
    distil: Annotated[
        float | None,
        typer.Option("--distil", min=0.0, help="Weight of a tuned dense model's outputs in the loss.", show_default="0"),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option("--teacher", metavar="FOLDER", help="What --dense made, to distil from.", show_default="RUN/TASK-dense"),
    ] = None,
    dense: Annotated[bool, typer.Option("--dense", help="Tune the dense model instead, to compare with.")] = False,
    precision: Annotated[str | None, typer.Option("--precision", help="no, bf16 or fp16.", show_default="no")] = None,
    device: Annotated[str, typer.Option("--device", help="cpu, or cuda where there is one.")] = "cpu",
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of the batches.", show_default="0")] = None,
    config: Config = None,
    settings: Settings = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Fine-tune a learned model.

    What is shared is one parameter, what is pruned is none. The folder gets weights.safetensors (in the dense layout, holding to
    the plan), model.onnx (to be compiled with the run's plan), evaluation.json and logs. A run that was stopped goes on. The
    model is judged on every held-out split: what is like training, and what training does not have. Every setting is in
    config.json there, which --config reads.
    """
    needs_learning()
    from inarch.compiler.writer import write_model
    from inarch.learning.config import TuneConfig, configure, tuning_defaults
    from inarch.learning.folders import dense_folder, read_run
    from inarch.learning.runs import export_tuned, summary, tune
    from inarch.learning.trainer import is_main
    from inarch.learning.workshop import kinds_of

    wanted = {
        "kind": task.value if task is not None else None,
        "optimisation.steps": steps,
        "optimisation.rate": rate,
        "dense": dense or None,
        "distil": distil,
        "teacher": None if teacher is None else str(teacher),
        "precision": precision,
        "seed": seed,
    }
    changes = {name: value for name, value in wanted.items() if value is not None} | named(settings)
    learned = read_run(folder)
    defaults = {"kind": kinds_of(learned)[0], **tuning_defaults(learned.model, learned.data.task)}
    chosen = configure(TuneConfig, changes, config, defaults)
    where = out or (dense_folder(folder, chosen.kind) if chosen.dense else folder / chosen.kind)
    with render.progress(quiet=json) as report:
        judged = tune(folder, chosen, where, device=device, progress=report)
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
