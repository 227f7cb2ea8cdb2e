"""Passes over arrays find what numpy's do, in the memory of a stretch."""

from __future__ import annotations

import numpy as np
import pytest

from harness.base.scanning import equal, nonzero, stretches, unequal
from tests.support.memory import peak


@pytest.mark.parametrize("shape", [(7,), (3, 5), (5, 1, 4), (1, 9), (2, 3, 2, 2)])
@pytest.mark.parametrize("stretch", [1, 4, 1 << 20])
def test_first_and_number_are_those_of_all_indices(shape: tuple[int, ...], stretch: int) -> None:
    rng = np.random.default_rng(len(shape))
    for share in (0.0, 0.1, 1.0):
        bits = (rng.random(shape) < share).astype(np.uint16)
        places = np.argwhere(bits)
        found = nonzero(bits, stretch)
        assert (found is None) == (not len(places))
        if found:
            assert found.first == tuple(places[0])
            assert found.count == len(places)
        assert unequal(bits, np.zeros_like(bits), stretch) == found
        assert equal(bits, np.zeros_like(bits), stretch) == (found is None)


def test_a_transposed_view_is_passed_in_its_own_order() -> None:
    bits = np.zeros((4, 6), np.uint16)
    bits[3, 1] = bits[0, 5] = 1
    found, turned = nonzero(bits), nonzero(bits.T)
    assert found is not None
    assert turned is not None
    assert (found.first, turned.first) == ((0, 5), (1, 3))


@pytest.mark.parametrize("value", [0, 3])
def test_a_scalar_has_no_index(value: int) -> None:
    found = nonzero(np.array(value, np.uint32))
    assert (found.first, found.count) == ((), 1) if found else not value


def test_another_shape_is_not_equal() -> None:
    assert not equal(np.zeros((2, 3), np.uint16), np.zeros((3, 2), np.uint16))


def test_every_row_is_in_one_stretch() -> None:
    assert list(stretches((3, 1 << 21))) == [slice(0, 1), slice(1, 2), slice(2, 3)]
    assert list(stretches((0, 4))) == []


@pytest.mark.parametrize("turned", [False, True])
def test_a_tensor_that_differs_everywhere_takes_the_memory_of_a_stretch(turned: bool) -> None:
    """All indices of 16 million elements are 256 MB."""
    one = np.zeros((1 << 14, 1 << 10), np.uint16)
    other = np.ones_like(one)
    pair = (one.T, other.T) if turned else (one, other)
    assert peak(lambda: unequal(*pair)) < 8 << 20
