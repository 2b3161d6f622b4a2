"""Index sets: which units of an axis, as compact range strings.

A range string lists disjoint, inclusive ranges: ``"0-511,640"``. The empty string is the empty set. A set ascends
(:func:`parse_set`). Pairings (``share``) need an order, so :func:`parse_sequence` accepts any order and repeats nothing:
``"3,1,7-9"``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

MAX_UNITS = 2**20
"""More units than any axis has: a longer range string is refused before it takes memory."""

_NUMBER = "(?:0|[1-9][0-9]{0,9})"
_ITEM = f"{_NUMBER}(?:-{_NUMBER})?"
_SEQUENCE = re.compile(f"{_ITEM}(?:,{_ITEM})*")
_LONG_ITEM = re.compile("[0-9]+(?:-[0-9]+)?")


class DuplicateIndexError(ValueError):
    """A range string gives one index twice.

    Attributes:
        index: the smallest such index.
    """

    def __init__(self, index: int) -> None:
        super().__init__(f"index {index} is given twice")
        self.index = index


def parse_sequence(text: str) -> Indices:
    """Read a range string in the order it is written. O(length of the text + number of indices).

    Args:
        text: comma-separated non-negative integers and inclusive ascending ranges, no spaces.

    Returns:
        The indices, shape [n], int64.

    Raises:
        ValueError: not a range string, a descending range, or indices larger than any axis.
        DuplicateIndexError: an index is given twice.
    """
    if not text:
        return np.empty(0, np.int64)
    if _SEQUENCE.fullmatch(text) is None:
        wrong = next(item for item in text.split(",") if re.fullmatch(_ITEM, item) is None)
        if _LONG_ITEM.fullmatch(wrong) and max(map(len, wrong.split("-"))) > 10:
            raise ValueError(f"{_short(wrong)} is larger than any axis can be")
        raise ValueError(f"{_short(wrong)} is neither an index nor a range like 0-511")
    first, last, is_range = _bounds(text)
    _refuse(text, (last < first) | (is_range & (last == first)), "is not an ascending range")
    _refuse(text, last >= 2**31, "is larger than any axis can be")
    lengths = last - first + 1
    if int(lengths.sum()) > MAX_UNITS:
        raise ValueError(f"{_short(text)} holds {int(lengths.sum())} units, more than any axis has")
    order = np.argsort(first, kind="stable")
    overlap = np.flatnonzero(first[order][1:] <= np.maximum.accumulate(last[order])[:-1])
    if len(overlap):
        raise DuplicateIndexError(int(first[order][overlap[0] + 1]))
    # One arange over all indices, moved to each range's first index.
    ends = np.cumsum(lengths)
    indices: Indices = np.arange(int(ends[-1]), dtype=np.int64) + np.repeat(first - (ends - lengths), lengths)
    return indices


def parse_set(text: str) -> Indices:
    """Read a range string that is ascending: the one spelling of a set.

    Raises:
        ValueError: as :func:`parse_sequence`, or the indices do not ascend.
        DuplicateIndexError: an index is given twice.
    """
    indices = parse_sequence(text)
    if np.any(np.diff(indices) <= 0):
        raise ValueError("indices must ascend")
    return indices


def format_indices(indices: Iterable[int] | Indices) -> str:
    """Write indices as the shortest range string that keeps their order; inverse of :func:`parse_sequence`."""
    array = np.asarray(indices if isinstance(indices, np.ndarray) else list(indices), dtype=np.int64)
    if not len(array):
        return ""
    breaks = np.flatnonzero(np.diff(array) != 1)
    starts = array[np.concatenate(([0], breaks + 1))].tolist()
    ends = array[np.concatenate((breaks, [len(array) - 1]))].tolist()
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in zip(starts, ends, strict=True))


def _bounds(text: str) -> tuple[Indices, Indices, npt.NDArray[np.bool_]]:
    """First and last index of every item of a well-formed range string, and whether it is a range; all are read at once."""
    letters = np.frombuffer(text.encode("ascii"), dtype=np.uint8)
    ends = np.append(np.flatnonzero(letters < ord("0")), len(letters))  # commas and dashes
    starts = np.concatenate(([0], ends[:-1] + 1))
    numbers = np.zeros(len(ends), dtype=np.int64)
    for place in range(int((ends - starts).max())):
        here = starts + place
        longer = np.flatnonzero(here < ends)
        numbers[longer] = numbers[longer] * 10 + (letters[here[longer]] - np.uint8(ord("0")))
    # A number that follows a dash is the last index of the item that the number before it begins.
    after_dash = np.concatenate(([False], letters[ends[:-1]] == ord("-")))
    heads = np.flatnonzero(~after_dash)
    is_range = np.append(after_dash[1:], False)[heads]
    return numbers[heads], numbers[heads + is_range], is_range


def _refuse(text: str, wrong: npt.NDArray[np.bool_], why: str) -> None:
    if wrong.any():
        raise ValueError(f"{_short(text.split(',')[int(np.argmax(wrong))])} {why}")


def _short(text: str) -> str:
    """The text quoted, its middle left out where it is long."""
    return repr(text if len(text) <= 40 else f"{text[:20]}...{text[-15:]}")
