"""Digests of an expert's matrix: 128 bits that any device can sum up in its own order.

A matrix has hidden features, D of them, and intermediate features, F. No packing cuts the hidden
axis, so the digest has two levels:

1. Of each intermediate feature f the elements along the hidden axis are taken together to words
   of 32 bits, y[f, j], two of bf16 each; the last is filled up with zeros. With z = y * c, rotated
   by 16, for each of four lanes ``s[l, f] = sum over j of z[f, j] * w[l, j]`` modulo 2**32; c and
   all w are odd.
2. ``digest[l] = sum over f of mix(s[l, f] + k[l, f])`` modulo 2**32, where mix is a bijection
   that is not linear and k are constants.

Both sums can be taken in any order, so shards give parts that add up, and a transposed or
interleaved matrix gives the same digest. Integers of 32 bits alone: every backend is exact.

How far it is to be trusted. The constants are fixed and the faults do not know them. One changed
word always changes the digest: z is another, and an odd number times a difference below 2**32 is
not zero. Other differences within one feature escape a lane if a sum of differences times
constants is zero; if all differences of z are multiples of 2**v, that happens for one choice of
constants in 2**(31 - v). Over four lanes that is 2**-124 for arbitrary bits, and 2**-64 in the
worst case: only signs differ, and only those of a word's upper half, which the rotation puts at
bit 15 (unrotated they would be multiples of 2**31, and two of them would always cancel). With a
million matrices compared a night, 2**-64 means one miss in 50 million years, so 128 bits suffice
with a margin.
"""

from __future__ import annotations

import math
import threading
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.base.bits import Bits

Words = npt.NDArray[np.uint32]

#: The number of this definition: whoever keeps digests keeps it with them. Any change of what a
#: matrix or tensor digests to raises it.
DEFINITION = 1

LANES = 4
_ELEMENTS = 1 << 15  # a block that fits into the L2 cache, with its products
_WEIGHT_SEED, _KEY_SEED = 0x243F6A88, 0x85A308D3
SPREAD = 0x9E3779B1  # c; its second bit is set, so a lower half's sign reaches bit 0
_MULTIPLIERS = (0x85EBCA6B, 0xC2B2AE35)  # MurmurHash3's finaliser, fmix32


def mixed(words: Any) -> Any:
    """A bijection of uint32, far from linear; of numpy's arrays or any that calculate alike."""
    first, second = (words.dtype.type(m) for m in _MULTIPLIERS)
    words = (words ^ (words >> 16)) * first
    words = (words ^ (words >> 13)) * second
    return words ^ (words >> 16)


def turned(words: Any) -> Any:
    """z of words y; of numpy's arrays or any that calculate alike."""
    words = words * words.dtype.type(SPREAD)
    return (words << 16) | (words >> 16)


@cache
def weights(words: int) -> Words:
    """The odd factors of the words of a feature, uint32 [4, words]."""
    return _constants(words, _WEIGHT_SEED) | np.uint32(1)


