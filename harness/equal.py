"""Whether two arrays of raw bits are equal: all of the comparison's time while nothing differs."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, lru_cache
from typing import Any, TypeVar

import numpy as np

from harness.dtypes import Bits

T = TypeVar("T")
R = TypeVar("R")
_CORES = len(os.sched_getaffinity(0))
_AHEAD = 4 * _CORES


def equal_bits(device: Bits, reference: Bits) -> bool:
    """Whether two arrays of one shape hold the same bits, whatever their strides."""
    return all_equal([(device, reference)])


def all_equal(pairs: Iterable[tuple[Bits, Bits]]) -> bool:
    """Whether the arrays of every pair, device and reference, hold the same bits.

    What lies in rows in both is compared by one compiled call for all pairs; matrices of which one
    is stored transposed go by tiles; any other array, and all without numba, by numpy.
    """
    strips, others, kernels = [], [], _compiled()
    # strips are addresses: the arrays must outlive the call, and a scalar is none
    kept = [(np.asarray(device), np.asarray(reference)) for device, reference in pairs]
    for device, reference in kept:
        if device.shape != reference.shape or device.dtype != reference.dtype:
            return False
        strip = _strip(device, reference) or _strip(device.T, reference.T)
        if kernels and strip:
            strips.append(strip)
        else:
            others.append((device, reference))
    if strips and not kernels.strips_equal(np.array(strips, np.int64)):
        return False
    return all(_turned_equal(*pair) for pair in others)


@lru_cache(64)
def zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Bits:
    """A matrix of zeros, all rows of it the same memory."""
    return np.broadcast_to(np.zeros(shape[1:], dtype), shape)


def _strip(one: Bits, other: Bits) -> tuple[int, ...] | None:
    """Two arrays as rows of ``strips_equal``; None unless rows of both are contiguous."""
    starts = one.__array_interface__["data"][0], other.__array_interface__["data"][0]
    if one.flags.c_contiguous and other.flags.c_contiguous:
        return starts[0], 0, starts[1], 0, one.nbytes, 1
    if one.ndim != 2 or not (_has_rows(one) and _has_rows(other)):
        return None
    rows, columns = one.shape
    return starts[0], one.strides[0], starts[1], other.strides[0], columns * one.itemsize, rows


def _has_rows(matrix: Bits) -> bool:
    return matrix.strides[1] == matrix.itemsize or matrix.shape[1] == 1


def _turned_equal(device: Bits, reference: Bits) -> bool:
    """Equality of matrices of which one is stored transposed, and of any other arrays."""
    kernels = _compiled()
    if kernels and device.ndim == 2 and device.size and _divides(device.shape):
        for one, other in ((reference, device.T), (reference.T, device)):
            words = [words_of_four(whole_rows(matrix)) for matrix in (one, other)]
            if all(w is not None for w in words):
                return bool(kernels.turned_equal(*words, *one.shape))
    return bool(np.array_equal(device, reference))


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
    """One thread a core; the kernels hold no lock."""
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


def words_of_four(rows: Bits | None) -> Bits | None:
    """A block of 2-byte elements as words of four; None where rows do not divide into them."""
    if rows is None or rows.itemsize != 2 or rows.shape[1] % 4:
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
