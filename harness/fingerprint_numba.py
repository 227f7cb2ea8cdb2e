"""The first level of :mod:`harness.fingerprint`, compiled: it must keep pace with memory.

numba is in every stack, since vLLM needs it. Compiled once a machine and kept in numba's cache;
the loops carry no dependency but the sums, so that LLVM turns them into vector instructions.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

_ROWS = 8  # of a transposed matrix, summed up before the sums are stored
_COMPILE: dict[str, Any] = {"nogil": True, "cache": True, "boundscheck": False}


@numba.njit(inline="always")
def _element(bits: Any, canonical: bool) -> Any:
    value = np.uint32(bits)
    if canonical and (value & np.uint32(0x7FFF)) > np.uint32(0x7F80):
        value = (value & np.uint32(0x8000)) | np.uint32(0x7FC0)
    return value


@numba.njit(**_COMPILE)
def along(matrix: Any, hidden: int, weights: Any, canonical: bool, sums: Any) -> None:
    """Add up the first ``hidden`` columns of [F, any] into ``sums``, uint32 [4, F]."""
    w0, w1, w2, w3 = weights[0], weights[1], weights[2], weights[3]
    for f in range(matrix.shape[0]):
        row = matrix[f]
        a, b, c, e = np.uint32(0), np.uint32(0), np.uint32(0), np.uint32(0)
        for d in range(hidden):
            x = _element(row[d], canonical)
            a += x * w0[d]
            b += x * w1[d]
            c += x * w2[d]
            e += x * w3[d]
        sums[0, f] += a
        sums[1, f] += b
        sums[2, f] += c
        sums[3, f] += e


@numba.njit(**_COMPILE)
def across(matrix: Any, features: int, weights: Any, canonical: bool, sums: Any) -> None:
    """Add up the first ``features`` columns of [D, any] into ``sums``, uint32 [4, F]."""
    hidden = matrix.shape[0]
    whole = hidden - hidden % _ROWS
    for d in range(0, whole, _ROWS):
        r0, r1, r2, r3 = matrix[d], matrix[d + 1], matrix[d + 2], matrix[d + 3]
        r4, r5, r6, r7 = matrix[d + 4], matrix[d + 5], matrix[d + 6], matrix[d + 7]
        for lane in range(4):
            w, out = weights[lane], sums[lane]
            w0, w1, w2, w3 = w[d], w[d + 1], w[d + 2], w[d + 3]
            w4, w5, w6, w7 = w[d + 4], w[d + 5], w[d + 6], w[d + 7]
            for f in range(features):
                total = _element(r0[f], canonical) * w0 + _element(r1[f], canonical) * w1
                total += _element(r2[f], canonical) * w2 + _element(r3[f], canonical) * w3
                total += _element(r4[f], canonical) * w4 + _element(r5[f], canonical) * w5
                total += _element(r6[f], canonical) * w6 + _element(r7[f], canonical) * w7
                out[f] += total
    for d in range(whole, hidden):
        for lane in range(4):
            for f in range(features):
                sums[lane, f] += _element(matrix[d, f], canonical) * weights[lane, d]
