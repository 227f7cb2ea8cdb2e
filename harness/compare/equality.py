"""Whether two arrays of raw bits are equal: all of the comparison's time while nothing differs."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, lru_cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from harness.base.bits import Bits

T = TypeVar("T")
R = TypeVar("R")
_CORES = len(os.sched_getaffinity(0))
_AHEAD = 4 * _CORES


def equal_bits(device: Bits, reference: Bits) -> bool:
    """Whether two arrays of one shape hold the same bits, whatever their strides."""
    return all_equal([(device, reference)])


def all_equal(pairs: Iterable[tuple[Bits, Bits]]) -> bool:
    """Whether the arrays of every pair, device and reference, hold the same bits.

    One compiled call judges all pairs that lie in rows, and all matrices of two bytes an element
    of which one is stored transposed: threads wait for each other at each call. Any other array,
    and all without numba, are judged by numpy.
    """
    # tables hold addresses: the arrays must outlive the call, and a scalar is none
    kept = [(np.asarray(device), np.asarray(reference)) for device, reference in pairs]
    strips, turns, others, compiled = [], [], [], kernels()
    for device, reference in kept:
        if device.shape != reference.shape or device.dtype != reference.dtype:
            return False
        if not compiled:
            others.append((device, reference))
        elif strip := _strip(device, reference) or _strip(device.T, reference.T):
            strips.append(strip)
        elif turn := _turn(reference, device.T) or _turn(reference.T, device):
            turns.append(turn)
        else:
            others.append((device, reference))
    if compiled and not compiled.all_equal(_table(strips), _table(turns)):
        return False
    return all(np.array_equal(*pair) for pair in others)


@lru_cache(64)
def zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Bits:
    """A matrix of zeros, all rows of it the same memory."""
    return np.broadcast_to(np.zeros(shape[1:], dtype), shape)


_Row = tuple[int, int, int, int, int, int]


def _table(rows: list[_Row]) -> npt.NDArray[np.int64]:
    return np.array(rows, np.int64).reshape(-1, 6)


def _strip(one: Bits, other: Bits) -> _Row | None:
    """Two arrays as ``strips_equal`` has them; None unless rows of both are contiguous."""
    if one.flags.c_contiguous and other.flags.c_contiguous:
        return _start(one), 0, _start(other), 0, one.nbytes, 1
    if one.ndim != 2 or not (_has_rows(one) and _has_rows(other)):
        return None
    rows, columns = one.shape
    apart, other_apart = one.strides[0], other.strides[0]
    return _start(one), apart, _start(other), other_apart, columns * one.itemsize, rows


def _turn(one: Bits, other: Bits) -> _Row | None:
    """A matrix and a transposed one as ``turned_equal`` has them; None where it cannot."""
    if one.ndim != 2 or one.itemsize != 2 or not (_has_rows(one) and _has_rows(other)):
        return None
    if any(size % 4 for size in one.shape):
        return None
    apart, other_apart = one.strides[0], other.strides[0]
    if apart <= 0 or other_apart <= 0 or apart % 8 or other_apart % 8:
        return None
    return _start(one), apart // 8, _start(other), other_apart // 8, *one.shape


def _start(array: Bits) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _has_rows(matrix: Bits) -> bool:
    return matrix.strides[1] == matrix.itemsize or matrix.shape[1] == 1


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


@cache
def kernels() -> Any:
    """The compiled kernels, or None where numba, which vLLM brings along, is absent."""
    try:
        from harness.compare import equality_numba as equal_numba
    except ImportError:
        return None
    return equal_numba


def warm_up() -> None:
    """Have the kernels compiled, or read from numba's cache, before they are wanted."""
    matrix = np.zeros((4, 8), dtype=np.uint16)
    for other in (matrix[:, :4], matrix[:, :4].copy().T):
        equal_bits(matrix[:, :4], other)
