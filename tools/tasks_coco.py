"""Tasks of files in COCO's format: RefCOCO and GQA as MDETR's releases write them, and COCO's own detection files; see
:mod:`inarch.learning.tasks.coco.kinds`.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inarch.learning.tasks.coco.files import GQA_TYPES
from inarch.learning.tasks.coco.images import GLIP, MDETR, Preparation
from inarch.learning.tasks.coco.kinds import missing, open_annotations, text_of
from inarch.learning.tasks.coco.tasks import Gqa, Source
from inarch.learning.tasks.coco.tokens import FileTokenizer
from inarch.structure.errors import DataError
from inarch.tools.subject import Subject, Wanted

if TYPE_CHECKING:
    from inarch.runtime.face import Face


def open_files(wanted: Wanted, face: Face) -> Subject:
    """The task of these files.

    Raises:
        InarchError: a file is not given, or the model cannot be judged by them.
        DataError: one cannot be read.
    """
    annotations, folder = _needed(wanted.annotations, "annotations", wanted), _needed(wanted.images, "images", wanted)
    is_glip = "centerness" in face.outputs
    preparation = _preparation(wanted, face, is_glip)
    tokenizer = FileTokenizer(_needed(wanted.tokenizer, "tokenizer", wanted))
    source = Source(folder, tokenizer, preparation, mask="pixel_mask" in face.inputs)
    digest = hashlib.sha256(_read(annotations)).hexdigest()
    samples: dict[str, Any] = {"annotations": digest, "preparation": asdict(preparation)}
    task = open_annotations(str(wanted.task), annotations, source, wanted.answers, glip=is_glip)
    outputs: tuple[str, ...] = ("logits", "boxes", "centerness") if is_glip else ("logits", "boxes")
    if isinstance(task, Gqa):
        outputs = ("answer_type", *(f"answer_{kind}" for kind in GQA_TYPES))
    return Subject(task, outputs, samples, lambda row: text_of(task, row), batch=2, padded=True)


def _needed(path: Path | None, name: str, wanted: Wanted) -> Path:
    if path is None:
        raise missing(name, str(wanted.task))
    return path


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=str(path)) from error


def _preparation(wanted: Wanted, face: Face, is_glip: bool) -> Preparation:
    """As the model's paper evaluates, in sizes that it takes: an axis called ``16*height`` takes multiples of 16."""
    base = GLIP if is_glip else MDETR
    return replace(
        base,
        short=wanted.short or base.short,
        longest=wanted.longest or base.longest,
        multiple=max(base.multiple, *face.multiples("pixel_values")),
    )
