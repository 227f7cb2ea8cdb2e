"""How far apart two values are: in units in the last place, for what nothing else explains."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from harness.base.bits import ITEMSIZE, Bits
from harness.base.scanning import stretches

#: Exponent bits of the floats that devices hold.
_EXPONENT = {"F8_E4M3": 4, "F16": 5, "BF16": 8, "F32": 8}


def farthest(reference: Bits, device: Bits, dtype: str) -> str:
    """The element that is farthest off, and by how much; empty where no two numbers differ.

    Args:
        reference: raw bits of ``dtype``, [output, input] or any shape.
        device: the same elements as the device holds them.
        dtype: F8_E4M3, F16, BF16 or F32; of any other nothing is said.

    Returns:
        Distance in units in the last place, index, and both values. NaNs and infinities count
        for nothing: they are at no distance.
    """
    if dtype not in _EXPONENT:
        return ""
    largest = 0
    place: tuple[int, ...] = ()
    for part in stretches(reference.shape):
        distance = np.abs(in_order(reference[part]) - in_order(device[part]))
        distance[~(is_finite(reference[part], dtype) & is_finite(device[part], dtype))] = 0
        at = np.unravel_index(int(distance.argmax()), distance.shape)
        if int(distance[at]) > largest:
            largest, place = int(distance[at]), (int(at[0]) + part.start, *map(int, at[1:]))
    if not largest:
        return ""
    index = list(place)
    expected, found = (value_of(int(bits[place]), dtype) for bits in (reference, device))
    return (
        f"farthest off at {index}: {largest} unit{'s' if largest > 1 else ''} in the last place, "
        f"{expected:.9g} in the reference, {found:.9g} on the device"
    )


def in_order(bits: Bits) -> npt.NDArray[np.int64]:
    """Numbers in the order of the values: neighbours are one apart, and both zeros are 0."""
    sign = 1 << (8 * bits.itemsize - 1)
    wide = bits.astype(np.int64)
    magnitude = wide & (sign - 1)
    return np.where(wide & sign, -magnitude, magnitude)


def is_finite(bits: Bits, dtype: str) -> npt.NDArray[np.bool_]:
    """Which elements are numbers: neither NaN nor infinite."""
    width = 8 * bits.itemsize - 1
    magnitude = bits & ((1 << width) - 1)
    if dtype == "F8_E4M3":
        return np.asarray(magnitude != 0x7F)  # it has one NaN a sign, and no infinity
    exponent = _EXPONENT[dtype]
    infinity = ((1 << exponent) - 1) << (width - exponent)
    return np.asarray(magnitude < infinity)


def value_of(bits: int, dtype: str) -> float:
    """The number that ``bits`` stand for."""
    itemsize, exponent_bits = ITEMSIZE[dtype], _EXPONENT[dtype]
    mantissa_bits = 8 * itemsize - 1 - exponent_bits
    bias = (1 << (exponent_bits - 1)) - 1
    mantissa = bits & ((1 << mantissa_bits) - 1)
    exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1)
    implied = (1 << mantissa_bits) if exponent else 0
    value = float((implied + mantissa) * 2.0 ** (max(exponent, 1) - bias - mantissa_bits))
    return -value if bits >> (8 * itemsize - 1) else value
