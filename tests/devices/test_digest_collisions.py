"""No two matrices that differ by a structural change digest alike, over a million pairs.

Pairs are made and digested all at once: the definition is written here again, over a stack of
matrices, and held to :func:`harness.devices.digest.digest`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pytest

from harness.devices.digest import LANES, Words, digest, keys, mixed, turned, weights

Stack = npt.NDArray[np.uint16]
F, D = 6, 8
#: Pairs of each structure in a quick run; all together are more than a million.
QUICK = 1 << 17
BATCH = 1 << 15


def digests(stack: Stack) -> Words:
    """Those of every matrix [n, F, D] of a stack, uint32 [n, 4]."""
    z = turned(np.ascontiguousarray(stack).view("<u4"))
    out = np.zeros((len(stack), LANES), np.uint32)
    for lane in range(LANES):
        sums = (z * weights(z.shape[2])[lane]).sum(axis=2, dtype=np.uint32)
        out[:, lane] = mixed(sums + keys(stack.shape[1])[lane]).sum(axis=1, dtype=np.uint32)
    return out


def test_it_is_the_digest() -> None:
    stack = np.random.default_rng(0).integers(0, 1 << 16, (50, F, D), dtype=np.uint16)
    assert np.array_equal(digests(stack), [digest(matrix, 1) for matrix in stack])


Rng = np.random.Generator


def _places(rng: Rng, n: int, size: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Two places of an axis, never the same."""
    one = rng.integers(size, size=n)
    return one, (one + 1 + rng.integers(size - 1, size=n)) % size


def rows_exchanged(a: Stack, rng: Rng) -> None:
    each, (one, other) = np.arange(len(a)), _places(rng, len(a), F)
    a[each, one], a[each, other] = a[each, other], a[each, one].copy()


def columns_exchanged(a: Stack, rng: Rng) -> None:
    each, (one, other) = np.arange(len(a)), _places(rng, len(a), D)
    a[each, :, one], a[each, :, other] = a[each, :, other], a[each, :, one].copy()


def two_elements_exchanged(a: Stack, rng: Rng) -> None:
    each, (one, other) = np.arange(len(a)), _places(rng, len(a), F * D)
    flat = a.reshape(len(a), -1)
    flat[each, one], flat[each, other] = flat[each, other], flat[each, one].copy()


def one_change_in_two_places_of_a_row(a: Stack, rng: Rng) -> None:
    each, row = np.arange(len(a)), rng.integers(F, size=len(a))
    one, other = _places(rng, len(a), D)
    change = rng.integers(1, 1 << 16, size=len(a), dtype=np.uint16)
    a[each, row, one] ^= change
    a[each, row, other] ^= change


def one_change_in_two_rows(a: Stack, rng: Rng) -> None:
    each, column = np.arange(len(a)), rng.integers(D, size=len(a))
    one, other = _places(rng, len(a), F)
    change = rng.integers(1, 1 << 16, size=len(a), dtype=np.uint16)
    a[each, one, column] += change
    a[each, other, column] -= change


def a_block_of_zeros(a: Stack, rng: Rng) -> None:
    row, column = rng.integers(F, size=len(a)), rng.integers(D, size=len(a))
    high, wide = rng.integers(1, F + 1, size=len(a)), rng.integers(1, D + 1, size=len(a))
    rows, columns = np.arange(F)[None, :, None], np.arange(D)[None, None, :]
    inside = (rows >= row[:, None, None]) & (rows < (row + high)[:, None, None])
    inside = (
        inside & (columns >= column[:, None, None]) & (columns < (column + wide)[:, None, None])
    )
    a[inside] = 0


def signs_flipped(a: Stack, rng: Rng) -> None:
    flipped = rng.integers(1, 1 << 62, size=len(a))[:, None] >> np.arange(F * D) & 1
    a ^= (flipped.astype(np.uint16) << 15).reshape(a.shape)


def two_signs_flipped(a: Stack, rng: Rng) -> None:
    each, (one, other) = np.arange(len(a)), _places(rng, len(a), F * D)
    flat = a.reshape(len(a), -1)
    flat[each, one] ^= 0x8000
    flat[each, other] ^= 0x8000


def rolled(a: Stack, rng: Rng) -> None:
    """By an even or an odd number of elements, over the ends of rows."""
    flat = a.reshape(len(a), -1)
    places = (np.arange(F * D)[None] + rng.integers(1, F * D, size=len(a))[:, None]) % (F * D)
    flat[:] = np.take_along_axis(flat.copy(), places, axis=1)


Change = Callable[[Stack, Rng], None]
STRUCTURES: tuple[Change, ...] = (
    rows_exchanged, columns_exchanged, two_elements_exchanged, one_change_in_two_places_of_a_row,
    one_change_in_two_rows, a_block_of_zeros, signs_flipped, two_signs_flipped, rolled,
)  # fmt: skip

#: What the matrices are before: noise, few values, or values near to each other as weights are.
BEFORE: tuple[Callable[[Rng, int], Stack], ...] = (
    lambda rng, n: rng.integers(0, 1 << 16, (n, F, D), dtype=np.uint16),
    lambda rng, n: rng.choice(np.array([0, 0x8000, 0x3F80], "<u2"), (n, F, D)),
    lambda rng, n: rng.integers(0x3C00, 0x3C10, (n, F, D), dtype=np.uint16),
)


def pairs(change: Change, count: int) -> Iterator[tuple[Stack, Stack]]:
    """Pairs that differ, at least so many."""
    rng, found, turn = np.random.default_rng(len(change.__name__)), 0, 0
    while found < count:
        before = BEFORE[turn % len(BEFORE)](rng, BATCH)
        after = before.copy()
        change(after, rng)
        unequal = (before != after).any(axis=(1, 2))
        found, turn = found + int(unequal.sum()), turn + 1
        yield before[unequal], after[unequal]


@pytest.mark.parametrize("change", STRUCTURES, ids=lambda change: change.__name__)
def test_no_pair_collides(change: Change) -> None:
    """In no pair of lanes either: 64 bits alone would not have collided here."""
    looked_at = 0
    for before, after in pairs(change, QUICK):
        same = digests(before) == digests(after)
        assert not (same[:, :2].all(axis=1) | same[:, 2:].all(axis=1)).any()
        looked_at += len(before)
    assert looked_at >= QUICK


def test_they_are_a_million() -> None:
    assert QUICK * len(STRUCTURES) >= 1_000_000


def _sums(words: Words) -> Words:
    """The first level of words [n, F, …], all rows as one."""
    lanes = [(words * weights(words.shape[2])[lane]).sum(axis=(1, 2)) for lane in range(LANES)]
    return np.stack(lanes, axis=1).astype(np.uint32)


def test_weaker_digests_are_found_out() -> None:
    """The search sees what it is for.

    Without the second level rows can be exchanged; without the rotation two signs cancel.
    """
    before, after = next(pairs(rows_exchanged, 1))
    one, other = (_sums(turned(stack.view("<u4"))) for stack in (before, after))
    assert (one == other).all()
    before, after = next(pairs(two_signs_flipped, 1))
    one, other = (_sums(stack.view("<u4")) for stack in (before, after))
    assert (one == other).all(axis=1).any()
