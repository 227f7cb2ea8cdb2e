"""Distances are counted in values that the format has, whatever their sign and exponent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from harness.base.bits import ITEMSIZE, bits_dtype
from harness.explain import distance
from harness.explain.diagnosis import slice_of, words_of
from harness.explain.distance import farthest
from harness.explain.evidence import Evidence
from harness.explain.rules import unexplained
from harness.families.experts import ExpertKey
from harness.families.family import Part, Projection

DTYPES = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "BF16": ml_dtypes.bfloat16, "F16": np.float16}


def bits(*values: int, dtype: npt.DTypeLike = np.uint16) -> npt.NDArray[np.unsignedinteger]:
    return np.array(values, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_value_is_decoded_as_the_format_says(dtype: str) -> None:
    every = np.arange(1 << (8 * ITEMSIZE[dtype]), dtype=bits_dtype(dtype))
    with np.errstate(invalid="ignore"):  # signalling NaNs are among them
        values = every.view(DTYPES[dtype]).astype(np.float64)
    finite = np.isfinite(values)
    assert np.array_equal(distance.is_finite(every, dtype), finite)
    decoded = [distance.value_of(int(code), dtype) for code in every[finite]]
    assert np.array_equal(decoded, values[finite])


def test_neighbours_are_one_apart() -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    every = every[distance.is_finite(every, "BF16")]
    ranks = distance.in_order(every)
    values = every.view(ml_dtypes.bfloat16).astype(np.float64)
    order = np.argsort(ranks, kind="stable")
    assert (np.diff(values[order]) >= 0).all()
    assert set(np.diff(ranks[order])) == {0, 1}  # 0: the two zeros


def test_the_farthest_is_told_with_both_values() -> None:
    reference = bits(0x3F80, 0x3F80, 0xBF80, 0x0001).reshape(2, 2)
    device = bits(0x3F81, 0x3F80, 0xBF7D, 0x8001).reshape(2, 2)
    assert farthest(reference, device, "BF16") == (
        "farthest off at [1, 0]: 3 units in the last place, -1 in the reference, "
        "-0.98828125 on the device"
    )


def test_float32_too() -> None:
    one = np.array([1.0], np.float32)
    next_to_it = np.nextafter(one, np.float32(2))
    text = farthest(one.view(np.uint32), next_to_it.view(np.uint32), "F32")
    assert text.startswith("farthest off at [0]: 1 unit in the last place, 1 in the reference")
    assert "1.00000012 on the device" in text


@pytest.mark.parametrize("device", [0x7FC0, 0x7F80, 0x3F80])
def test_no_number_no_distance(device: int) -> None:
    assert farthest(bits(0x3F80), bits(device), "BF16") == ""
    assert farthest(bits(0x8000), bits(0x0000), "BF16") == ""
    assert farthest(bits(1, dtype=np.uint64), bits(2, dtype=np.uint64), "F64") == ""


def test_an_unexplained_slice_says_how_far_off_it_is() -> None:
    """Where the devices of this process hold nothing, it is as it should be."""
    key = ExpertKey(Part.DECODER, 0, 1, Projection.GATE)
    reference, device = bits(0x3F80, 0x4000).reshape(1, 2), bits(0x3F81, 0x4100).reshape(1, 2)
    nothing: Any = None
    around: Any = SimpleNamespace(unsearched=False)
    evidence = Evidence(
        slice=slice_of(key), words=words_of(key), wanted=lambda: reference,
        device=device, dtype="BF16", stored=nothing, around=around, has=frozenset(),
    )  # fmt: skip
    assert unexplained(evidence).evidence == (
        "decoder layer 0 expert 1 gate_proj: 100.0% of its elements differ, within [0:1, 0:2]; no "
        "other slice, row or run of bytes of the reference fits; farthest off at [0, 1]: 256 units "
        "in the last place, 2 in the reference, 8 on the device"
    )
