"""``inarch learn``: train a model, learn what of it to share and to prune, and write a plan and the weights that hold to it."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Mapping
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inarch.learning.tasks.aims import OF_FILES
from inarch.structure.errors import InarchError
from inarch.tools import render
from inarch.tools.options import Debug, Json
from inarch.tools.settings import Config, Settings, named
from inarch.tools.tasks import Answers, Images, TokenizerFile
from inarch.tools.torch_extra import needs_learning

if TYPE_CHECKING:
    from inarch.learning.config import LearnConfig
    from inarch.learning.harden import Hardened
    from inarch.learning.tally import Tally


class TaskName(StrEnum):
    """What is trained on."""

    scenes = "scenes"
    sprites = "sprites"
    easy_vqa = "easy-vqa"
    refcoco = "refcoco"
    gqa = "gqa"
    coco = "coco"


class Sharing(StrEnum):
    """Who may share."""

    joint = "joint"
    cross = "cross"
    layer = "layer"
    none = "none"


def run(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="The run's folder.")] = Path("run"),
    model: Annotated[str | None, typer.Option("--model", "-m", help="A preset.", show_default="mdetr-tiny")] = None,
    task: Annotated[TaskName | None, typer.Option("--task", help="What is trained on.", show_default="scenes")] = None,
    level: Annotated[str | None, typer.Option("--level", help="easy, medium or hard.", show_default="medium")] = None,
    train: Annotated[
        Path | None,
        typer.Option("--train", metavar="FILE", help="For refcoco, gqa and coco: annotations to train on.", show_default=False),
    ] = None,
    held_out: Annotated[
        Path | None, typer.Option("--held-out", metavar="FILE", help="Those that are judged on.", show_default=False)
    ] = None,
    images: Images = None,
    tokenizer: TokenizerFile = None,
    answers: Answers = None,
    keep: Annotated[
        float | None, typer.Option("--keep", help="Fraction of the model's parameters to store.", show_default="0.62")
    ] = None,
    sharing: Annotated[Sharing | None, typer.Option("--sharing", help="Who may share.", show_default="joint")] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            metavar="FILE",
            help="Dense weights to start from: another run's, or a released checkpoint.",
            show_default="pre-training",
        ),
    ] = None,
    steps: Annotated[
        str, typer.Option("--steps", metavar="DENSE,LEARNING", help="Steps of pre-training and of learning.", show_default=False)
    ] = "",
    distil: Annotated[
        float | None,
        typer.Option(
            "--distil",
            min=0.0,
            help="Weight of a dense model's outputs in the loss; that one is trained for as many steps first.",
            show_default="0",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, show_default="0", help="Of everything drawn at random.")] = None,
    config: Config = None,
    settings: Settings = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    device: Annotated[str, typer.Option("--device", help="cpu, or cuda where there is one.")] = "cpu",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Learn a plan.

    The dense model is trained on grounding (where data have one kind of annotation: on that), then structure and weights in turn,
    then the weights are brought to the structure. Image size and rates that are not given are those that suit the model.
    Scenes are generated; refcoco, gqa and coco are files of your own.
    The folder holds config.json (every setting), dense.safetensors, plan.json, weights.safetensors, logs and pictures; a run that
    was stopped goes on from its last checkpoint with --resume.
    """
    needs_learning()
    from inarch.learning.config import LearnConfig, configure, is_full
    from inarch.learning.folders import read_run
    from inarch.learning.plots import plot_run, plot_structure
    from inarch.learning.runs import learn
    from inarch.learning.trainer import is_main

    files = {"train": train, "held_out": held_out, "folder": images, "tokenizer": tokenizer, "answers": answers}
    if task is not None and task.value in OF_FILES and config is None and not resume:
        _check_files(task.value, files, settings)
    if out.exists() and not out.is_dir():
        raise InarchError("this is a file, and a run is a folder", where=str(out), hint="give --out another name")
    changes = _changes(model, task, level, files, keep, sharing, weights, steps, distil, seed, settings)
    if resume:
        if changes or config is not None:
            raise InarchError("a run goes on with the settings that it began with", where="--resume", hint="leave the others out")
        chosen = read_run(out)
    else:
        chosen = configure(LearnConfig, changes, config)
        if is_full(chosen.model) and chosen.weights is None and not json:
            render.say(f"{chosen.model} is trained from nothing; --weights starts from a released checkpoint")
    with render.progress(quiet=json) as report:
        hardened = learn(chosen, out, device=device, progress=report)
    if not is_main():
        return
    plot_run(out, out / "curves.png")
    plot_structure(hardened.plan, out / "structure.png")
    _say(chosen, hardened, out, json=json)


