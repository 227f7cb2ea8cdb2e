from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from harness.base.bits import Bits
from harness.base.errors import BadInput
from harness.synthetic.values import CORNERS, NAN_PAYLOADS, SliceValues, Values


def make(count: int, *, seed: int = 0, expert: int = 0, values: Values = Values.CORNERS) -> Bits:
    return np.concatenate(list(SliceValues(seed, values).chunks("tensor", count, expert)))


def is_nan(bits: Bits) -> npt.NDArray[np.bool_]:
    return (bits & 0x7FFF) > 0x7F80


def test_the_seed_alone_decides() -> None:
    assert np.array_equal(make(5000, seed=3), make(5000, seed=3))
    assert not np.array_equal(make(5000, seed=3), make(5000, seed=4))


def test_values_are_pinned() -> None:
    """A checkpoint written today is the one written next year: these bits must not change."""
    assert make(4000)[-4:].tolist() == [7671, 55252, 63308, 5873]


def test_every_slice_holds_every_corner() -> None:
    for expert in range(4):
        assert set(CORNERS) <= set(make(3000, expert=expert).tolist())


def test_a_small_slice_keeps_random_values() -> None:
    assert len(set(make(6).tolist()) - set(CORNERS)) >= 2


@pytest.mark.parametrize("count", [1, 7, 4096, (1 << 20) + 3])
def test_no_nan_unless_asked_for(count: int) -> None:
    assert not is_nan(make(count)).any()


def test_nan_payloads() -> None:
    bits = make(3000, values=Values.NAN_PAYLOADS)
    assert set(NAN_PAYLOADS) <= set(bits.tolist())
    assert is_nan(bits).sum() % len(NAN_PAYLOADS) == 0


def test_chunks_have_their_own_keys() -> None:
    first, second = SliceValues(0).chunks("tensor", 1 << 21)
    assert not np.array_equal(first[5000:], second[5000:])


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seed_out_of_range(seed: int) -> None:
    with pytest.raises(BadInput, match="seed"):
        SliceValues(seed)
