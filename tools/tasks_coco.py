"""Tasks of files in COCO's format: RefCOCO and GQA as MDETR's releases write them, and COCO's own detection files.

``refcoco``: an MDETR or a GLIP finds the box of an expression. ``gqa``: an MDETR answers a question. ``coco``: a GLIP that is
given the names of all categories finds their objects.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inarch.learning.models.glip_post import detect
from inarch.learning.tasks import glip_boxes
from inarch.learning.tasks.boxes import to_corners
from inarch.learning.tasks.coco_files import (
    GQA_TYPES,
    CocoFile,
    read_answers_by_type,
    read_coco,
    read_gqa,
    read_referring,
)
from inarch.learning.tasks.coco_images import GLIP, MDETR, Preparation, encode_texts, positive_map
from inarch.learning.tasks.coco_tasks import Decode, Detected, Detection, Frame, Gqa, Referring, Source
from inarch.runtime.accuracy import Arrays
from inarch.structure.errors import DataError, InarchError
from inarch.structure.units import Indices
from inarch.tools.subject import Subject, Wanted, levels_of

if TYPE_CHECKING:
    from inarch.runtime.face import Face

_SEPARATOR = ". "
"""What GLIP writes between the names of categories."""
_PADS = ("[PAD]", "<pad>")


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
    outputs = ("logits", "boxes", "centerness") if is_glip else ("logits", "boxes")
    if wanted.task == "refcoco":
        referring = read_referring(annotations)
        task = GlipReferring(referring, source) if is_glip else Referring(referring, source)
        return Subject(task, outputs, samples, lambda row: referring.expressions[row].caption, batch=2)
    if is_glip == (wanted.task == "gqa"):
        model, other = ("a GLIP", "refcoco and coco") if is_glip else ("an MDETR", "refcoco and gqa")
        raise InarchError(f"{wanted.task} is nothing for {model}", where="--task", hint=f"there are {other}")
    if wanted.task == "gqa":
        answers = read_answers_by_type(_needed(wanted.answers, "answers", wanted))
        questions = read_gqa(annotations)
        heads = ("answer_type", *(f"answer_{kind}" for kind in GQA_TYPES))
        return Subject(Gqa(questions, answers, source), heads, samples, lambda row: questions.questions[row].caption, batch=2)
    file = read_coco(annotations)
    ids, mask, phrases = _prompt(file, tokenizer)
    labels = [row.id for row in file.categories]
    constants = {"input_ids": ids, "attention_mask": mask}
    detection = Detection(file, source, _glip_decode(phrases, labels), constants=constants)
    return Subject(detection, outputs, samples, lambda row: file.images[row].file_name, batch=2)


def _needed(path: Path | None, name: str, wanted: Wanted) -> Path:
    if path is None:
        raise InarchError("is missing", where=f"--{name}", hint=f"--task {wanted.task} needs it")
    return path


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=str(path)) from error


def _preparation(wanted: Wanted, face: Face, is_glip: bool) -> Preparation:
    """As the model's paper evaluates, in sizes that it takes: an axis called ``16*height`` takes multiples of 16."""
    base = GLIP if is_glip else MDETR
    sizes = face.inputs["pixel_values"][1] if "pixel_values" in face.inputs else None
    steps = [int(found[1]) for size in sizes or () if (found := re.match(r"(\d+)\*", str(size)))]
    return replace(
        base,
        short=wanted.short or base.short,
        longest=wanted.longest or base.longest,
        multiple=max([base.multiple, *steps]),
    )


class _Encoded(dict[str, list[list[int]]]):
    """What :class:`FileTokenizer` says of texts."""

    def __init__(self, encodings: Sequence[Any]) -> None:
        super().__init__(input_ids=[list(one.ids) for one in encodings])
        self._encodings = encodings

    def char_to_token(self, text: int, character: int) -> int | None:
        """The token that a character belongs to."""
        found: int | None = self._encodings[text].char_to_token(character)
        return found


