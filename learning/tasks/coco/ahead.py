"""Images of batches, those of the next one while one is learned from."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from inarch.learning.tasks.coco.files import ImageRow
from inarch.learning.tasks.coco.images import Values
from inarch.learning.tasks.courses import Part

THREADS = min(8, os.cpu_count() or 1)


class Ahead:
    """Prepares images in a few threads: reading and resizing leave the interpreter to others, training among them.

    What is made of a row depends on nothing else, so batches are the same as without. A batch that was expected in vain is
    dropped; until then it takes the memory of one.

    Args:
        prepare: from a row to its image.
    """

    def __init__(self, prepare: Callable[[ImageRow], Values]) -> None:
        self._prepare = prepare
        self._threads = ThreadPoolExecutor(THREADS, "images")
        self._begun: dict[Part, tuple[Sequence[ImageRow], list[Future[Values]]]] = {}

    def take(self, part: Part, rows: Sequence[ImageRow], coming: Sequence[ImageRow]) -> list[Values]:
        """A batch's images; those of the next one are begun with.

        Args:
            part: whose batches follow each other.
            rows: of this batch.
            coming: of the next one, if all goes as usual.

        Raises:
            DataError: what ``prepare`` raises of this batch's rows.
        """
        expected, begun = self._begun.pop(part, ((), []))
        if expected != rows:
            for future in begun:
                future.cancel()
            begun = self._begin(rows)
        self._begun[part] = coming, self._begin(coming)
        return [future.result() for future in begun]

    def _begin(self, rows: Sequence[ImageRow]) -> list[Future[Values]]:
        return [self._threads.submit(self._prepare, row) for row in rows]
