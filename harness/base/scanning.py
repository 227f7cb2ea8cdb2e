"""Passes over large arrays, a stretch at a time: no copy of them, and no array of indices.

What differs may be a tensor of 300 million elements. Whoever looks for its first element that is
wrong, and counts the others, needs the memory of a stretch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.base.bits import Bits

#: Elements of a stretch; its masks and sums stay in a core's cache.
STRETCH = 1 << 20

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Found:
    """Which elements were looked for: the first, in C order, and how many there are."""

    first: tuple[int, ...]
    count: int


def stretches(shape: tuple[int, ...], elements: int = STRETCH) -> Iterator[slice]:
    """Slices of the first axis, in order; each holds a row at least, and so many elements."""
    rows = max(1, elements // max(1, prod(shape[1:])))
    for start in range(0, shape[0], rows):
        yield slice(start, min(start + rows, shape[0]))


def scan(
    is_wanted: Callable[..., Mask], *arrays: npt.NDArray[Any], stretch: int = STRETCH
) -> Found | None:
    """Look for elements: the first of them and their number, or None where there is none.

    Args:
        is_wanted: of the same stretch of every array, which elements are meant.
        arrays: of one shape, of any number of axes.
        stretch: elements that are looked at in one go.
    """
    shape = arrays[0].shape
    if not shape:
        wanted = is_wanted(*(array.reshape(1) for array in arrays))
        return Found((), 1) if wanted.any() else None
    first: tuple[int, ...] | None = None
    count = 0
    for part in stretches(shape, stretch):
        wanted = is_wanted(*(array[part] for array in arrays))
        count += (here := int(np.count_nonzero(wanted)))
        if here and first is None:
            at = np.unravel_index(int(wanted.argmax()), wanted.shape)
            first = (int(at[0]) + part.start, *map(int, at[1:]))
    return None if first is None else Found(first, count)


def unequal(one: npt.NDArray[Any], other: npt.NDArray[Any], stretch: int = STRETCH) -> Found | None:
    """Where two arrays of one shape differ."""
    return scan(np.not_equal, one, other, stretch=stretch)


def nonzero(bits: npt.NDArray[Any], stretch: int = STRETCH) -> Found | None:
    """Where an array is not zero."""
    return scan(lambda part: part != 0, bits, stretch=stretch)


def equal(one: Bits, other: Bits, stretch: int = STRETCH) -> bool:
    """Whether two arrays of one shape hold the same; the first stretch that does not decides."""
    if one.shape != other.shape:
        return False
    return all(np.array_equal(one[part], other[part]) for part in stretches(one.shape, stretch))
