"""Folders of runs and tunings: what lies in them, and to whom they belong."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from inarch.learning.config import LearnConfig, read_config
from inarch.structure.errors import InarchError
from inarch.structure.files import whole

CONFIG, PLAN, WEIGHTS, DENSE = "config.json", "plan.json", "weights.safetensors", "dense.safetensors"
EVALUATION, TEACHER, DIGESTS, SOURCE = "evaluation.json", "teacher.safetensors", "data.json", "source.json"
SHALLOW = "shallow.safetensors"


def dense_folder(run_folder: Path, kind: str) -> Path:
    """Where a tuning of a run's dense model goes unless another place is named."""
    return run_folder / f"{kind}-dense"


def read_run(folder: Path) -> LearnConfig:
    """The configuration of a run.

    Raises:
        InarchError: there is none, or what is there is what ``inarch tune`` made.
    """
    path = folder / CONFIG
    if not path.exists():
        raise InarchError("there is no run here", where=str(folder), hint="inarch learn --out makes one")
    if (folder / EVALUATION).exists() and not (folder / DENSE).exists():
        raise InarchError("this is what inarch tune made of a run", where=str(folder), hint="name the run's own folder")
    return read_config(path)


def refuse_another(document: Mapping[str, Any], folder: Path, hint: str) -> None:
    """Refuse a folder that holds something with another configuration."""
    path = folder / CONFIG
    try:
        there = json.loads(path.read_text(encoding="utf-8")) if path.exists() else document
    except (OSError, ValueError) as error:
        raise InarchError(f"cannot be read: {error}", where=str(path)) from None
    if isinstance(there, dict):  # paths were once kept as they were typed
        there |= {name: os.path.abspath(there[name]) for name in ("weights", "teacher") if isinstance(there.get(name), str)}
    if there == document:
        return
    new: list[str] = []
    known = _completed(there, document, new) if isinstance(there, dict) else {}
    names = [name for name in document if known.get(name) != document[name]]
    if new and not names:
        raise InarchError(
            f"the run here was begun by a version that had no setting {new[0]}", where=str(folder), hint="take another folder"
        )
    raise InarchError(
        f"another run is here, with another {', '.join(names) or 'version'}",
        where=str(folder),
        hint=hint,
    )


def _completed(there: Mapping[str, Any], document: Mapping[str, Any], new: list[str], path: str = "") -> dict[str, Any]:
    """What is there, with what it lacks, whose dotted names go to ``new``."""
    made = dict(there)
    for name, value in document.items():
        if name not in there:
            new.append(path + name)
            made[name] = value
        elif isinstance(value, dict) and isinstance(there[name], dict):
            made[name] = _completed(there[name], value, new, f"{path}{name}.")
    return made


def refuse_changed(digests: Mapping[str, str], folder: Path) -> None:
    """Refuse to go on with a run whose data are others now.

    Args:
        digests: file -> SHA-256 of what it holds.
        folder: the run's.

    Raises:
        InarchError: one of the files has changed since the run began, or what it had then cannot be read.
    """
    known = _known(folder / DIGESTS)
    for file, digest in digests.items():
        if known.get(file, digest) != digest:
            raise InarchError("has changed since the run began", where=file, hint="take another folder for a new run")


def refuse_other_source(source: Mapping[str, str], folder: Path) -> None:
    """Refuse to go on with a tuning of something else.

    Args:
        source: what is tuned -> its SHA-256.
        folder: the tuning's.

    Raises:
        InarchError: another run's was tuned here, or what is known of it cannot be read.
    """
    known = _known(folder / SOURCE)
    for name, digest in source.items():
        if known.get(name, digest) != digest:
            raise InarchError(f"another run's {name} is what is tuned here", where=str(folder), hint="take another folder")


def _known(path: Path) -> dict[str, Any]:
    """The digests that were kept; none where there is no file of them."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
    except (OSError, TypeError, ValueError) as error:
        raise InarchError(f"cannot be read: {error}", where=str(path)) from None


def claim(document: Mapping[str, Any], folder: Path, place: Accelerator) -> None:
    """Take a folder for a run, or go on with the same run in it."""
    if place.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        write(document, folder / CONFIG)
    place.wait_for_everyone()


def write(document: Mapping[str, Any], path: Path) -> None:
    """Write JSON, whole or not at all."""
    with whole(path) as draft:
        draft.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
