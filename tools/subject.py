"""What a model is judged by on the command line: what was asked for, and the task that it leads to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inarch.structure.errors import RuntimeFailure

if TYPE_CHECKING:
    from inarch.runtime.accuracy import Task
    from inarch.runtime.face import Face


@dataclass(frozen=True)
class Wanted:
    """What the command line says of a task; None where it says nothing.

    Attributes:
        task: its name.
        run: a folder of ``inarch learn``.
        split, level, side, seed: of what is generated.
        annotations, images, tokenizer, answers: files.
        short, longest: sizes that images are resized to.
    """

    task: str | None = None
    run: Path | None = None
    split: str | None = None
    level: str | None = None
    side: int | None = None
    seed: int | None = None
    annotations: Path | None = None
    images: Path | None = None
    tokenizer: Path | None = None
    answers: Path | None = None
    short: int | None = None
    longest: int | None = None

    @property
    def given(self) -> bool:
        """Whether a task is asked for at all."""
        return self.task is not None or self.run is not None


@dataclass(frozen=True, eq=False)
class Subject:
    """A task, and what is known about it here.

    Attributes:
        task: the task.
        outputs: those of a model that it reads.
        samples: which samples these are: files of predictions with equal ones can be compared.
        text: what a sample is about, by its row.
        batch: samples at a time, unless something else is asked for.
        widths: output -> length of its last axis.
        room: output -> the least length of its last axis.
        optional: what the task gives and a model may do without.
        padded: whether images are padded to the largest of their batch: what a model without a mask sees, and a ViT, whose
            positions are for the padded grid, depends on the batch then.
    """

    task: Task
    outputs: tuple[str, ...]
    samples: Mapping[str, Any]
    text: Callable[[int], str]
    batch: int = 64
    widths: Mapping[str, int] = field(default_factory=dict)
    room: Mapping[str, int] = field(default_factory=dict)
    optional: tuple[str, ...] = ("pixel_mask",)
    padded: bool = False

    def samples_of(self, batch: int) -> dict[str, Any]:
        """Which samples these are, as a model sees them in batches of this size."""
        return {**self.samples, "batch": batch} if self.padded else dict(self.samples)

    def texts(self, count: int) -> list[str]:
        """What the first samples are about."""
        return [self.text(row) for row in range(count)]

    def check(self, face: Face) -> None:
        """Refuse a model that the task does not fit.

        Raises:
            RuntimeFailure: it takes or gives something else; the first that does not fit is named.
        """
        from inarch.runtime.face import check_fit

        feeds = self.task.feeds(np.arange(1))
        check_fit(face, feeds, self.outputs, self.task.name, self.optional)
        for name, width in self.widths.items():
            found = _last(face, name)
            if found not in (None, width):
                message = f"the model's output {name!r} has {found} classes, and {self.task.name} has {width}"
                raise RuntimeFailure(message, where=face.name)
        for name, least in self.room.items():
            found = _last(face, name)
            if found is not None and found < least:
                message = f"the model's output {name!r} has room for {found - 1} tokens, and {self.task.name} has {least - 1}"
                raise RuntimeFailure(message, where=face.name)


def _last(face: Face, output: str) -> int | None:
    """The length of an output's last axis, where it is fixed."""
    sizes = face.outputs[output]
    return sizes[-1] if sizes and isinstance(sizes[-1], int) else None