def _say(chosen: LearnConfig, hardened: Hardened, out: Path, *, json: bool) -> None:
    from inarch.learning.tally import backbone_parameters, tally
    from inarch.learning.workshop import kinds_of

    total, found = hardened.table.parameters, tally(hardened.plan)
    inside, kept = backbone_parameters(hardened.plan, hardened.table)
    if json:
        document = {"out": str(out), "parameters": total, "planned": hardened.planned, "stored": hardened.stored}
        document |= {
            "units": asdict(found),
            "backbones": inside,
            "backbones_kept": kept,
            "config": jsonlib.loads(chosen.model_dump_json()),
        }
        render.emit_json({"format": "inarch.learn/1", **document})
        return
    render.say(
        f"{render.count(hardened.stored)} of {render.count(total)} parameters stored ({render.percent(hardened.stored, total)}), "
        f"of the two backbones alone {render.percent(kept, inside)}"
    )
    render.say(of_units(found))
    kind = kinds_of(chosen)[0]
    render.say(f"wrote {out / 'plan.json'} and {out / 'weights.safetensors'}; next: inarch tune {out} --task {kind}")


def of_units(found: Tally) -> str:
    """What became of units, in a sentence."""
    return (
        f"of {render.count(found.units)} units, {render.percent(found.pruned, found.units)} are pruned, "
        f"{render.percent(found.across, found.units)} shared across the backbones, "
        f"{render.percent(found.within, found.units)} between layers"
    )


def _check_files(task: str, files: Mapping[str, Path | None], settings: Settings) -> None:
    """Refuse a task on files of which one is not given, by the name of its option."""
    from inarch.learning.tasks.coco.kinds import missing

    given = {name for name, path in files.items() if path is not None}
    given |= {name.removeprefix("data.") for name in named(settings)}
    for name in files:
        if name not in given and (name != "answers" or task == "gqa"):
            option = "images" if name == "folder" else name.replace("_", "-")
            raise missing(option, task)


def _changes(
    model: str | None,
    task: TaskName | None,
    level: str | None,
    files: Mapping[str, Path | None],
    keep: float | None,
    sharing: Sharing | None,
    weights: Path | None,
    steps: str,
    distil: float | None,
    seed: int | None,
    settings: Settings,
) -> dict[str, Any]:
    """What the command line asks for, by the names of the configuration."""
    wanted = {
        "model": model,
        "data.task": task.value if task is not None else None,
        "data.level": level,
        **{f"data.{name}": str(path) if path is not None else None for name, path in files.items()},
        "structure.keep": keep,
        "structure.sharing": sharing.value if sharing is not None else None,
        "weights": str(weights) if weights is not None else None,
        "distil": distil,
        "seed": seed,
    }
    changes: dict[str, Any] = {name: value for name, value in wanted.items() if value is not None}
    if steps:
        try:
            dense, learning = (int(part) for part in steps.split(","))
        except ValueError:
            raise typer.BadParameter(f"{steps!r} is not two numbers", param_hint="--steps") from None
        changes |= {"dense.steps": dense, "learning.steps": learning}
    return changes | named(settings)
