"""Which unit of one site is most like which unit of another: cosine similarity and optimal assignment.

N units, D numbers a member; B and R are the base's and the reader's heads, P units a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from inarch.structure.units import Indices

Vectors = Sequence[npt.NDArray[np.float32]]
Floats = npt.NDArray[np.float64]

ASSIGNMENT_LIMIT = 4096
"""Units in one exact assignment: 4096 take a few seconds and 134 MB; time grows with the cube."""

_BLOCK = 1024


def cosines(base: Vectors, reader: Vectors) -> Floats:
    """Cosine similarity of every pair of units, averaged over the members.

    float64, so that the order in which BLAS adds up does not decide an assignment.

    Args:
        base: one [N, D] array of unit-length vectors a member.
        reader: as ``base``, the same members.

    Returns:
        Shape [N of base, N of reader].
    """
    total = np.zeros((len(base[0]), len(reader[0])))
    for a, b in zip(base, reader, strict=True):
        total += a.astype(np.float64) @ b.astype(np.float64).T
    return total / len(base)


def assign(similarity: Floats) -> Indices:
    """For each row its column, so that the sum of similarities is largest; [N, N] -> [N]."""
    _, columns = linear_sum_assignment(similarity, maximize=True)
    return np.asarray(columns, np.int64)


def match_units(base: Vectors, reader: Vectors, limit: int = ASSIGNMENT_LIMIT) -> tuple[Indices, Floats]:
    """Pair every unit of the base with one of the reader, any with any.

    Exact up to ``limit`` units. Above, units that are each other's nearest are paired first, and the rest in portions of
    ``limit`` units along the direction in which the base varies most: memory O(limit^2), no quality lost where the reader
    is a noisy permutation.

    Returns:
        The reader's unit for each unit of the base, [N]; and their cosine distance, [N].
    """
    count = len(base[0])
    if count <= limit:
        similarity = cosines(base, reader)
        partner = assign(similarity)
        return partner, 1.0 - similarity[np.arange(count), partner]
    partner = _mutual(base, reader)
    left = np.flatnonzero(partner < 0)
    free = np.setdiff1d(np.arange(count), partner[partner >= 0])
    if len(left):
        axis = _main_direction([v[left] for v in base])
        left = left[np.argsort(_project([v[left] for v in base], axis), kind="stable")]
        free = free[np.argsort(_project([v[free] for v in reader], axis), kind="stable")]
        for start in range(0, len(left), limit):
            rows, columns = left[start : start + limit], free[start : start + limit]
            partner[rows] = columns[assign(cosines([v[rows] for v in base], [v[columns] for v in reader]))]
    distance = np.zeros(count)
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        for a, b in zip(base, reader, strict=True):
            distance[start:stop] += np.einsum("nd,nd->n", a[start:stop].astype(np.float64), b[partner[start:stop]])
    return partner, 1.0 - distance / len(base)


def _mutual(base: Vectors, reader: Vectors) -> Indices:
    """The reader's unit for each unit of the base where both are each other's nearest, else -1."""
    count = len(base[0])
    nearest = np.empty(count, np.int64)
    best = np.full(count, -np.inf)
    back = np.zeros(count, np.int64)
    for start in range(0, count, _BLOCK):
        part = cosines([v[start : start + _BLOCK] for v in base], reader)
        nearest[start : start + _BLOCK] = part.argmax(axis=1)
        above = part.max(axis=0)
        better = above > best
        back[better] = start + part.argmax(axis=0)[better]
        best = np.maximum(best, above)
    mutual = back[nearest] == np.arange(count)
    return np.where(mutual, nearest, -1)


def _main_direction(vectors: Vectors) -> list[Floats]:
    """Leading principal direction by a few power iterations from a fixed start, one [D] array a member."""
    generator = np.random.default_rng(0)
    axis: list[Floats] = [np.asarray(generator.standard_normal(v.shape[1])) for v in vectors]
    for _ in range(8):
        along = _project(vectors, axis)
        axis = [along @ v.astype(np.float64) for v in vectors]
        length = float(np.sqrt(sum(float(a @ a) for a in axis)))
        if length > 0:
            axis = [a / length for a in axis]
    return axis


def _project(vectors: Vectors, axis: Sequence[Floats]) -> Floats:
    total = np.zeros(len(vectors[0]))
    for v, a in zip(vectors, axis, strict=True):
        total += v.astype(np.float64) @ a
    return total


def match_heads(
    axes: Sequence[tuple[Vectors, Vectors]], base_heads: int, reader_heads: int, *, keep_heads: bool, keep_units: Sequence[bool]
) -> list[tuple[Indices, Floats]]:
    """Pair the units of two MSAs: heads by assignment first, then units inside paired heads.

    Where the base has k times as many heads (and as many units in all), k neighbouring heads of the base meet one head of
    the reader.

    Args:
        axes: (base, reader) vectors of every axis.
        base_heads: B, a multiple of ``reader_heads``.
        reader_heads: R.
        keep_heads: pair head h with head h.
        keep_units: by axis, pair unit j of a head with unit j of the paired head (B = R).

    Returns:
        By axis, the reader's unit for each unit of the base, [N], and their cosine distance, [N].
    """
    similarities = [cosines(base, reader) for base, reader in axes]
    tables: list[list[list[Indices]]] = []
    totals = np.zeros((reader_heads, reader_heads))
    for similarity, keep, (vectors, _) in zip(similarities, keep_units, axes, strict=True):
        size = len(similarity) // reader_heads
        blocks = similarity.reshape(reader_heads, size, reader_heads, size).transpose(0, 2, 1, 3)
        table = [
            [np.arange(size, dtype=np.int64) if keep else assign(blocks[i, j]) for j in range(reader_heads)]
            for i in range(reader_heads)
        ]
        tables.append(table)
        for i in range(reader_heads):
            for j in range(reader_heads):
                # Weighted by the vectors' length, so that an axis counts by its parameters.
                weight = sum(v.shape[1] for v in vectors)
                totals[i, j] += weight * blocks[i, j][np.arange(size), table[i][j]].sum()
    heads = np.arange(reader_heads, dtype=np.int64) if keep_heads else assign(totals)
    result = []
    for similarity, table in zip(similarities, tables, strict=True):
        size = len(similarity) // reader_heads
        partner = np.concatenate([heads[i] * size + table[i][heads[i]] for i in range(reader_heads)])
        result.append((partner, 1.0 - similarity[np.arange(len(partner)), partner]))
    return result
