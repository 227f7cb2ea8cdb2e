"""Rules that see what a slice is by its own elements: zeros, flipped bits, signs, NaNs."""

from __future__ import annotations

import numpy as np

from harness.base.bits import Bits, is_nan
from harness.base.scanning import Mask
from harness.explain.causes import Cause, Finding, Suspect
from harness.explain.evidence import NUMBERS, Evidence, Need, Turn, rule

TURN = Turn.ELEMENTS
#: Exponent and mantissa of those types, as masks.
_EXPONENT = {"F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F80_0000}

ZEROS = Cause.declared(
    "zeros", "look for a zero fill, or a buffer that was replaced after it was written"
)


@rule(ZEROS)
def zeros(e: Evidence) -> Finding | None:
    """All of it is zero, and zeros were written: fresh memory holds poison."""
    if not e.all_held(lambda device: device == 0):
        return None
    return e.finding(
        ZEROS,
        f"{e.words.they} {{hold}} only zeros",
        f"{e.name} holds zeros, not the poison it held before the load",
    )


REPLICAS_DIFFER = Cause.declared(
    "replicas-differ",
    "look for a device that was written for itself: memory or link corruption, or a "
    "transfer that failed",
    suspect=Suspect.MACHINE,
)


@rule(REPLICAS_DIFFER, Need.REPLICAS)
def replicas_differ(e: Evidence) -> Finding | None:
    """Some of the devices that hold the same part hold it right."""
    if (found := e.replicas()) is None:
        return None
    wrong, right = (", ".join(devices) for devices in found)
    return e.finding(
        REPLICAS_DIFFER,
        f"{wrong} {'hold' if len(found[0]) > 1 else 'holds'} another {e.words.it} than the other "
        f"replicas{e.words.tail}",
        f"{right} {'hold' if len(found[1]) > 1 else 'holds'} the same part of {e.name} right",
        wrong,
    )


SIGN_OF_ZERO = Cause.declared(
    "sign-of-zero", "look for arithmetic on the weights (x + 0, casts): a copy keeps -0.0"
)


@rule(SIGN_OF_ZERO)
def sign_of_zero(e: Evidence) -> Finding | None:
    """Only zeros differ, in their sign."""
    magnitude = (1 << (8 * e.reference.itemsize - 1)) - 1
    if not e.only(lambda before, after: ((before | after) & magnitude) == 0):
        return None
    return e.finding_of_all(
        SIGN_OF_ZERO,
        "zeros lost or gained their sign, all else is equal",
        f"{e.name}: {e.pattern.count} zeros differ in their sign alone",
    )


SUBNORMALS_FLUSHED = Cause.declared(
    "subnormals-flushed",
    "look for arithmetic or a conversion by a unit that takes subnormals for zero "
    "(VCVTNEPS2BF16 on CPUs does): a copy keeps them",
)


@rule(SUBNORMALS_FLUSHED)
def subnormals_flushed(e: Evidence) -> Finding | None:
    """Only subnormals differ: they are signed zeros. One alone, others kept, is a flipped bit."""
    if (exponent := _EXPONENT.get(e.dtype)) is None:
        return None
    sign = 1 << (8 * e.reference.itemsize - 1)

    def is_subnormal(bits: Bits) -> Mask:
        return np.asarray(((bits & exponent) == 0) & ((bits & (sign - 1)) != 0))

    if not e.only(lambda b, a: is_subnormal(b) & (a == (b & sign))):
        return None
    if e.pattern.count == 1 and not e.all_held(lambda device: ~is_subnormal(device)):
        return None
    return e.finding_of_all(
        SUBNORMALS_FLUSHED,
        "subnormals became zeros of their sign, all else is equal",
        f"{e.name}: {e.pattern.count} elements of {e.reference.size}",
    )


BIT_FLIP = Cause.declared(
    "bit-flip",
    "read the file and the device again: storage, memory or link corruption",
    suspect=Suspect.MACHINE,
)


@rule(BIT_FLIP)
def bit_flip(e: Evidence) -> Finding | None:
    """One bit of one element differs."""
    if e.pattern.count != 1:
        return None
    (part,) = e.pattern.parts
    flipped = int((e.reference[part] ^ e.device[part]).max())
    if flipped.bit_count() != 1:
        return None
    return e.finding(
        BIT_FLIP,
        f"one bit of {e.name} is flipped",
        f"bit {flipped.bit_length() - 1} of one element differs, the other "
        f"{e.reference.size - 1} elements are equal",
        e.name,
    )


NAN_CANONICALISED = Cause.declared(
    "nan-canonicalised",
    "expected where tpu-inference casts bf16 to f32 and back (t2j); compare with "
    "nan=canonical; torch's conversions from other types have no rule for NaNs",
)


@rule(NAN_CANONICALISED)
def nans_of_a_conversion(e: Evidence) -> Finding | None:
    """It was converted and only NaNs differ, which stay NaNs: torch has no rule for them."""
    stored = e.stored()[1]
    if stored == e.dtype or e.dtype not in NUMBERS or not _only_nans(e):
        return None
    return e.finding_of_all(
        NAN_CANONICALISED,
        f"NaNs stored as {stored} are others as {e.dtype}, all else is equal",
        f"{e.name}: {e.pattern.count} NaNs, which stay NaNs",
        stored,
    )


@rule(NAN_CANONICALISED, Need.BF16)
def nan_canonicalised(e: Evidence) -> Finding | None:
    """Only NaNs differ: each is the quiet NaN of its sign."""

    def is_canonical(before: Bits, after: Bits) -> Mask:
        quiet = (before & 0x8000) | 0x7FC0
        return np.asarray(((before & 0x7FFF) > 0x7F80) & (after == quiet))

    if not e.only(is_canonical):
        return None
    return e.finding_of_all(
        NAN_CANONICALISED,
        "NaN payloads were replaced by the quiet NaN of their sign, all else is equal",
        f"{e.name}: {e.pattern.count} NaNs",
    )


def _only_nans(e: Evidence) -> bool:
    return e.only(lambda before, after: is_nan(before, e.dtype) & is_nan(after, e.dtype))
