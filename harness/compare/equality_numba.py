"""Bit equality of matrices, compiled: it must keep pace with memory. numba is in every stack."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types

_COMPILE: dict[str, Any] = {"nogil": True, "cache": True, "boundscheck": False}
# Indexes are unsigned: numba lets signed ones count from the end, and LLVM then makes no vectors.
_WORD = np.uint64
_TALL, _WIDE = _WORD(256), _WORD(32)  # a tile: 16 KiB, and a cache line across
_ZERO, _FOUR = _WORD(0), _WORD(4)
_LOW, _EVEN = _WORD(0x00000000FFFFFFFF), _WORD(0x0000FFFF0000FFFF)
_HALF, _QUARTER = _WORD(32), _WORD(16)
_GROUPS = _TALL // _FOUR  # of four rows
_PLANE = _GROUPS * (_WIDE // _FOUR)  # words of a tile from the same row of their group

#: The C library's, for rows of any length and alignment; bound when compiled code is loaded.
_memcmp = types.ExternalFunction("memcmp", types.int32(types.uintp, types.uintp, types.uintp))


@numba.njit(**_COMPILE)
def all_equal(strips: Any, turns: Any) -> bool:
    """Whether all of both hold the same bits: see ``strips_equal`` and ``turned_equal``."""
    if not strips_equal(strips):
        return False
    for one, apart, other, other_apart, rows, columns in turns:
        if not turned_equal(
            _words(one, apart * rows), _WORD(apart),
            _words(other, other_apart * columns), _WORD(other_apart), rows, columns,
        ):  # fmt: skip
            return False
    return True


@numba.njit(**_COMPILE)
def strips_equal(strips: Any) -> bool:
    """Whether rows of memory hold the same bytes.

    Args:
        strips: int64, a row each: an address and the bytes from one row to the next, the same of
            what it is held against, bytes of a row, number of rows.
    """
    for one, apart, other, other_apart, nbytes, rows in strips:
        for row in range(rows):
            if _memcmp(one + row * apart, other + row * other_apart, nbytes):
                return False
    return True


@numba.extending.intrinsic
def _pointer(typing: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.uint64)(types.int64), generate


@numba.njit(**_COMPILE)
def _words(address: Any, count: Any) -> Any:
    """Memory as words of 64 bits."""
    return numba.carray(_pointer(address), (count,))


@numba.njit(**_COMPILE)
def turned_equal(
    flat: Any, apart: Any, turned: Any, turned_apart: Any, rows: int, columns: int
) -> bool:
    """Whether 2-byte matrices are each other's transpose, four elements to a word of 64 bits.

    A tile of the first is copied into order, then turned in registers and compared, both eight
    words at a time. Rows a power of two apart share few cache lines, hence the copy.

    Args:
        flat: words of [rows, columns]; better in the cache, a line of it is read at a time.
        apart: words from one row to the next.
        turned: words of [columns, rows]; read half a KiB at a time.
        turned_apart: alike.
        rows: a multiple of 4.
        columns: alike.
    """
    tile = np.empty(_FOUR * _PLANE, np.uint64)
    height, width = _WORD(rows), _WORD(columns)
    for top in range(_ZERO, height, _TALL):
        groups = min(_TALL, height - top) // _FOUR
        for left in range(_ZERO, width, _WIDE):
            words = min(_WIDE, width - left) // _FOUR
            _gather(tile, flat, top * apart + left // _FOUR, apart, groups, words)
            odd = _ZERO
            for word in range(_ZERO, words):
                at = (left + _FOUR * word) * turned_apart + top // _FOUR
                odd |= _turned(tile, word * _GROUPS, turned, at, turned_apart, groups)
            if odd:
                return False
    return True


@numba.njit(**_COMPILE)
def _gather(tile: Any, flat: Any, start: Any, apart: Any, groups: Any, words: Any) -> None:
    """Copy a tile as [row of its group, word, group]: words of four rows come to lie in planes."""
    for group in range(_ZERO, groups):
        for row in range(_ZERO, _FOUR):
            line = start + (_FOUR * group + row) * apart
            for word in range(_ZERO, words):
                tile[row * _PLANE + word * _GROUPS + group] = flat[line + word]


@numba.njit(**_COMPILE)
def _turned(tile: Any, place: Any, other: Any, at: Any, apart: Any, groups: Any) -> Any:
    """What differs in four columns of a tile: 4 x 4 elements are transposed in registers."""
    odd = _ZERO
    for group in range(_ZERO, groups):
        a, b = tile[place + group], tile[place + _PLANE + group]
        c, d = tile[place + _PLANE + _PLANE + group], tile[place + _PLANE * _WORD(3) + group]
        e, f = (a & _LOW) | (c << _HALF), (b & _LOW) | (d << _HALF)
        g, h = (a >> _HALF) | (c & ~_LOW), (b >> _HALF) | (d & ~_LOW)
        odd |= ((e & _EVEN) | ((f & _EVEN) << _QUARTER)) ^ other[at + group]
        odd |= (((e >> _QUARTER) & _EVEN) | (f & ~_EVEN)) ^ other[at + apart + group]
        odd |= ((g & _EVEN) | ((h & _EVEN) << _QUARTER)) ^ other[at + apart + apart + group]
        odd |= (((g >> _QUARTER) & _EVEN) | (h & ~_EVEN)) ^ other[at + apart * _WORD(3) + group]
    return odd
