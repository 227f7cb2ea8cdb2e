"""Bit equality of matrices, compiled: it must keep pace with memory. numba is in every stack."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

_COMPILE: dict[str, Any] = {"nogil": True, "cache": True, "boundscheck": False}
_TILE = 32  # elements: a cache line of 2-byte elements
_LOW, _EVEN = np.uint64(0x00000000FFFFFFFF), np.uint64(0x0000FFFF0000FFFF)
_HALF, _QUARTER = np.uint64(32), np.uint64(16)


@numba.njit(**_COMPILE)
def rows_equal(one: Any, other: Any, count: int) -> bool:
    """Whether the first ``count`` elements of every row are equal; both arrays contiguous."""
    for row in range(min(one.shape[0], other.shape[0])):
        a, b = one[row], other[row]
        odd = a[0] ^ b[0]
        for place in range(count):
            odd |= a[place] ^ b[place]
        if odd:
            return False
    return True


@numba.njit(**_COMPILE)
def any_set(matrix: Any, count: int) -> bool:
    """Whether a bit is set in the first ``count`` elements of a row; contiguous."""
    for row in range(matrix.shape[0]):
        line = matrix[row]
        found = line[0]
        for place in range(count):
            found |= line[place]
        if found:
            return True
    return False


@numba.njit(**_COMPILE)
def turned_equal(one: Any, other: Any, rows: int, columns: int) -> bool:
    """Whether 2-byte matrices are each other's transpose, four elements to a word of 64 bits.

    Args:
        one: words of [rows, columns], contiguous, whatever follows in a row.
        other: words of [columns, rows], alike.
        rows: a multiple of 4.
        columns: alike.
    """
    for top in range(0, rows, _TILE):
        bottom = min(top + _TILE, rows)
        for left in range(0, columns, 4):
            odd = np.uint64(0)
            for row in range(top, bottom, 4):
                odd |= _block(one, other, row, left)
            if odd:
                return False
    return True


@numba.njit(inline="always")
def _block(one: Any, other: Any, row: int, column: int) -> Any:
    """What differs in 4 x 4 elements: those of ``one`` are transposed in registers."""
    at, there = column // 4, row // 4
    a, b, c, d = one[row, at], one[row + 1, at], one[row + 2, at], one[row + 3, at]
    e, f = (a & _LOW) | (c << _HALF), (b & _LOW) | (d << _HALF)
    g, h = (a >> _HALF) | (c & ~_LOW), (b >> _HALF) | (d & ~_LOW)
    first = (e & _EVEN) | ((f & _EVEN) << _QUARTER)
    second = ((e >> _QUARTER) & _EVEN) | (f & ~_EVEN)
    third = (g & _EVEN) | ((h & _EVEN) << _QUARTER)
    fourth = ((g >> _QUARTER) & _EVEN) | (h & ~_EVEN)
    odd = (first ^ other[column, there]) | (second ^ other[column + 1, there])
    return odd | (third ^ other[column + 2, there]) | (fourth ^ other[column + 3, there])
