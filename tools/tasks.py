"""Tasks by name, for any deployed model: what the command line joins to :mod:`inarch.runtime.accuracy`. Nothing here needs torch.

=============================================================== ===========================================================
scenes/referring, scenes/grounding, scenes/vqa, scenes/detection generated scenes (vqa with an MDETR, detection with a GLIP)
sprites/referring, sprites/grounding, sprites/vqa                scenes of emoji, from packages that have to be there
easy-vqa/vqa                                                     the package easy-vqa
refcoco, gqa, coco                                               files in COCO's format, see :mod:`inarch.tools.tasks_coco`
=============================================================== ===========================================================

A run of ``inarch learn`` says itself which it has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from inarch.learning.tasks.aims import OF_FILES
from inarch.structure.errors import InarchError
from inarch.tools.subject import Subject, Wanted

if TYPE_CHECKING:
    from inarch.learning.tasks.aims import Aim
    from inarch.learning.tasks.scenes.language import Language
    from inarch.learning.tasks.scenes.texts import Texts
    from inarch.runtime.accuracy import Model
    from inarch.runtime.face import Face

__all__ = ["FILES", "NAMES", "WORLDS", "Subject", "Wanted", "check_options", "open_subject"]

WORLDS: Mapping[str, tuple[Aim, ...]] = {
    "scenes": ("referring", "grounding", "vqa", "detection"),
    "sprites": ("referring", "grounding", "vqa"),
    "easy-vqa": ("vqa",),
}
FILES = tuple(OF_FILES)
NAMES = (*(f"{world}/{kind}" for world, kinds in WORLDS.items() for kind in kinds), *FILES)

_DRAWN = {"level": "medium", "held_out": 2500, "judged": 4, "seed": 0}
_SIDES = {("scenes", "mdetr"): 48, ("scenes", "glip"): 64, ("sprites", "mdetr"): 64, ("sprites", "glip"): 64}
"""What ``inarch learn`` draws where it is not told otherwise."""

_OPTIONS = {
    "drawn": ("split", "level", "side", "seed"),
    "easy-vqa": ("split",),
    "refcoco": ("annotations", "images", "tokenizer", "short", "longest"),
    "gqa": ("annotations", "images", "tokenizer", "answers", "short", "longest"),
    "coco": ("annotations", "images", "tokenizer", "short", "longest"),
    "run": ("split",),
}

TaskName = Annotated[
    str | None,
    typer.Option("--task", metavar="TASK", help=f"One of {', '.join(NAMES)}; with --run the last part.", show_default=False),
]
RunFolder = Annotated[
    Path | None,
    typer.Option("--run", metavar="FOLDER", help="A folder of inarch learn: its own held-out data.", show_default="none"),
]
Split = Annotated[
    str | None, typer.Option("--split", help="test, unseen (scenes), style or concept (sprites).", show_default="test")
]
Level = Annotated[
    str | None, typer.Option("--level", help="How hard scenes and sprites are: easy, medium or hard.", show_default="medium")
]
Side = Annotated[
    int | None,
    typer.Option(
        "--side", min=16, max=8192, help="Pixels a side of scenes and sprites.", show_default="the model's, or 48 or 64"
    ),
]
DataSeed = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of scenes and sprites.", show_default="0")]
Annotations = Annotated[
    Path | None, typer.Option("--annotations", metavar="FILE", help="For refcoco, gqa and coco.", show_default=False)
]
Images = Annotated[Path | None, typer.Option("--images", metavar="FOLDER", help="The images of these.", show_default=False)]
TokenizerFile = Annotated[
    Path | None, typer.Option("--tokenizer", metavar="FILE", help="The model's tokenizer.json.", show_default=False)
]
Answers = Annotated[
    Path | None,
    typer.Option("--answers", metavar="FILE", help="For gqa: MDETR's gqa_answer2id_by_type.json.", show_default=False),
]
Short = Annotated[
    int | None, typer.Option("--short", min=1, max=8192, help="Pixels of an image's short side, for these.", show_default="800")
]
Longest = Annotated[int | None, typer.Option("--longest", min=1, max=8192, help="Most of its long side.", show_default="1333")]
Batch = Annotated[
    int | None, typer.Option("--batch", min=1, help="Samples at a time.", show_default="64; 2 for refcoco, gqa and coco")
]
Limit = Annotated[int | None, typer.Option("--limit", min=2, help="Only the first so many samples.", show_default="all")]


def open_subject(wanted: Wanted, face: Face, probe: Model) -> Subject:
    """The task that is asked for, as a model of this face is judged by it.

    Args:
        wanted: the command line's options.
        face: the model's inputs and outputs.
        probe: runs the model, with all outputs: a GLIP's says how many feature maps it has.

    Raises:
        InarchError: there is no such task, or an option that it needs is missing, or it has no use for one that is given.
        DataError: its data are not there; it says how to get them.
        RuntimeFailure: the model does not fit.
    """
    if wanted.run is not None:
        subject = _of_run(wanted.run, wanted, face, probe)
    elif wanted.task in FILES:
        from inarch.tools.tasks_coco import open_files

        check_options(wanted, wanted.task)
        subject = open_files(wanted, face)
    elif wanted.task in NAMES:
        world, _, kind = wanted.task.partition("/")
        check_options(wanted, "easy-vqa" if world == "easy-vqa" else "drawn")
        changes = {name: getattr(wanted, name) for name in ("level", "side", "seed") if getattr(wanted, name) is not None}
        subject = _generated(world, kind, wanted.split, changes, face, probe)
    elif wanted.task is None:
        hint = f"--run FOLDER, or --task with one of {', '.join(NAMES)}"
        raise InarchError("say what the model is judged by", where="--task", hint=hint)
    else:
        raise InarchError(f"there is no task {wanted.task!r}", where="--task", hint=f"there are {', '.join(NAMES)}")
    subject.check(face)
    return subject


def check_options(wanted: Wanted, kind: str) -> None:
    """Refuse options that a task has no use for.

    Raises:
        InarchError: one is given.
    """
    for name, value in vars(wanted).items():
        if value is not None and name not in ("task", "run", *_OPTIONS[kind]):
            where = "with --run" if kind == "run" else f"with --task {wanted.task}"
            raise InarchError(f"says nothing {where}", where=f"--{name}", hint=f"there {_are(_OPTIONS[kind])}")


def _are(names: Sequence[str]) -> str:
    return f"{'is' if len(names) == 1 else 'are'} {', '.join(f'--{name}' for name in names)}"


def _of_run(folder: Path, wanted: Wanted, face: Face, probe: Model) -> Subject:
    """A run's own data, read from its configuration alone."""
    from pydantic import TypeAdapter, ValidationError

    from inarch.learning.data_config import Data, DataSettings

    check_options(wanted, "run")
    path = folder / "config.json"
    try:
        document = json.loads(path.read_bytes())
        settings: DataSettings = TypeAdapter(Data).validate_python(dict(document["data"]))
    except OSError as error:
        hint = "inarch learn --out makes one"
        raise InarchError(f"there is no run here: {error.strerror}", where=str(path), hint=hint) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        # The task that tells pydantic which settings these are is no key of the file.
        place = ".".join(str(part) for part in ("data", *first["loc"][1:]))
        raise InarchError(first["msg"], where=f"{path}: {place}") from error
    except (ValueError, KeyError, TypeError) as error:
        hint = "give the folder of inarch learn, not one of inarch tune in it"
        raise InarchError("is not the configuration of a run", where=str(path), hint=hint) from error
    data, world = settings.model_dump(), settings.task
    kinds = WORLDS.get(world) or (OF_FILES[world],)
    kind = (wanted.task or kinds[0]).removeprefix(f"{world}/")
    if kind not in kinds:
        hint = f"there {'is' if len(kinds) == 1 else 'are'} {', '.join(kinds)}"
        raise InarchError(f"there is no {kind} on {world}", where="--task", hint=hint)
    return _of_files(data, wanted.split, face) if world in FILES else _generated(world, kind, wanted.split, data, face, probe)


