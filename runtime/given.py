"""Inputs that the user gives: read from a file or taken from Python, and tried on the original."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from inarch.runtime.inputs import Array, Case, Cases
from inarch.runtime.npz import read_npz
from inarch.runtime.session import Session
from inarch.structure.errors import RuntimeFailure

Feeds = Mapping[str, npt.ArrayLike]
GivenInputs = str | os.PathLike[str] | Feeds | Sequence[Case | Feeds]
"""An ``.npz`` file, input names with arrays, or several such cases."""


def load_npz(path: str | Path, names: Sequence[str] = ()) -> tuple[Case, ...]:
    """Read the user's own inputs.

    Args:
        path: an ``.npz`` file. Arrays are named after the model's inputs, or ``case/input`` where there are several cases.
        names: the model's inputs; where given, each case has to hold them all, and nothing else.

    Raises:
        RuntimeFailure: the file cannot be read, or a case's arrays are not the model's inputs.
    """
    where = str(path)
    groups: dict[str, dict[str, Array]] = {}
    try:
        arrays = read_npz(path)
    except (OSError, ValueError) as error:
        raise RuntimeFailure(f"cannot be read as arrays: {error}", where=where, hint="write it with numpy.savez") from error
    for key, values in arrays.items():
        whole = key in names or "/" not in key
        case, name = ("inputs", key) if whole else key.split("/", 1)
        groups.setdefault(case, {})[name] = values
    if not groups:
        raise RuntimeFailure("holds no arrays", where=where)
    for case, feeds in groups.items():
        missing = sorted(set(names) - set(feeds))
        unknown = sorted(set(feeds) - set(names)) if names else []
        if missing or unknown:
            what = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(unknown)}, which the model does not take"
            raise RuntimeFailure(f"case {case!r} {what}", where=where, hint=f"the model's inputs are {', '.join(names)}")
    return tuple(Case(name, feeds) for name, feeds in groups.items())


def as_cases(inputs: Feeds | Sequence[Case | Feeds]) -> tuple[Case, ...]:
    """Cases as they are, and mappings from input names to arrays as cases; a mapping by itself is one.

    Raises:
        RuntimeFailure: there are none, or one is no mapping to arrays.
    """
    several = [inputs] if isinstance(inputs, Mapping) else list(inputs)
    if not several:
        raise RuntimeFailure("no inputs are given", hint="leave them out to have some made")
    return tuple(one if isinstance(one, Case) else _case_of(one, f"inputs {number}") for number, one in enumerate(several))


def _case_of(feeds: object, name: str) -> Case:
    if not isinstance(feeds, Mapping):
        raise RuntimeFailure(
            f"{name} are of type {type(feeds).__name__}", hint="each case is a mapping from input names to arrays"
        )
    found: dict[str, Array] = {}
    for key, array in feeds.items():
        try:
            found[str(key)] = np.asarray(array)
        except ValueError as error:
            raise RuntimeFailure(f"{key!r} of {name} is no array: {error}") from error
    return Case(name, found)


def check_cases(cases: Sequence[Case], session: Session) -> Cases:
    """Keep the user's cases that the original model runs.

    Raises:
        RuntimeFailure: it runs none of them.
    """
    found: list[Case] = []
    dropped: list[str] = []
    for case in cases:
        try:
            session.run(case.feeds)
        except RuntimeFailure as error:
            dropped.append(f"{case.name}: {error.message}")
        else:
            found.append(case)
    if not found:
        raise RuntimeFailure(f"the original model runs on none of the inputs; {dropped[0]}")
    return Cases(tuple(found), tuple(dropped))
