"""Bit equality, whatever the strides: every bit counts, what lies between rows does not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from harness.base.bits import Bits
from harness.compare import equality as equal
from harness.compare.equality import all_equal, equal_bits, on_all_cores, zeros

SHAPES = [(1, 1), (1, 7), (7, 1), (4, 4), (36, 8), (8, 100), (33, 12), (64, 64), (5, 3), (260, 68)]


def forms(matrix: Bits) -> list[Bits]:
    """The same matrix in other memory: contiguous, transposed, in wider rows, every other one."""
    wide = np.full((matrix.shape[0], matrix.shape[1] + 12), 7, dtype=matrix.dtype)
    wide[:, 4 : 4 + matrix.shape[1]] = matrix
    turned = np.full((matrix.shape[1], matrix.shape[0] + 8), 9, dtype=matrix.dtype)
    turned[:, : matrix.shape[0]] = matrix.T
    odd = np.full((matrix.shape[1], matrix.shape[0] + 3), 9, dtype=matrix.dtype)
    odd[:, : matrix.shape[0]] = matrix.T
    return [
        matrix.copy(),
        matrix.copy(order="F"),
        wide[:, 4 : 4 + matrix.shape[1]],
        turned[:, : matrix.shape[0]].T,
        odd[:, : matrix.shape[0]].T,
        np.repeat(matrix, 2, axis=1)[:, ::2],
        matrix[::-1].copy()[::-1],
    ]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", ["<u1", "<u2", "<u4"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_pair_of_forms(
    shape: tuple[int, int], dtype: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(equal, "kernels", lambda: None)
    rng = np.random.default_rng(4)
    matrix = rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)
    for device in forms(matrix):
        for reference in forms(matrix):
            assert equal_bits(device, reference)
            at = tuple(int(rng.integers(size)) for size in shape)
            device[at] ^= 1 << int(rng.integers(8 * device.itemsize))
            assert not equal_bits(device, reference)
            device[at] = reference[at]


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(8, 12), (36, 8), (132, 36)])
def test_every_bit_of_every_element_of_a_transposed_pair(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(5).integers(0, 1 << 16, shape, dtype=np.uint16)
    turned = np.ascontiguousarray(matrix.T).T
    for at in np.ndindex(*shape):
        for bit in range(16):
            turned[at] ^= 1 << bit
            assert not equal_bits(turned, matrix)
            assert not equal_bits(matrix, turned)
            turned[at] ^= 1 << bit
    assert equal_bits(turned, matrix)


def test_shapes_and_dtypes_count() -> None:
    zeros = np.zeros((4, 4), dtype=np.uint16)
    assert not equal_bits(zeros, zeros.astype(np.uint32))
    assert not equal_bits(zeros, zeros[:, :3])
    assert equal_bits(zeros.reshape(2, 2, 4), zeros.reshape(2, 2, 4))
    assert equal_bits(zeros[:0], zeros[:0])


@pytest.mark.parametrize("kind", [np.uint16, lambda value: np.array(value, np.uint16)])
def test_scalars_are_compared(kind: Callable[[int], Bits]) -> None:
    """Arrays without an axis, and what indexing makes of them: those own no memory that lasts."""
    for value in range(50):
        assert equal_bits(kind(value), kind(value))
        assert not equal_bits(kind(value), kind(value + 1))


def test_many_pairs_are_judged_in_order() -> None:
    rng = np.random.default_rng(6)
    device = rng.integers(0, 1 << 16, (40, 256, 128), dtype=np.uint16)
    reference = device.copy()
    wrong = {3, 17, 39}
    for number in wrong:
        reference[number, 200, 100] ^= 1
    verdicts = on_all_cores(lambda pair: equal_bits(*pair), zip(device, reference, strict=True))
    assert {number for number, equal in enumerate(verdicts) if not equal} == wrong


@pytest.mark.parametrize("shape", SHAPES)
def test_any_bit_set_is_seen_and_none_beside_the_matrix(shape: tuple[int, int]) -> None:
    for matrix in forms(np.zeros(shape, dtype=np.uint16)):
        nothing = zeros(matrix.shape, matrix.dtype)
        assert all_equal([(matrix, nothing)])
        at = tuple(size - 1 for size in shape)
        matrix[at] = 1
        assert not all_equal([(matrix, nothing)])


def test_one_pair_of_many_differs() -> None:
    """Whichever it is, and however it is stored."""
    rng = np.random.default_rng(7)
    matrix = rng.integers(0, 1 << 16, (12, 8), dtype=np.uint16)
    pairs = [(form, matrix) for form in forms(matrix)]
    assert all_equal(pairs)
    for device, _ in pairs:
        device[11, 7] ^= 1
        assert not all_equal(pairs)
        device[11, 7] ^= 1
    assert all_equal([])