class FileTokenizer:
    """A ``tokenizer.json``, as a fast tokenizer of transformers is called, without transformers.

    Args:
        path: the file, or a folder that has it.

    Attributes:
        pad_token_id: the padding token, or None.

    Raises:
        DataError: the package tokenizers is not installed, or the file is none of its.
    """

    def __init__(self, path: Path) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise DataError("texts need tokenizers, which is not installed", hint="pip install tokenizers") from error
        file = path / "tokenizer.json" if path.is_dir() else path
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the package raises plain ones, with the reason
            raise DataError(f"is no tokenizer: {error}", where=str(file), hint="--tokenizer takes a tokenizer.json") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        known = (self._tokenizer.token_to_id(pad) for pad in _PADS)
        self.pad_token_id: int | None = next((token for token in known if token is not None), None)

    def __call__(self, text: list[str]) -> _Encoded:
        """Encode texts."""
        return _Encoded(self._tokenizer.encode_batch(text))


class GlipReferring(Referring):
    """The same, from a GLIP's outputs: the boxes that answer best to the whole expression."""

    def predict(self, rows: Indices, outputs: Arrays) -> dict[str, Any]:
        """As of an MDETR's outputs."""
        chosen = [self.file.expressions[row] for row in rows]
        frames = _frames([(row.height, row.width) for row in chosen], self.source.preparation)
        _, mask = encode_texts(self.source.tokenizer or _never(), [row.caption for row in chosen])
        spoken = mask.astype(np.bool_)
        spoken[:, 0] = False  # the start, and the stop at the end of each
        spoken[np.arange(len(rows)), mask.sum(1) - 1] = False
        padded = frames[0].padded
        logits = outputs["logits"][..., : spoken.shape[1]]
        levels = levels_of(outputs["centerness"].shape[1], *padded)
        boxes, scores = glip_boxes.ground({**outputs, "logits": logits}, spoken, padded, levels, 10)
        corners = to_corners(boxes) * np.asarray([padded[1], padded[0]] * 2)
        scale = np.asarray([[f.original[1] / f.resized[1], f.original[0] / f.resized[0]] * 2 for f in frames])
        return {"boxes": corners * scale[:, None], "scores": scores}


def _never() -> Any:
    raise AssertionError("a task of files has a tokenizer")


def _frames(originals: Sequence[tuple[int, int]], preparation: Preparation) -> list[Frame]:
    resized = [preparation.size(size) for size in originals]
    padded = preparation.padded(resized)
    return [Frame(original, size, padded) for original, size in zip(originals, resized, strict=True)]


def _prompt(file: CocoFile, tokenizer: FileTokenizer) -> tuple[Indices, Indices, list[list[int]]]:
    """The text that names all categories: its tokens, their mask, and which tokens name each."""
    names = [row.name for row in file.categories]
    starts = np.cumsum([0, *(len(name) + len(_SEPARATOR) for name in names)]).tolist()
    text = _SEPARATOR.join(names)
    ids, mask = encode_texts(tokenizer, [text])
    spans = [[(start, start + len(name))] for start, name in zip(starts, names, strict=False)]
    table = positive_map(tokenizer, text, spans, columns=ids.shape[1])
    return ids, mask, [np.flatnonzero(row).tolist() for row in table]


def _glip_decode(phrases: Sequence[Sequence[int]], labels: Sequence[int]) -> Decode:
    """What a GLIP's outputs say of a batch of images."""
    categories = np.asarray(labels, np.int64)

    def decode(outputs: Arrays, frames: Sequence[Frame]) -> list[Detected]:
        made = []
        for row, frame in enumerate(frames):
            levels = levels_of(outputs["centerness"].shape[1], *frame.padded)
            logits, boxes, centerness = (outputs[name][row] for name in ("logits", "boxes", "centerness"))
            found = detect(logits, boxes, centerness, phrases, frame.padded, levels)
            # The pixel that the last corner lies in counts.
            corners = found.boxes + np.asarray((0.0, 0.0, 1.0, 1.0))
            limit = np.asarray((frame.resized[1], frame.resized[0]) * 2)
            scale = np.asarray((frame.original[1] / frame.resized[1], frame.original[0] / frame.resized[0]) * 2)
            made.append(Detected(np.minimum(corners, limit) * scale, found.scores, categories[found.labels]))
        return made

    return decode
