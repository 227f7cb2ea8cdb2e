"""The digest sees every change of a matrix, and is the same whoever computes it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from harness.base.bits import Bits, canonical_nans
from harness.devices import digest as fingerprint
from harness.devices.digest import digest, feature_sums, finished, numpy_sums

F, D = 24, 136


@pytest.fixture
def matrix() -> Bits:
    return np.random.default_rng(1).integers(0, 1 << 16, (F, D), dtype=np.uint16)


def swapped_rows(m: Bits) -> None:
    m[[3, 9]] = m[[9, 3]]


def swapped_columns(m: Bits) -> None:
    m[:, [0, 100]] = m[:, [100, 0]]


def swapped_halves(m: Bits) -> None:
    m[:] = np.roll(m, F // 2, axis=0)


def swapped_hidden_halves(m: Bits) -> None:
    m[:] = np.roll(m, D // 2, axis=1)


def equal_sum(m: Bits) -> None:
    m[5, 7:9] = m[5, 7] ^ 1, m[5, 8] ^ 1


def zero_run(m: Bits) -> None:
    m[4, 20:40] = 0


def one_zero_row(m: Bits) -> None:
    m[4] = 0


def two_signs(m: Bits) -> None:
    m[4, 6:8] ^= 0x8000


def signs_of_two_rows(m: Bits) -> None:
    m[4:6, 6] ^= 0x8000


CHANGES = [
    swapped_rows, swapped_columns, swapped_halves, swapped_hidden_halves, equal_sum, zero_run,
    one_zero_row, two_signs, signs_of_two_rows,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_seen_by_every_lane(matrix: Bits, change: Callable[[Bits], None]) -> None:
    before = digest(matrix, 1)
    change(matrix)
    assert (digest(matrix, 1) != before).all()


def test_every_single_bit_is_seen() -> None:
    matrix = np.zeros((3, 5), dtype=np.uint16)
    seen = {digest(matrix, 1).tobytes()}
    for index in np.ndindex(3, 5):
        for bit in range(16):
            matrix[index] = 1 << bit
            seen.add(digest(matrix, 1).tobytes())
        matrix[index] = 0
    assert len(seen) == 1 + 3 * 5 * 16


def test_a_row_that_moved_among_zero_rows_is_seen() -> None:
    seen = set()
    for row in range(F):
        matrix = np.zeros((F, D), dtype=np.uint16)
        matrix[row] = 0x3F80
        seen.add(digest(matrix, 1).tobytes())
    assert len(seen) == F


def test_no_lane_pair_collides_over_many_random_matrices() -> None:
    many = np.random.default_rng(2).integers(0, 1 << 16, (20000, 4, 8), dtype=np.uint16)
    digests = np.array([finished(numpy_sums(m), 0, 4) for m in many])
    pairs = np.ascontiguousarray(digests).view(np.uint64)
    assert all(len(np.unique(pairs[:, half])) == len(many) for half in (0, 1))


@pytest.mark.parametrize(  # bf16 alone has canonical NaNs here
    ("width", "canonical"), [(1, False), (2, False), (2, True), (4, False)]
)
def test_any_order_of_memory_gives_the_same(width: int, canonical: bool) -> None:
    top = 1 << (8 * width)
    dtype = np.dtype(f"<u{width}")
    matrix = np.random.default_rng(3).integers(0, top, (F, D), dtype=dtype)
    wanted = numpy_sums(matrix, canonical=canonical)
    wide = np.zeros((D + 3, 2 * F), dtype=dtype)
    wide[:D, F:] = matrix.T
    forms = [matrix, np.asfortranarray(matrix), wide[:D, F:].T, np.repeat(matrix, 2, 1)[:, ::2]]
    for form in forms:
        assert np.array_equal(feature_sums(form, canonical=canonical), wanted)
    assert np.array_equal(digest(matrix, 1), digest(matrix.T, 0))


def test_without_numba_it_is_the_same(matrix: Bits, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = digest(matrix, 1)
    monkeypatch.setattr(fingerprint, "kernels", lambda: None)
    assert np.array_equal(digest(matrix, 1), compiled)


def test_parts_add_up_in_any_order(matrix: Bits) -> None:
    parts = [finished(feature_sums(matrix[i : i + 8]), i, F) for i in (16, 0, 8)]
    assert np.array_equal(np.sum(parts, axis=0, dtype=np.uint32), digest(matrix, 1))


def test_nans_count_as_the_comparison_counts_them(matrix: Bits) -> None:
    matrix[0, :3] = 0x7F81, 0xFFFF, 0x7F80
    assert np.array_equal(digest(matrix, 1, canonical=True), digest(canonical_nans(matrix), 1))
    assert not np.array_equal(digest(matrix, 1, canonical=True), digest(matrix, 1))