def words_of(hidden: int, itemsize: int) -> int:
    """How many words the elements of a feature are."""
    return -(-hidden * itemsize // 4)


@cache
def keys(intermediate: int) -> Words:
    """What tells intermediate features apart, uint32 [4, intermediate]."""
    return _constants(intermediate, _KEY_SEED)


def _constants(count: int, seed: int) -> Words:
    """Pseudo-random numbers; those of a larger count begin with those of a smaller one."""
    place = np.arange(count, dtype=np.uint32) * np.uint32(LANES)
    lanes = np.arange(LANES, dtype=np.uint32)[:, None]
    once: Words = mixed(place + lanes + np.uint32(seed))
    twice: Words = mixed(once + np.uint32(seed))
    return twice


def finished(sums: Words, first: int, width: int) -> Words:
    """The second level: what features ``first``, first + 1, … of ``width`` add to the digest.

    Args:
        sums: the first level's, uint32 [4, features].
        first: the first of them.
        width: F, all intermediate features of the matrix.

    Returns:
        uint32 [4]; the digest is the sum over all features.
    """
    part = keys(width)[:, first : first + sums.shape[-1]]
    if (compiled := kernels()) is None:
        total: Words = mixed(sums + part).sum(axis=-1, dtype=np.uint32)
        return total
    out = np.zeros(LANES, np.uint32)
    compiled.finish(sums, part, out)
    return out


def digest(matrix: Bits, hidden_axis: int, *, canonical: bool = False) -> Words:
    """The digest of a whole matrix on the host.

    Args:
        matrix: bits of at most 4 bytes an element, [F, D] or [D, F]; any strides.
        hidden_axis: which axis is D: 1 for gate and up, 0 for down.
        canonical: take every bf16 NaN for the quiet NaN of its sign.

    Returns:
        uint32 [4].
    """
    by_feature = matrix if hidden_axis == 1 else matrix.T
    return finished(feature_sums(by_feature, canonical=canonical), 0, by_feature.shape[0])


def digest_of_constant(element: np.unsignedinteger, features: int, hidden: int) -> Words:
    """The digest of a matrix whose every element is this one, uint32 [4]."""
    of_one = feature_sums(np.full((1, hidden), element, element.dtype))
    return finished(np.broadcast_to(of_one, (LANES, features)), 0, features)


def feature_sums(by_feature: Bits, *, canonical: bool = False, first: int = 0) -> Words:
    """The first level of a matrix [F, D], uint32 [4, F]; read in the order of its memory.

    Args:
        by_feature: features and what is here of their hidden axis.
        canonical: see :func:`digest`.
        first: of a feature's words, the first that is here; parts of the hidden axis add up.
    """
    compiled = kernels()
    features, hidden = by_feature.shape
    in_rows = by_feature.strides[1] == by_feature.itemsize
    words, half = divmod(hidden * by_feature.itemsize, 4)
    compilable = by_feature.size and not half and (in_rows or by_feature.itemsize == 2)
    if compiled is None or canonical or not compilable:
        return numpy_sums(by_feature, canonical=canonical, first=first)
    sums = np.zeros((LANES, features), dtype=np.uint32)
    weighing = factors(first, words)
    if in_rows:
        rows = _whole_rows(by_feature)
        if rows is None or rows.shape[1] * rows.itemsize % 4:
            rows = np.ascontiguousarray(by_feature)
        compiled.along(rows.view(np.uint32), words, weighing, sums)
        return sums
    columns = _whole_rows(by_feature.T)
    turned_ = np.ascontiguousarray(by_feature.T) if columns is None else columns
    if features % 2 or turned_.shape[1] % 2 or turned_.ctypes.data % 4:
        compiled.across(turned_, features, weighing, sums)
    else:
        compiled.across_words(turned_.view(np.uint32), features // 2, weighing, sums)
    return sums


@cache
def factors(first: int, words: int) -> Words:
    """:func:`weights` of some words from the first on, in memory of their own."""
    return np.ascontiguousarray(weights(first + words)[:, first:])


def by_rows(tensor: Bits) -> Bits:
    """A tensor of any shape as features [first axis, all others]; a scalar as [1, 1]."""
    if tensor.ndim == 2:
        return tensor
    shape = tensor.shape or (1,)
    return tensor.reshape(shape[0], math.prod(shape[1:]))


def digest_of_rows(rows: Bits, first: int, count: int) -> Words:
    """What rows of a tensor add to its digest, uint32 [4].

    A tensor that is no expert's matrix is digested along its first axis: its rows are the features.

    Args:
        rows: bits, [rows, …]; all of a scalar.
        first: the first of them.
        count: of all of the tensor's.
    """
    return finished(feature_sums(by_rows(rows)), first, count)


def _whole_rows(matrix: Bits) -> Bits | None:
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


def numpy_sums(by_feature: Bits, *, canonical: bool = False, first: int = 0) -> Words:
    """:func:`feature_sums` by numpy alone, a block at a time; the definition of the others."""
    features, hidden = by_feature.shape
    count = words_of(hidden, by_feature.itemsize)
    sums = np.zeros((LANES, features), dtype=np.uint32)
    step = max(1, _ELEMENTS // max(hidden, 1))
    for start in range(0, features, step):
        block = by_feature[start : start + step]
        block = _canonical(block) if canonical else block
        filled = np.zeros((len(block), count * 4 // block.itemsize), dtype=block.dtype)
        filled[:, :hidden] = block
        z = turned(filled.view("<u4"))
        for lane in range(LANES):
            products = z * weights(first + count)[lane, first:]
            sums[lane, start : start + step] = products.sum(axis=1, dtype=np.uint32)
    return sums


def _canonical(bits: Bits) -> Bits:
    return np.where((bits & 0x7FFF) > 0x7F80, (bits & 0x8000) | 0x7FC0, bits).astype(bits.dtype)


def warm_up() -> None:
    """Have the kernels compiled, or read from numba's cache, before they are wanted."""
    matrix = np.zeros((4, 8), dtype=np.uint16)
    for form in (matrix, matrix[:, :4], matrix.T, matrix.T[:4], matrix.T[:3]):
        sums = feature_sums(form)
        finished(sums, 0, sums.shape[1])
        finished(sums[:, 1:], 0, sums.shape[1])
        finished(np.broadcast_to(sums[:, :1], sums.shape), 0, sums.shape[1])
    if (compiled := kernels()) is not None:
        buffer = np.zeros((4, 4), np.uint32)
        for across in (False, True):  # of no file
            compiled.read_sums(
                -1, 0, 4, buffer, across, factors(0, 4), np.zeros((LANES, 8), np.uint32)
            )


_lock = threading.Lock()


def kernels() -> Any:
    """The compiled first level, or None where numba, which vLLM brings along, is absent."""
    with _lock:
        return _compiled()


@cache
def _compiled() -> Any:
    try:
        from harness.devices import digest_numba
    except ImportError:
        return None
    return digest_numba
