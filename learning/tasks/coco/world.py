"""Annotations of one's own in COCO's format as a world: RefCOCO and GQA as MDETR's releases write them, and COCO detection.

A file has one kind of annotation, so that everything is learned on that. What would fail in the middle of a run (an image that is
not there, a text that is too long, an answer without a class) is refused before it begins; damaged pixels alone are found later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from inarch.learning.config import validated
from inarch.learning.data_config import FilesSettings, GqaSettings
from inarch.learning.models.mdetr import GQA_HEADS
from inarch.learning.models.mdetr_config import MdetrConfig
from inarch.learning.models.registry import Config
from inarch.learning.models.text import padding_id
from inarch.learning.tasks.aims import OF_FILES, Aim, check_aim
from inarch.learning.tasks.coco.courses import CocoCourse, FilesCourse, GqaCourse, RefcocoCourse
from inarch.learning.tasks.coco.files import GQA_TYPES
from inarch.learning.tasks.coco.images import GLIP, MDETR, check_image
from inarch.learning.tasks.coco.kinds import FileTask, check_model, open_annotations, rows_of, text_of
from inarch.learning.tasks.coco.scores import pycocotools
from inarch.learning.tasks.coco.tasks import Detection, Gqa, Referring, Source
from inarch.learning.tasks.coco.tokens import FileTokenizer
from inarch.learning.tasks.glip_trainee import SMALLEST
from inarch.structure.errors import DataError, InarchError

_AT_ONCE = 4096
"""Texts that are tokenised at once."""


class FilesWorld:
    """A file of annotations to train on, and one to be judged by.

    Args:
        settings: the files.
        model: what is trained.

    Attributes:
        levels: of a GLIP's pyramid; None for an MDETR.
        source: of images and tokens, as the model wants them.

    Raises:
        InarchError: the model has no outputs for these annotations.
        DataError: there is no such tokenizer.
    """

    splits = ("test",)

    def __init__(self, settings: FilesSettings, model: Config) -> None:
        self.settings = settings
        self.levels = None if isinstance(model, MdetrConfig) else model.levels
        glip = self.levels is not None
        check_model(settings.task, glip=glip)
        self.kinds: tuple[Aim, ...] = (OF_FILES[settings.task],)
        self.first: Aim = self.kinds[0]
        self.side, self.batch = settings.short, settings.images
        base = MDETR if isinstance(model, MdetrConfig) else GLIP
        multiple = model.multiple if isinstance(model, MdetrConfig) else base.multiple
        preparation = replace(base, short=settings.short, longest=settings.longest, multiple=multiple)
        self.tokenizer = FileTokenizer(Path(settings.tokenizer))
        longest = min(model.text.longest, model.spans) if isinstance(model, MdetrConfig) else model.text.longest
        self.source = Source(Path(settings.folder), self.tokenizer, preparation, longest, mask=not glip)

    @cached_property
    def train(self) -> FileTask:
        """What is trained on, as a task.

        Raises:
            DataError: the file cannot be read.
        """
        return self._open(self.settings.train)

    @cached_property
    def held_out(self) -> FileTask:
        """What is judged on.

        Raises:
            DataError: the file cannot be read.
        """
        return self._open(self.settings.held_out)

    def _open(self, file: str) -> FileTask:
        answers = Path(self.settings.answers) if isinstance(self.settings, GqaSettings) else None
        return open_annotations(self.settings.task, Path(file), self.source, answers, glip=self.levels is not None)

    @property
    def digests(self) -> Mapping[str, str]:
        """SHA-256 of the annotations, the tokenizer and the vocabulary; images are known by name alone.

        Raises:
            DataError: one cannot be read.
        """
        tokenizer = {self.settings.tokenizer: self.tokenizer.name_or_path}  # a folder may stand for its file
        return {file: _digest(tokenizer.get(file, file)) for file in self.settings.files}

    def fitted(self, config: Config) -> Config:
        """A model's configuration for these words, and the released heads for questions.

        Raises:
            InarchError: the tokenizer is not the model's, or images are smaller than it takes.
        """
        pad, wanted = self.tokenizer.pad_token_id, padding_id(config.text)
        if config.text.family == "roberta" and pad != wanted:
            raise InarchError(f"the padding token is {pad}, the model's {wanted}", where=self.settings.tokenizer)
        if self.levels is not None and self.side < SMALLEST:
            raise InarchError(f"GLIP takes images from {SMALLEST} pixels on, not {self.side}", where="data.short")
        text = config.text.model_copy(update={"vocabulary": max(config.text.vocabulary, self.tokenizer.vocabulary)})
        changes: dict[str, Any] = {"text": text.model_dump()}
        if isinstance(config, MdetrConfig) and self.first == "vqa" and config.answers != "gqa":
            changes |= {"answers": "gqa", "answer_layer": config.decoder_layers - 1}
        made: Config = validated(type(config), config.model_dump() | changes, "--model")
        return made

    def check(self, kind: Aim) -> None:
        """Look through both files: whether images are there and as large as their rows say, and what the model takes of texts.

        Raises:
            InarchError: something else is wanted, or a head has too few classes.
            DataError: a file cannot be read, an image is not there or of another size, a box or a text cannot be learned from,
                the two files have different categories, or pycocotools, which detections are judged with, is not installed.
        """
        check_aim(kind, self.first, self.settings.task)
        if isinstance(self.train, Gqa) and isinstance(self.settings, GqaSettings):
            for name, size in zip(GQA_TYPES, self.train.sizes, strict=True):
                if size > GQA_HEADS[name]:
                    message = f"answer_{name} has the class {size - 1}, the head {GQA_HEADS[name]} classes"
                    raise InarchError(message, where=self.settings.answers)
        if isinstance(self.train, Detection) and isinstance(self.held_out, Detection):
            pycocotools()
            if self.train.file.categories != self.held_out.file.categories:
                hint = "their names are the text that is learned with: the same ones, in one order"
                raise DataError(f"has other categories than {self.settings.train}", where=self.settings.held_out, hint=hint)
        for task in (self.train, self.held_out):
            self._check_images(task)
            self._check_texts(task)
        self.course(kind)

    def _check_images(self, task: FileTask) -> None:
        sized = not isinstance(task, Gqa)
        for row in {(row.file_name, row.height, row.width): row for row in rows_of(task)}.values():
            check_image(self.source.folder, row, sized=sized)

    def _check_texts(self, task: FileTask) -> None:
        """What detections are found by is one text, which is looked at when the file is opened."""
        if isinstance(task, Detection):
            return
        for start in range(0, task.samples, _AT_ONCE):
            texts = [text_of(task, row) for row in range(start, min(start + _AT_ONCE, task.samples))]
            blank = next((start + place for place, text in enumerate(texts) if not text.strip()), None)
            if blank is not None:
                raise DataError("is blank", where=f"{task.file.source}: images[{blank}].caption")
            try:
                self.source.texts(texts)
            except DataError as error:
                raise DataError(error.message, where=f"{task.file.source}: {error.where}", hint=error.hint) from None

    @cached_property
    def _course(self) -> FilesCourse:
        if isinstance(self.train, Gqa):
            return GqaCourse(self.train, self.settings)
        if isinstance(self.train, Referring):
            return RefcocoCourse(self.train, self.settings, self.levels)
        assert self.levels is not None
        return CocoCourse(self.train, self.settings, self.levels)

    def course(self, kind: Aim) -> FilesCourse:
        """Training on the one kind.

        Raises:
            InarchError: something else is wanted.
        """
        check_aim(kind, self.first, self.settings.task)
        return self._course

    def task(self, kind: Aim, split: str = "test") -> FileTask:
        """What is held out.

        Raises:
            InarchError: something else is wanted, or there is no such split.
        """
        check_aim(kind, self.first, self.settings.task)
        if split not in self.splits:
            raise InarchError(f"{self.settings.task} has no split {split!r}", hint=f"there is {self.splits[0]}")
        return self.held_out


def _digest(file: str) -> str:
    try:
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=file) from None
