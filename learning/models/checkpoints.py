"""Released checkpoints of MDETR and GLIP into our modules.

The modules bear the released key names, so that what is left to do is to choose the weights (MDETR's published figures come from
the moving average), strip a prefix, drop buffers that today's modules compute, and say what does not fit. No released file could
be opened where this was written: the keys are those of the published module trees.
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inarch.learning.models.registry import Config, Model, build
from inarch.structure.errors import InarchError

_COMPUTED = ("embeddings.position_ids", "embeddings.token_type_ids", "num_batches_tracked")
"""Endings of buffers that old files hold and that are not needed."""

_SHOWN = 8

_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


class CheckpointError(InarchError):
    """A checkpoint cannot be read, or is for another model; ``where`` is the file."""


@dataclass(frozen=True)
class CheckpointReport:
    """How a checkpoint met a model.

    Attributes:
        source: the entry of the file that the weights were taken from; empty where the file is the weights.
        loaded: keys that were loaded.
        dropped: keys that are known not to be needed.
        unmapped: keys of the file that the model does not have.
        missing: keys of the model that the file does not have.
        misfits: keys whose shapes differ, with the file's and the model's shape.
    """

    source: str
    loaded: int
    dropped: tuple[str, ...]
    unmapped: tuple[str, ...]
    missing: tuple[str, ...]
    misfits: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every key of the model was loaded and none of the file is left."""
        return not (self.unmapped or self.missing or self.misfits)

    def lines(self) -> list[str]:
        """What does not fit, one sentence a kind."""
        found = (("only in the file", self.unmapped), ("only in the model", self.missing), ("of another shape", self.misfits))
        return [f"{len(keys)} keys are {what}: {_some(keys)}" for what, keys in found if keys]


def load_checkpoint(
    path: str | os.PathLike[str],
    model: str | Config,
    *,
    ema: bool = True,
    strict: bool = True,
    seed: int = 0,
    fresh: tuple[str, ...] = (),
) -> tuple[Model, CheckpointReport]:
    """Make a model and load a released checkpoint into it.

    Only tensors and plain data are unpickled (``weights_only``); of classes, ``argparse.Namespace`` alone, which MDETR's files
    hold.

    Args:
        path: the file.
        model: a preset's name, or a configuration.
        ema: take MDETR's moving average where the file has one.
        strict: refuse where a key does not fit; otherwise load what fits.
        seed: of weights that stay random.
        fresh: beginnings of keys that the file need not have, or may have of other shapes: the model's stay random then.

    Returns:
        The model in evaluation mode, and how the checkpoint met it.

    Raises:
        CheckpointError: the file cannot be read, holds no weights, or does not fit.
        InarchError: there is no such preset.
    """
    file = Path(path)
    source, weights = _weights(_read(file), file, ema)
    built = build(model, seed=seed)
    fitting, report = match(weights, built.state_dict(), source)
    unmapped, missing, misfits = (
        tuple(key for key in keys if not key.startswith(fresh)) for keys in (report.unmapped, report.missing, report.misfits)
    )
    report = replace(report, unmapped=unmapped, missing=missing, misfits=misfits)
    if strict and not report.complete:
        hint = "choose the preset that the file was trained with; strict=False loads what fits"
        raise CheckpointError("the checkpoint does not fit: " + "; ".join(report.lines()), where=str(file), hint=hint)
    built.load_state_dict(fitting, strict=False)
    return built, report


def match(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str = ""
) -> tuple[dict[str, Tensor], CheckpointReport]:
    """Which of a file's weights go into a model; nothing is read but names and shapes.

    Args:
        weights: of the file.
        own: the model's state.
        source: the entry of the file that the weights are from.

    Returns:
        The weights that fit, under the model's names, and the report.
    """
    given: dict[str, Tensor] = {}
    dropped = []
    for key, tensor in weights.items():
        name = key.removeprefix("module.")
        if name.endswith(_COMPUTED) and name not in own:
            dropped.append(name)
        else:
            given[name] = tensor
    misfits = [
        f"{name} {list(tensor.shape)}, here {list(own[name].shape)}"
        for name, tensor in given.items()
        if name in own and tensor.shape != own[name].shape
    ]
    fitting = {name: tensor for name, tensor in given.items() if name in own and tensor.shape == own[name].shape}
    report = CheckpointReport(
        source,
        len(fitting),
        tuple(dropped),
        tuple(name for name in given if name not in own),
        tuple(name for name in own if name not in given),
        tuple(misfits),
    )
    return fitting, report


def _read(file: Path) -> Any:
    try:
        # Files of torch before 1.6 are one pickle, and cannot be mapped.
        mapped = zipfile.is_zipfile(file)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror or error}", where=str(file)) from error
    except Exception as error:  # a damaged pickle fails in any way that its opcodes can
        raise CheckpointError(_refusal(error), where=str(file)) from error


def _refusal(error: Exception) -> str:
    """Why torch would not load a file; its own words advise to load it unsafely."""
    found = _GLOBAL.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
    if found:
        return f"holds {found.group(1)}, and of classes and functions only those of tensors and argparse.Namespace are unpickled"
    return "is damaged, or no checkpoint of torch"


def _weights(content: Any, file: Path, ema: bool) -> tuple[str, Mapping[str, Tensor]]:
    """The entry with the weights, and the weights."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"holds {type(content).__name__}, not a dictionary of weights", where=str(file))
    for source in (*(["model_ema"] if ema else []), "model"):
        entry = content.get(source)
        if isinstance(entry, Mapping):
            content = entry
            break
    else:
        source = ""
    weights = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not weights:
        hint = "the weights are looked for under model_ema, model, or at the top"
        raise CheckpointError("holds no weights", where=str(file), hint=hint)
    return source, weights


def _some(keys: tuple[str, ...]) -> str:
    return ", ".join(keys[:_SHOWN]) + (f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")
