"""Whether two arrays of raw bits are equal: all of the comparison's time while nothing differs."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

import numpy as np

from harness.dtypes import Bits

T = TypeVar("T")
R = TypeVar("R")
_CORES = len(os.sched_getaffinity(0))
_AHEAD = 4 * _CORES


def equal_bits(device: Bits, reference: Bits) -> bool:
    """Whether two arrays of one shape hold the same bits, whatever their strides.

    Matrices are read row by row, in whichever order their memory has, and, where one is stored
    transposed, in tiles; any other array, and all without numba, by numpy.
    """
    if device.shape != reference.shape or device.dtype != reference.dtype:
        return False
    kernels = _compiled()
    if kernels is None or device.ndim != 2 or device.itemsize > 8 or not device.size:
        return bool(np.array_equal(device, reference))
    one, other = whole_rows(device), whole_rows(reference)
    if one is not None and other is not None:
        return bool(kernels.rows_equal(one, other, device.shape[1]))
    across = whole_rows(device.T), whole_rows(reference.T)
    if across[0] is not None and across[1] is not None:
        return bool(kernels.rows_equal(*across, device.shape[0]))
    pair = (across[1], one) if one is not None else (other, across[0])  # the reference first
    words = [words_of_four(rows) for rows in pair if rows is not None]
    if len(words) == 2 and all(w is not None for w in words) and _divides(device.shape):
        stored = device.shape[::-1] if one is not None else device.shape
        return bool(kernels.turned_equal(*words, *stored))
    return bool(np.array_equal(device, reference))


def any_set(bits: Bits) -> bool:
    """Whether any bit of a matrix is set."""
    kernels, rows = _compiled(), whole_rows(bits) if bits.ndim == 2 and bits.size else None
    if kernels is None or rows is None:
        return bool(bits.any())
    return bool(kernels.any_set(rows, bits.shape[1]))


def on_all_cores(judge: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """What ``judge`` says of each item, in order; each core has one, and a few wait."""
    ahead: deque[Future[R]] = deque()
    try:
        for item in items:
            ahead.append(_threads().submit(judge, item))
            if len(ahead) == _AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        for future in ahead:
            future.cancel()


@cache
def _threads() -> ThreadPoolExecutor:
    """One thread a core; the kernels hold no lock, and page faults are taken in parallel."""
    return ThreadPoolExecutor(_CORES, thread_name_prefix="compare")


def whole_rows(matrix: Bits) -> Bits | None:
    """A matrix whose rows lie apart, seen with what lies between them, as one contiguous block.

    Only then does numba know that a row is contiguous. What lies between must not be touched: of
    the last row it is no memory of ours. None where the elements of a row lie apart.
    """
    between, itemsize = matrix.strides[0], matrix.itemsize
    if matrix.strides[1] != itemsize and matrix.shape[1] > 1:
        return None
    if len(matrix) < 2:
        return np.ascontiguousarray(matrix)
    if between % itemsize or between < matrix.shape[1] * itemsize:
        return None
    shape = (matrix.shape[0], between // itemsize)
    return np.lib.stride_tricks.as_strided(matrix, shape, (between, itemsize), writeable=False)


def words_of_four(rows: Bits) -> Bits | None:
    """A block of 2-byte elements as words of four; None where rows do not divide into them."""
    if rows.itemsize != 2 or rows.shape[1] % 4:
        return None
    return rows.view("<u8")


def _divides(shape: tuple[int, ...]) -> bool:
    return all(size % 4 == 0 for size in shape)


@cache
def _compiled() -> Any:
    """The compiled kernels, or None where numba, which vLLM brings along, is absent."""
    try:
        from harness import equal_numba
    except ImportError:
        return None
    return equal_numba


def warm_up() -> None:
    """Have the kernels compiled, or read from numba's cache, before they are wanted."""
    matrix = np.zeros((4, 8), dtype=np.uint16)
    for other in (matrix[:, :4], matrix[:, :4].copy().T):
        equal_bits(matrix[:, :4], other)
    any_set(matrix)
