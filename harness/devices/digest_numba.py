"""The first level of :mod:`harness.devices.digest`, compiled: it must keep pace with memory.

numba is in every stack, since vLLM needs it. Compiled once a machine and kept in numba's cache;
the loops carry no dependency but the sums, so that LLVM turns them into vector instructions.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types

SPREAD = 0x9E3779B1  # as in harness.devices.digest, which imports this file
#: The C library's; bound when compiled code is loaded.
_pread = types.ExternalFunction(
    "pread", types.intp(types.int32, types.uintp, types.uintp, types.int64)
)
_STRIP = 128  # words; with their sums 5 KiB
_COMPILE: dict[str, Any] = {"nogil": True, "cache": True, "boundscheck": False}


@numba.njit(inline="always")
def _turned(word: Any) -> Any:
    word = np.uint32(np.uint32(word) * np.uint32(SPREAD))  # numba's product has 64 bits
    return np.uint32(word << np.uint32(16)) | np.uint32(word >> np.uint32(16))


@numba.njit(inline="always")
def _pair(lower: Any, upper: Any) -> Any:
    return _turned(np.uint32(lower) | np.uint32(np.uint32(upper) << np.uint32(16)))


@numba.njit(**_COMPILE)
def along(words: Any, count: int, weights: Any, sums: Any) -> None:
    """Add up the first ``count`` words of each row of [F, any] into ``sums``, uint32 [4, F]."""
    w0, w1, w2, w3 = weights[0], weights[1], weights[2], weights[3]
    for f in range(words.shape[0]):
        row = words[f]
        a, b, c, e = np.uint32(0), np.uint32(0), np.uint32(0), np.uint32(0)
        for j in range(count):
            z = _turned(row[j])
            a += z * w0[j]
            b += z * w1[j]
            c += z * w2[j]
            e += z * w3[j]
        sums[0, f] += a
        sums[1, f] += b
        sums[2, f] += c
        sums[3, f] += e


@numba.njit(**_COMPILE)
def across(matrix: Any, features: int, weights: Any, sums: Any) -> None:
    """Add up the first ``features`` columns of [D, any], D even, into ``sums``, uint32 [4, F]."""
    pairs = matrix.shape[0] // 2
    whole = pairs - pairs % 4
    s0, s1, s2, s3 = sums[0], sums[1], sums[2], sums[3]
    for j in range(0, whole, 4):
        r0, r1, r2, r3 = matrix[2 * j], matrix[2 * j + 1], matrix[2 * j + 2], matrix[2 * j + 3]
        r4, r5, r6, r7 = matrix[2 * j + 4], matrix[2 * j + 5], matrix[2 * j + 6], matrix[2 * j + 7]
        for f in range(features):
            z0, z1, z2, z3 = (
                _pair(r0[f], r1[f]), _pair(r2[f], r3[f]), _pair(r4[f], r5[f]), _pair(r6[f], r7[f])
            )  # fmt: skip
            w = weights[0]
            s0[f] += z0 * w[j] + z1 * w[j + 1] + z2 * w[j + 2] + z3 * w[j + 3]
            w = weights[1]
            s1[f] += z0 * w[j] + z1 * w[j + 1] + z2 * w[j + 2] + z3 * w[j + 3]
            w = weights[2]
            s2[f] += z0 * w[j] + z1 * w[j + 1] + z2 * w[j + 2] + z3 * w[j + 3]
            w = weights[3]
            s3[f] += z0 * w[j] + z1 * w[j + 1] + z2 * w[j + 2] + z3 * w[j + 3]
    for j in range(whole, pairs):
        for lane in range(4):
            for f in range(features):
                sums[lane, f] += _pair(matrix[2 * j, f], matrix[2 * j + 1, f]) * weights[lane, j]


@numba.njit(**_COMPILE)
def across_words(words: Any, pairs: int, weights: Any, sums: Any) -> None:
    """The same of 2-byte elements, two columns to each of the first ``pairs`` words of a row.

    Twice as fast: no element is widened. Sums of a strip of columns stay in the first-level cache
    until all rows are added up.
    """
    low, high, half = np.uint32(0xFFFF), np.uint32(0xFFFF0000), np.uint32(16)
    strip = np.zeros((8, _STRIP), np.uint32)
    for left in range(0, pairs, _STRIP):
        width = min(_STRIP, pairs - left)
        strip[:] = 0
        a0, a1, a2, a3 = strip[0], strip[1], strip[2], strip[3]
        b0, b1, b2, b3 = strip[4], strip[5], strip[6], strip[7]
        for j in range(words.shape[0] // 2):
            upper, lower = words[2 * j, left : left + width], words[2 * j + 1, left : left + width]
            w0, w1, w2, w3 = weights[0, j], weights[1, j], weights[2, j], weights[3, j]
            for f in range(width):
                even = _turned((upper[f] & low) | np.uint32(lower[f] << half))
                odd = _turned(np.uint32(upper[f] >> half) | (lower[f] & high))
                a0[f] += np.uint32(even * w0)
                a1[f] += np.uint32(even * w1)
                a2[f] += np.uint32(even * w2)
                a3[f] += np.uint32(even * w3)
                b0[f] += np.uint32(odd * w0)
                b1[f] += np.uint32(odd * w1)
                b2[f] += np.uint32(odd * w2)
                b3[f] += np.uint32(odd * w3)
        for lane in range(4):
            for f in range(width):
                sums[lane, 2 * (left + f)] += strip[lane, f]
                sums[lane, 2 * (left + f) + 1] += strip[4 + lane, f]


@numba.njit(inline="always")
def _mixed(word: Any) -> Any:
    word = np.uint32(word)
    word = np.uint32((word ^ (word >> np.uint32(16))) * np.uint32(0x85EBCA6B))
    word = np.uint32((word ^ (word >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    return word ^ (word >> np.uint32(16))


@numba.njit(**_COMPILE)
def finish(sums: Any, keys: Any, out: Any) -> None:
    """Add the second level of sums, uint32 [4, F], with as many keys, to ``out``, uint32 [4]."""
    for lane in range(4):
        of_lane, of_keys, total = sums[lane], keys[lane], np.uint32(0)
        for f in range(of_lane.shape[0]):
            total += _mixed(np.uint32(of_lane[f] + of_keys[f]))
        out[lane] += total


@numba.njit(**_COMPILE)
def read_sums(
    descriptor: int, offset: int, rows: int, buffer: Any, across: bool, weights: Any, sums: Any
) -> int:
    """Read rows of a file into a buffer, some at a time, and add them up; holds no lock meanwhile.

    Args:
        descriptor: of the file.
        offset: of the first row.
        rows: how many.
        buffer: uint32 [some rows, words of a row]; an even number of rows.
        across: whether columns of two bytes are features, two to a word; else rows are.
        weights: of a feature's words, in memory of their own.
        sums: zeros, uint32 [4, features].

    Returns:
        How many rows were read: fewer where the file could not be.
    """
    at, nbytes = buffer.ctypes.data, buffer.shape[1] * 4
    row = 0
    while row < rows:
        height = min(buffer.shape[0], rows - row)
        done, wanted = 0, height * nbytes
        while done < wanted:
            count = _pread(descriptor, at + done, wanted - done, offset + row * nbytes + done)
            if count <= 0:
                return row
            done += count
        if across:
            across_words(buffer[:height], buffer.shape[1], weights[:, row // 2 :], sums)
        else:
            along(buffer[:height], buffer.shape[1], weights, sums[:, row : row + height])
        row += height
    return row
