"""Files in COCO's format as tasks by name, each for the models that have its outputs. Numpy only.

=========== ============================================================ ============== ===========
task        annotations                                                  models         kind
=========== ============================================================ ============== ===========
refcoco     referring expressions, as MDETR's releases write them        MDETR, GLIP    referring
gqa         GQA's questions, as they do                                  MDETR          vqa
coco        COCO's own detection files                                   GLIP           detection
=========== ============================================================ ============== ===========
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from inarch.learning.tasks.coco.files import (
    Expression,
    ImageRow,
    Question,
    read_answers_by_type,
    read_coco,
    read_gqa,
    read_referring,
)
from inarch.learning.tasks.coco.glip import GlipReferring, detection
from inarch.learning.tasks.coco.tasks import Detection, Gqa, Referring, Source
from inarch.structure.errors import InarchError

FileTask = Referring | Gqa | Detection


def check_model(task: str, *, glip: bool) -> None:
    """Refuse a task that a model has no outputs for.

    Args:
        task: one of :data:`~inarch.learning.tasks.aims.OF_FILES`.
        glip: whether the model is a GLIP, else an MDETR.

    Raises:
        InarchError: it has none.
    """
    if glip and task == "gqa":
        raise InarchError("gqa is nothing for a GLIP", where="--task", hint="there are refcoco and coco")
    if not glip and task == "coco":
        raise InarchError("coco is nothing for an MDETR", where="--task", hint="there are refcoco and gqa")


def missing(option: str, task: str) -> InarchError:
    """What is said of a file that a task needs and that is not given."""
    return InarchError("is missing", where=f"--{option}", hint=f"--task {task} needs it")


def open_annotations(task: str, annotations: Path, source: Source, answers: Path | None, *, glip: bool) -> FileTask:
    """The task of these annotations.

    Args:
        task: one of :data:`~inarch.learning.tasks.aims.OF_FILES`.
        annotations: their file.
        source: of images and tokens.
        answers: the vocabulary of each type of question, for gqa.
        glip: whether the model is a GLIP, else an MDETR.

    Raises:
        InarchError: the model has no outputs for it, or the vocabulary is missing.
        DataError: a file cannot be read.
    """
    check_model(task, glip=glip)
    if task == "gqa":
        if answers is None:
            raise missing("answers", task)
        return Gqa(read_gqa(annotations), read_answers_by_type(answers), source)
    if task == "coco":
        return detection(read_coco(annotations), source)
    file = read_referring(annotations)
    return GlipReferring(file, source) if glip else Referring(file, source)


def rows_of(task: FileTask) -> Sequence[Expression] | Sequence[Question] | Sequence[ImageRow]:
    """What samples are about: expressions, questions, or images."""
    if isinstance(task, Detection):
        return task.file.images
    return task.file.questions if isinstance(task, Gqa) else task.file.expressions


def text_of(task: FileTask, row: int) -> str:
    """A sample's expression or question, or the name of its image."""
    found = rows_of(task)[row]
    return found.caption if isinstance(found, Expression | Question) else found.file_name
