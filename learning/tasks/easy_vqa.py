"""easy-VQA (Victor Zhou, MIT licence): questions about one shape on a plain ground, from the PyPI package ``easy-vqa`` 1.0.

The package is found where it is installed and its content is checked against pinned digests; nothing of it lies in this
repository. About 74 % of the questions are answered yes or no, and the question alone says much: see :func:`question_only`.
Shapes: N images, M questions, T tokens, n samples of a batch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from inarch.learning.tasks.coco.images import MDETR, Pixels, Preparation, normalise, open_rgb, pad_rows
from inarch.learning.tasks.coco.tasks import output
from inarch.learning.tasks.margins import margin
from inarch.runtime.accuracy import Arrays
from inarch.structure.errors import DataError
from inarch.structure.units import Indices

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

SIDE = 64
COUNTS = {"train": 4000, "test": 1000}
"""Folder of the package -> its images."""

DIGESTS = {
    "answers.txt": "f004fd115e14db5f70a3a4e1b06d89fd76d45d7446a62d12b50ed1ac2a1a824c",
    "train/questions.json": "bb67697636aed0e65631d4266824aebeae5c833b0f37ed781e20752e85617ec5",
    "test/questions.json": "0d4630a51bafec65343e2f6af9cdd20cf8eae214344ef57636202eec409553f7",
}
"""File of version 1.0 -> its sha256."""

PAD, START, STOP = 0, 1, 2
_MARKS = ("[pad]", "[start]", "[stop]")

_VAL = 10
"""Every tenth image of the package's training set is held out: it has no validation set of its own."""

_INSTALL = "pip install --no-deps easy-vqa==1.0"


def find_package() -> Path:
    """The folder of the installed package's data.

    Raises:
        DataError: it is not installed, or its texts are not those of version 1.0.
    """
    spec = find_spec("easy_vqa")
    if spec is None or spec.origin is None:
        raise DataError("the package easy-vqa is not installed", where="easy-vqa", hint=_INSTALL)
    folder = Path(spec.origin).parent / "data"
    check_files(folder)
    return folder


def check_files(folder: Path) -> None:
    """Compare the texts below a folder with :data:`DIGESTS`.

    Raises:
        DataError: one cannot be read, or is another.
    """
    for name, digest in DIGESTS.items():
        path = folder / name
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror or error}", where=str(path), hint=_INSTALL) from error
        if found != digest:
            raise DataError(f"is not the file of easy-vqa 1.0: its sha256 is {found}", where=str(path), hint=_INSTALL)


def split_words(text: str) -> list[str]:
    """Words and question marks of a text."""
    return re.findall(r"[a-z]+|[^a-z\s]", text.lower())


@dataclass(frozen=True)
class Vocabulary:
    """The words of the training questions; a word's place is its token."""

    words: tuple[str, ...]

    @classmethod
    def of(cls, texts: Sequence[str]) -> Vocabulary:
        """Every word of these texts, in alphabetical order, behind padding, start and stop."""
        return cls((*_MARKS, *sorted({word for text in texts for word in split_words(text)})))

    def encode(self, texts: Sequence[str]) -> tuple[Indices, Indices]:
        """Tokens of texts between a start and a stop, padded to the longest, and their mask, [M, T].

        Raises:
            DataError: a word is not known.
        """
        token = {word: number for number, word in enumerate(self.words)}
        try:
            rows = [[START, *(token[word] for word in split_words(text)), STOP] for text in texts]
        except KeyError as error:
            raise DataError(f"the vocabulary has no word {error.args[0]!r}", where="easy-vqa") from None
        return pad_rows(rows, PAD)


@dataclass(frozen=True, eq=False)
class EasyVqa:
    """One split.

    Attributes:
        split: which.
        vocabulary: of the tokens.
        classes: the 13 answers; an answer's place is its class.
        images: [N, 64, 64, 3].
        input_ids, attention_mask: [M, T], padded to the longest of the split.
        image: [M] the image of each question.
        answers: [M] classes.
        questions: M texts.
    """

    split: Split
    vocabulary: Vocabulary
    classes: tuple[str, ...]
    images: Pixels
    input_ids: Indices
    attention_mask: Indices
    image: Indices
    answers: Indices
    questions: tuple[str, ...]

    @classmethod
    def load(cls, split: Split = "test", *, images: int | None = None) -> EasyVqa:
        """Read a split from the installed package.

        Args:
            split: ``val`` is every tenth image of the package's training set, ``train`` the others.
            images: only the first so many, 1 or more.

        Raises:
            DataError: the package is not installed or is another version, or an image cannot be read.
        """
        folder = find_package()
        home = "test" if split == "test" else "train"
        chosen = _members(split)[:images]
        place = {number: row for row, number in enumerate(chosen)}
        rows = [row for row in _questions(folder, home) if row[2] in place]
        vocabulary = Vocabulary.of([text for text, _, _ in _questions(folder, "train")])
        ids, mask = vocabulary.encode([text for text, _, _ in rows])
        classes = tuple((folder / "answers.txt").read_text(encoding="utf-8").split())
        return cls(
            split=split,
            vocabulary=vocabulary,
            classes=classes,
            images=np.stack([_image(folder / home / "images" / f"{number}.png") for number in chosen]),
            input_ids=ids,
            attention_mask=mask,
            image=np.asarray([place[number] for _, _, number in rows], np.int64),
            answers=np.asarray([classes.index(answer) for _, answer, _ in rows], np.int64),
            questions=tuple(text for text, _, _ in rows),
        )

    def __len__(self) -> int:
        return len(self.answers)


