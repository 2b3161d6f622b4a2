"""Symbolic sizes: products of an integer and named unknowns, so that ``B * 12`` divides by ``12`` without knowing B."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Dim:
    """A non-negative size ``coef * syms[0] * syms[1] * ...``; a sum or quotient that is no product is one opaque symbol."""

    coef: int
    syms: tuple[str, ...] = ()

    def __mul__(self, other: Dim) -> Dim:
        return Dim(self.coef * other.coef, tuple(sorted(self.syms + other.syms)))

    def __str__(self) -> str:
        return "*".join([str(self.coef)] * (self.coef != 1 or not self.syms) + list(self.syms))

    @property
    def value(self) -> int | None:
        """The size where it is a plain integer, else None."""
        return None if self.syms else self.coef

    def over(self, other: Dim) -> Dim | None:
        """``self / other`` where that is exact for every value of the unknowns, else None."""
        if other.coef == 0 or self.coef % other.coef:
            return None
        left = Counter(self.syms)
        left.subtract(other.syms)
        if any(n < 0 for n in left.values()):
            return None
        return Dim(self.coef // other.coef, tuple(sorted(left.elements())))


_SPELLED = 160  # characters

ONE = Dim(1)
Shape = tuple[Dim, ...]


def dim(value: int) -> Dim:
    """A known size (or integer content; negative ones are allowed there)."""
    return Dim(value)


def opaque(kind: str, *parts: object) -> Dim:
    """A symbol for a quantity that is no product; equal parts give equal symbols.

    Symbols are spelled out while they are short. A long one is a digest of its spelling: each residual block of a convolutional
    network would double it.
    """
    spelled = ",".join(str(p) for p in parts)
    if len(spelled) > _SPELLED:
        spelled = hashlib.blake2b(spelled.encode(), digest_size=12).hexdigest()
    return Dim(1, (f"{kind}({spelled})",))


def product(dims: Iterable[Dim]) -> Dim:
    """The product of sizes; 1 for none."""
    result = ONE
    for item in dims:
        result = result * item
    return result


def one_of(size: Dim) -> Dim:
    """How many there are of one entry of an axis, its first or its last: 1, or 0 where the axis is empty."""
    return dim(min(size.value, 1)) if size.value is not None else opaque("one", size)


def broadcast(shapes: Sequence[Shape]) -> Shape:
    """Numpy broadcasting; an unknown against a known size above 1 is taken for the known one (else the model would not run)."""
    rank = max(len(s) for s in shapes)
    result: list[Dim] = []
    for i in range(rank):
        dims = [s[len(s) - rank + i] for s in shapes if len(s) - rank + i >= 0]
        rest = sorted({d for d in dims if d != ONE}, key=str)
        if len(rest) > 1:
            # One entry of an axis beside all of it: also of an empty axis there is none.
            singles = {one_of(d) for d in rest if d.value is None}
            rest = [d for d in rest if d not in singles]
        known = [d for d in rest if d.value is not None]
        if not rest:
            result.append(ONE)
        elif len(rest) == 1:
            result.append(rest[0])
        else:
            result.append(known[0] if known else opaque("bcast", *rest))
    return tuple(result)


def add(a: Dim, b: Dim) -> Dim:
    """Sum; opaque unless both are known or one is zero."""
    if a.value is not None and b.value is not None:
        return Dim(a.value + b.value)
    if a.value == 0 or b.value == 0:
        return b if a.value == 0 else a
    return opaque("add", *sorted((str(a), str(b))))


def floor_div(a: Dim, b: Dim) -> Dim:
    """Integer quotient as ONNX Div computes it for sizes; opaque unless exact or known."""
    if a.value is not None and b.value:
        return Dim(math.trunc(a.value / b.value) if abs(a.value) < 2**52 else a.value // b.value)
    exact = a.over(b)
    return exact if exact is not None else opaque("div", a, b)
