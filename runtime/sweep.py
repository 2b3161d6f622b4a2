"""Cases of several sizes, to measure a model over batches, text lengths and image sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
import onnx_ir as ir

from inarch.runtime.inputs import Case, DimRole, InputSpec, describe, make_case, roles_of
from inarch.runtime.session import Session
from inarch.structure.errors import RuntimeFailure


@dataclass(frozen=True)
class Sweep:
    """Which sizes to measure; an empty tuple leaves those axes as they are in the case that is swept from.

    Attributes:
        batches: rows.
        lengths: tokens, or whatever else the sequence axes count.
        images: height and width in pixels.
    """

    batches: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()
    images: tuple[int, ...] = ()

    @property
    def sizes(self) -> list[dict[DimRole, int]]:
        """Every combination: role -> size."""
        axes: list[tuple[DimRole, tuple[int, ...]]] = [
            ("batch", self.batches), ("sequence", self.lengths), ("image", self.images)
        ]  # fmt: skip
        used = [(role, values) for role, values in axes if values]
        return [
            dict(zip((role for role, _ in used), combination, strict=True))
            for combination in product(*(values for _, values in used))
        ]


def sweep_cases(model: ir.Model, session: Session, base: Case, sweep: Sweep, *, seed: int = 0) -> tuple[Case, ...]:
    """The case at every size of a sweep.

    Another batch repeats the case's rows or leaves some out, so that a user's own inputs stay what they are. At another length
    or image size values are made anew, after what the graph says that each input is for.

    Args:
        model: the model.
        session: the same, loaded; every case is run once.
        base: inputs that it runs on.
        sweep: the sizes.
        seed: of the values that are made.

    Raises:
        RuntimeFailure: the model's axes of a kind are fixed, or it does not run at a size.
    """
    combinations = sweep.sizes
    if combinations == [{}]:
        return (base,)
    specs = describe(model)
    roles = roles_of(specs)
    found = {symbol: base.feeds[spec.name].shape[i] for spec in specs for i, symbol in enumerate(spec.dims) if symbol in roles}
    cases = []
    for wanted in combinations:
        for role in wanted:
            if role not in roles.values():
                raise RuntimeFailure(f"no input of the model has an axis for {_WORDS[role]} that may change")
        label = ", ".join(f"{_WORDS[role]} {size}" for role, size in wanted.items())
        try:
            if set(wanted) == {"batch"}:
                case = _rows(specs, roles, base, wanted["batch"], label)
            else:
                sizes = {symbol: wanted.get(role, found[symbol]) for symbol, role in roles.items()}
                case = make_case(specs, sizes, np.random.default_rng(seed), label)
        except (MemoryError, OverflowError, ValueError) as error:
            raise RuntimeFailure(f"inputs of {label} cannot be made: {error}", hint="they have to fit into memory") from error
        try:
            session.run(case.feeds)
        except RuntimeFailure as error:
            raise RuntimeFailure(f"the model does not run at {label}: {error.message}") from error
        cases.append(case)
    return tuple(cases)


_WORDS: Mapping[DimRole, str] = {"batch": "batch", "sequence": "length", "image": "image size", "other": "size"}


def _rows(specs: tuple[InputSpec, ...], roles: Mapping[str, DimRole], base: Case, rows: int, label: str) -> Case:
    """The case with so many rows, its own in turn."""
    feeds = dict(base.feeds)
    for spec in specs:
        for axis, symbol in enumerate(spec.dims):
            if isinstance(symbol, str) and roles[symbol] == "batch":
                feeds[spec.name] = feeds[spec.name].take(np.arange(rows) % feeds[spec.name].shape[axis], axis)
    return Case(label, feeds)