def _members(split: Split) -> list[int]:
    """The package's numbers of a split's images."""
    if split == "test":
        return list(range(COUNTS["test"]))
    return [number for number in range(COUNTS["train"]) if (number % _VAL == _VAL - 1) == (split == "val")]


def _questions(folder: Path, home: str) -> list[tuple[str, str, int]]:
    """Text, answer and image of every question; the file's digest stands for its form."""
    return [(text, answer, number) for text, answer, number in json.loads((folder / home / "questions.json").read_bytes())]


def _image(path: Path) -> Pixels:
    pixels = open_rgb(path)
    if pixels.shape != (SIDE, SIDE, 3):
        raise DataError(
            f"has {pixels.shape[1]} x {pixels.shape[0]} pixels, wanted {SIDE} x {SIDE}", where=str(path), hint=_INSTALL
        )
    return pixels


def question_only(train: EasyVqa, held: EasyVqa) -> Indices:
    """What is to be beaten: the most frequent training answer to each question's text, without looking at the image.

    Args:
        train: says the answers; a text that it does not have gets its most frequent answer of all.
        held: the questions, M of them.

    Returns:
        [M] classes; among equally frequent ones the first.
    """
    counts: dict[str, Counter[int]] = {}
    for text, answer in zip(train.questions, train.answers.tolist(), strict=True):
        counts.setdefault(text, Counter())[answer] += 1
    common = int(np.bincount(train.answers).argmax())
    best = {text: min(counter, key=lambda answer: (-counter[answer], answer)) for text, counter in counts.items()}
    return np.asarray([best.get(text, common) for text in held.questions], np.int64)


class EasyVqaTask:
    """easy-VQA as a task: the share of right answers, and the same for yes/no questions and for the others.

    Args:
        data: a split.
        logits: name of the model's output [n, 13].
        preparation: mean and std of the pixels; they are not resized.
    """

    headline = "accuracy"

    def __init__(self, data: EasyVqa, *, logits: str = "answer", preparation: Preparation = MDETR) -> None:
        self.data = data
        self.name = "easy-vqa/vqa" if data.split == "test" else f"easy-vqa-{data.split}/vqa"
        self.samples = len(data)
        self._logits = logits
        self._preparation = preparation

    def feeds(self, rows: Indices) -> Arrays:
        """``pixel_values`` [n, 3, 64, 64], ``pixel_mask`` [n, 64, 64], ``input_ids`` and ``attention_mask`` [n, T]."""
        images = self.data.images[self.data.image[rows]]
        return {
            "pixel_values": normalise(images, self._preparation),
            "pixel_mask": np.ones(images.shape[:3], np.bool_),
            "input_ids": self.data.input_ids[rows],
            "attention_mask": self.data.attention_mask[rows],
        }

    def predict(self, rows: Indices, outputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """``answer`` [n], a class, and ``margin`` [n], how far it is ahead of the second.

        Raises:
            RuntimeFailure: the model has no such output, or of another shape.
        """
        logits = output(outputs, self._logits, (len(rows), len(self.data.classes)), self.name)
        return {"answer": logits.argmax(1), "margin": margin(logits)}

    def score(self, rows: Indices, predictions: Arrays) -> dict[str, npt.NDArray[np.float64]]:
        """``accuracy``: 1 or 0, [n]."""
        return {"accuracy": (predictions["answer"] == self.data.answers[rows]).astype(np.float64)}

    def overall(self, predictions: Arrays) -> dict[str, float]:
        """The accuracy on questions that are answered yes or no, and on the others."""
        truth = self.data.answers[: len(predictions["answer"])]
        right = predictions["answer"] == truth
        binary = np.isin(truth, [self.data.classes.index(word) for word in ("yes", "no")])
        parts = {"accuracy_yes_no": binary, "accuracy_others": ~binary}
        return {metric: float(right[where].mean()) for metric, where in parts.items() if where.any()}