def _of_files(data: Mapping[str, Any], split: str | None, face: Face) -> Subject:
    """What a run on files is judged by."""
    from inarch.tools.tasks_coco import open_files

    _known(split or "test", {"test": None}, "split", "--split")
    held_out, folder, tokenizer, answers = (
        Path(data[name]) if data.get(name) is not None else None for name in ("held_out", "folder", "tokenizer", "answers")
    )
    sizes = {name: data.get(name) for name in ("short", "longest")}
    files = Wanted(data["task"], annotations=held_out, images=folder, tokenizer=tokenizer, answers=answers, **sizes)
    # What an image is padded to depends on its batch.
    return replace(open_files(files, face), batch=int(data["images"]))


def _generated(world: str, kind: str, split: str | None, settings: Mapping[str, Any], face: Face, probe: Model) -> Subject:
    if world == "easy-vqa":
        return _easy_vqa(split or "test", settings.get("held_out"))
    aim = next(one for one in WORLDS[world] if one == kind)
    return _drawn(world, aim, split or "test", {**_DRAWN, **settings}, face, probe)


def _easy_vqa(split: str, images: int | None) -> Subject:
    from inarch.learning.tasks.easy_vqa import SPLITS, EasyVqa, EasyVqaTask

    found = next((one for one in SPLITS if one == split), None)
    if found is None:
        raise InarchError(f"easy-vqa has no split {split!r}", where="--split", hint=f"there are {', '.join(SPLITS)}")
    data = EasyVqa.load(found, images=images)
    samples = {"world": "easy-vqa", "split": split, "images": len(data.images)}
    return Subject(EasyVqaTask(data), ("answer",), samples, lambda row: data.questions[row], widths={"answer": len(data.classes)})


