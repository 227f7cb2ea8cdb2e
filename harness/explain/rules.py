"""The rules of a diagnosis: each looks at one slice and says what it holds, or nothing.

Rules know the reference's and the device's bits of the slice, and the index of all others. They
are tried in order; the first that explains every unequal element wins.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from harness.base.bits import ITEMSIZE, Bits, converted, is_nan
from harness.explain.causes import Cause, Finding
from harness.explain.distance import farthest
from harness.explain.evidence import Evidence, extent
from harness.explain.provenance_rules import (
    another_slice,
    other_bytes,
    reordered,
    transposed,
    wrong_corner,
)
from harness.load.ledger import POISON

#: Types that weights are converted to, as safetensors and as numpy name them.
_WAYS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
_DAMAGED = 2048  # elements; a longer run is more than a broken sector
_SEARCHED = "no other slice, row or run of bytes of the reference fits"
_NOT_SEARCHED = (
    "no other slice or row of the reference fits; after so many slices that nothing explained, "
    "its bytes were not looked for in the files"
)
Rule = Callable[[Evidence], Finding | None]


def zeros(slice_: Evidence) -> Finding | None:
    """All of it is zero, and zeros were written: fresh memory holds poison."""
    if slice_.device.any():
        return None
    return slice_.finding(
        Cause.ZEROS,
        slice_.key.layer,
        f"{{experts}} of {slice_.where} {{hold}} only zeros",
        f"{slice_.key} holds zeros, not the poison it held before the load",
    )


def sign_of_zero(slice_: Evidence) -> Finding | None:
    """Only zeros differ, in their sign."""
    unequal = slice_.unequal
    sign = 1 << (8 * slice_.reference.itemsize - 1)
    if (((slice_.reference[unequal] | slice_.device[unequal]) & (sign - 1)) != 0).any():
        return None
    return slice_.finding(
        Cause.SIGN_OF_ZERO,
        "",
        "zeros lost or gained their sign, all else is equal",
        f"{slice_.key}: {int(unequal.sum())} zeros differ in their sign alone",
    )


def subnormals_flushed(slice_: Evidence) -> Finding | None:
    """Only subnormals differ: they are signed zeros. One alone, others kept, is a flipped bit."""
    if slice_.dtype != "BF16":
        return None
    before, after = slice_.reference[slice_.unequal], slice_.device[slice_.unequal]
    if ((before & 0x7F80) != 0).any() or (after != (before & 0x8000)).any():
        return None
    kept = slice_.device[~slice_.unequal]
    if before.size == 1 and (((kept & 0x7F80) == 0) & ((kept & 0x7F) != 0)).any():
        return None
    return slice_.finding(
        Cause.SUBNORMALS_FLUSHED,
        "",
        "subnormals became zeros of their sign, all else is equal",
        f"{slice_.key}: {before.size} elements of {slice_.reference.size}",
    )


def damaged(slice_: Evidence) -> Finding | None:
    """One short run of the file's bytes differs, the slice around it is right."""
    unequal = slice_.unequal.T if slice_.stored_transposed else slice_.unequal
    (places,) = np.nonzero(unequal.ravel())
    length = int(places[-1] - places[0]) + 1
    if length > min(_DAMAGED, unequal.size // 4) or places.size < length // 2:
        return None
    return slice_.finding(
        Cause.DAMAGED,
        slice_.key,
        f"a run of {length * slice_.reference.itemsize} bytes of {slice_.key} is damaged",
        f"elements {places[0]} to {places[-1]} of it in the file's order differ, the other "
        f"{unequal.size - length} are equal, and their bytes "
        + (
            "were not looked for elsewhere"
            if slice_.key in slice_.others.unsearched
            else "stand nowhere else in the checkpoint"
        ),
    )


def bit_flip(slice_: Evidence) -> Finding | None:
    """One bit of one element differs."""
    unequal = slice_.unequal
    if unequal.sum() != 1:
        return None
    flipped = int((slice_.reference[unequal] ^ slice_.device[unequal])[0])
    if flipped.bit_count() != 1:
        return None
    return slice_.finding(
        Cause.BIT_FLIP,
        slice_.key,
        f"one bit of {slice_.key} is flipped",
        f"bit {flipped.bit_length() - 1} of one element differs, the other "
        f"{slice_.reference.size - 1} elements are equal",
    )


def nan_canonicalised(slice_: Evidence) -> Finding | None:
    """Only NaNs differ: each is the quiet NaN of its sign, or what a conversion made of it."""
    stored = slice_.stored()[1]
    if nans_of_a_conversion(slice_.device, slice_.reference, stored, slice_.dtype):
        return slice_.finding(
            Cause.NAN_CANONICALISED,
            stored,
            f"NaNs stored as {stored} are others as {slice_.dtype}, all else is equal",
            f"{slice_.key}: {int(slice_.unequal.sum())} NaNs",
        )
    if slice_.dtype != "BF16":
        return None
    before, after = slice_.reference[slice_.unequal], slice_.device[slice_.unequal]
    if not (((before & 0x7FFF) > 0x7F80) & (after == ((before & 0x8000) | 0x7FC0))).all():
        return None
    return slice_.finding(
        Cause.NAN_CANONICALISED,
        "",
        "NaN payloads were replaced by the quiet NaN of their sign, all else is equal",
        f"{slice_.key}: {before.size} NaNs",
    )


def narrowed(slice_: Evidence) -> Finding | None:
    """What was written is right; the rest was never written, or is zero."""
    device, unequal = slice_.device, slice_.unequal
    for what, value in (("never written", POISON[device.itemsize]), ("zero", 0)):
        if (device[unequal] != value).any():
            continue
        rows, columns = extent(unequal)
        return slice_.finding(
            Cause.NARROWED,
            f"{slice_.key.layer} {slice_.key.projection} {what}",
            f"a part of {slice_.key.projection} in {slice_.where} is {what}, {{experts}}",
            f"{slice_.key}: [{rows}, {columns}] is {what}, all else is equal",
        )
    return None


def other_dtype(slice_: Evidence) -> Finding | None:
    """Its bytes were taken for those of another type."""
    stored, dtype = slice_.stored()
    if (other := taken_for(slice_.device, stored, dtype, slice_.dtype)) is None:
        return None
    return slice_.finding(
        Cause.OTHER_DTYPE,
        f"{slice_.key.layer} {other}",
        f"{{experts}} of {slice_.where} {{are}} {dtype} in the reference, and came as {other}",
        f"{slice_.key} is what becomes of its bytes where they are taken for {other}",
    )


def dtype_round_trip(slice_: Evidence) -> Finding | None:
    """It went through another type and back."""
    if (other := went_through(slice_.device, *slice_.stored(), slice_.dtype)) is None:
        return None
    return slice_.finding(
        Cause.DTYPE_ROUND_TRIP,
        slice_.key.layer,
        f"slices of {slice_.where} went through {other}, {{experts}}",
        f"{slice_.key} is the reference cast to {other} and back",
    )


def taken_for(device: Bits, stored: Bits, dtype: str, target: str) -> str | None:
    """The type that bytes were taken for, where that explains what a device holds.

    Args:
        device: what it holds, of ``target``.
        stored: the checkpoint's bits, of ``dtype``.
        dtype: their safetensors dtype.
        target: the device's.
    """
    for other in _WAYS if _are_numbers(device, stored, dtype, target) else ():
        if other == dtype or ITEMSIZE[other] != ITEMSIZE[dtype]:
            continue
        if _are_alike(device, converted(stored, other, target), target):
            return other
    return None


def went_through(device: Bits, stored: Bits, dtype: str, target: str) -> str | None:
    """The type that values went through, where that explains what a device holds.

    Args and result as those of :func:`taken_for`.
    """
    for other in _WAYS if _are_numbers(device, stored, dtype, target) else ():
        if other in (dtype, target):
            continue
        there = converted(stored, dtype, other)
        if _are_alike(device, converted(there, other, target), target):
            return _WAYS[other]
    return None


def nans_of_a_conversion(device: Bits, reference: Bits, dtype: str, target: str) -> bool:
    """Whether a tensor was converted and only NaNs differ, which stay NaNs: torch's are no rule.

    Args:
        device: what it holds, of ``target``.
        reference: what it should hold, of ``target``.
        dtype: what the checkpoint stores.
        target: the device's type.
    """
    if dtype == target or target not in _WAYS:
        return False
    unequal = reference != device
    pair = (is_nan(bits[unequal], target) for bits in (reference, device))
    return all(nan.all() for nan in pair)


def _are_numbers(device: Bits, stored: Bits, dtype: str, target: str) -> bool:
    """Whether numbers differ, and not NaNs alone or FP8 codes."""
    return target in _WAYS and not _are_alike(device, converted(stored, dtype, target), target)


def _are_alike(device: Bits, made: Bits, dtype: str) -> bool:
    """Whether all is equal that is a number; and some is."""
    number = ~is_nan(made, dtype)
    return bool(number.any()) and np.array_equal(made[number], device[number])


def unexplained(slice_: Evidence) -> Finding:
    """The raw facts, and how far off the values are."""
    share = np.count_nonzero(slice_.unequal) / slice_.reference.size
    rows, columns = extent(slice_.unequal)
    far = farthest(slice_.reference, slice_.device, slice_.dtype)
    return slice_.finding(
        Cause.UNEXPLAINED,
        slice_.key.layer,
        f"slices of {slice_.where} differ for no known reason",
        f"{slice_.key}: {share:.1%} of its elements differ, within [{rows}, {columns}]; "
        + (_NOT_SEARCHED if slice_.key in slice_.others.unsearched else _SEARCHED)
        + (f"; {far}" if far else ""),
    )


RULES: tuple[Rule, ...] = (
    zeros, another_slice, transposed, sign_of_zero, subnormals_flushed, bit_flip,
    nan_canonicalised, narrowed, wrong_corner, other_dtype, dtype_round_trip, reordered,
    other_bytes, damaged,
)  # fmt: skip
