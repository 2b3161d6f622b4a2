"""Symbolic sizes behave as the numbers that they stand for."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inarch.structure.dims import ONE, Dim, add, broadcast, dim, floor_div, one_of, opaque, product

NUMBERS = {"B": 6, "S": 35, "H": 11}
"""What the symbols are worth here; no two are equal, and each has a divisor that others lack."""

DIMS = st.builds(lambda n, syms: Dim(n, tuple(sorted(syms))), st.integers(1, 24), st.lists(st.sampled_from("BSH"), max_size=2))


def worth(size: Dim) -> int:
    return size.coef * math.prod(NUMBERS[symbol] for symbol in size.syms)


@given(DIMS, DIMS)
def test_products_and_quotients_are_exact(a: Dim, b: Dim) -> None:
    assert worth(a * b) == worth(a) * worth(b)
    assert (a * b).over(b) == a
    quotient = a.over(b)
    if quotient is not None:
        assert worth(quotient) * worth(b) == worth(a)
        assert quotient * b == a


@given(DIMS, DIMS)
def test_a_quotient_that_holds_for_some_sizes_only_is_none(a: Dim, b: Dim) -> None:
    missing = set(b.syms) - set(a.syms)
    if missing or a.coef % b.coef:
        assert a.over(b) is None


@given(st.lists(DIMS, max_size=4))
def test_product_of_many(sizes: list[Dim]) -> None:
    assert worth(product(sizes)) == math.prod(worth(size) for size in sizes)


def test_values_and_text() -> None:
    assert dim(12).value == 12
    assert Dim(12, ("B",)).value is None
    assert str(Dim(12, ("B", "S"))) == "12*B*S"
    assert str(Dim(1, ("B",))) == "B"
    assert str(ONE) == "1"
    assert Dim(4).over(Dim(0)) is None


def test_sums_and_divisions_that_are_no_products_are_one_symbol() -> None:
    b, s = Dim(1, ("B",)), Dim(1, ("S",))
    assert add(dim(3), dim(4)) == dim(7)
    assert add(b, dim(0)) == add(dim(0), b) == b
    assert add(b, s) == add(s, b) != add(b, b)
    assert add(b, s).value is None
    assert floor_div(dim(7), dim(2)) == dim(3)
    assert floor_div(dim(-7), dim(2)) == dim(-3), "ONNX Div truncates"
    assert floor_div(Dim(12, ("B",)), dim(4)) == Dim(3, ("B",))
    assert floor_div(b, dim(2)) == floor_div(b, dim(2)) != floor_div(s, dim(2))


@pytest.mark.parametrize(
    ("shapes", "result"),
    [
        ([(dim(4), ONE), (dim(5),)], (dim(4), dim(5))),
        ([(Dim(1, ("B",)), dim(3)), (ONE, dim(3))], (Dim(1, ("B",)), dim(3))),
        ([(Dim(1, ("B",)),), (dim(8),)], (dim(8),)),
        ([(), (dim(2),)], (dim(2),)),
    ],
)
def test_broadcasting(shapes: list[tuple[Dim, ...]], result: tuple[Dim, ...]) -> None:
    assert broadcast(shapes) == result


def test_two_unknowns_may_be_either() -> None:
    b, s = Dim(1, ("B",)), Dim(1, ("S",))
    assert broadcast([(b,), (s,)]) == broadcast([(s,), (b,)])
    assert broadcast([(b,), (s,)])[0] not in (b, s)


def test_one_entry_of_an_axis_beside_all_of_it() -> None:
    b, s = Dim(1, ("B",)), Dim(1, ("S",))
    assert [one_of(dim(size)) for size in (0, 1, 7)] == [dim(0), ONE, ONE]
    assert one_of(b) not in (b, ONE)
    # Also where it is empty: 0 beside 0 is 0.
    assert broadcast([(b,), (one_of(b),)]) == broadcast([(one_of(b),), (b,)]) == (b,)
    assert broadcast([(b,), (one_of(s),)])[0] not in (b, s, one_of(s))
    assert broadcast([(one_of(b),), (one_of(b),)]) == (one_of(b),)


def test_symbols_of_deep_networks_stay_short() -> None:
    """Sixty residual blocks, each of which would spell its input's size twice."""

    def deep(start: str) -> Dim:
        size = Dim(1, (start,))
        for _ in range(60):
            size = opaque("bcast", size, opaque("conv", size, 3))
        return size

    assert len(str(deep("H"))) < 200
    assert deep("H") == deep("H")
    assert deep("H") != deep("W")