def _drawn(world: str, kind: Aim, split: str, settings: Mapping[str, Any], face: Face, probe: Model) -> Subject:
    from inarch.learning.tasks.glip_boxes import levels_of
    from inarch.learning.tasks.scenes.data import ScenesConfig, feeds
    from inarch.learning.tasks.sources import SOURCES

    source = SOURCES[world]
    family = "glip" if "centerness" in face.outputs else "mdetr"
    kinds = source.kinds(None if family == "mdetr" else 1)
    if kind not in kinds:
        raise InarchError(f"there is no {kind} with {family.upper()}", where="--task", hint=f"there are {', '.join(kinds)}")
    side = settings.get("side") or face.size("pixel_values", -1) or _SIDES[world, family]
    step = max(1, *face.multiples("pixel_values"))
    if side % step:
        hint = f"a multiple of {step}: pixels beyond one are not looked at"
        raise InarchError(f"images of {side} pixels are none that {face.name} takes", where="--side", hint=hint)
    known = {name: settings[name] for name in _DRAWN} | {"side": side}
    _known(known["level"], source.difficulties, "level", "--level")
    _known(split, source.parts, "split", "--split")
    count, judged, pixels, seed = (int(known[name]) for name in ("held_out", "judged", "side", "seed"))
    config = ScenesConfig(source.difficulties[known["level"]], source.parts[split], count, judged, pixels, seed)
    data = source.draw(split, config)
    texts = source.texts(data, kind)
    levels = None
    if family == "glip":
        said = probe({name: array for name, array in feeds(data, texts, np.arange(1)).items() if name in face.inputs})
        levels = levels_of(said["centerness"].shape[1], side, side)
    task, language = source.task(kind, split, data, texts, levels), source.language
    outputs = ("answer",) if kind == "vqa" else ("logits", "boxes") if levels is None else ("logits", "boxes", "centerness")
    widths = {"answer": len(language.answers)} if kind == "vqa" else {}
    # The last slot of an MDETR's is for what no token names.
    room = {"logits": texts.ids.shape[2] + 1} if kind == "grounding" and levels is None else {}
    samples = {"world": world, "kind": kind, "split": split, **known}
    return Subject(task, outputs, samples, lambda row: _said(language, texts, row), widths=widths, room=room)


def _said(language: Language, texts: Texts, row: int) -> str:
    return language.decode(texts.ids.reshape(-1, texts.ids.shape[-1])[row].tolist())


def _known(name: str, there: Mapping[str, Any], what: str, option: str) -> None:
    if name not in there:
        raise InarchError(f"there is no {what} {name!r}", where=option, hint=f"there are {', '.join(there)}")
