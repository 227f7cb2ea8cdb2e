"""The rules of a diagnosis: one list for every slice, an expert's or any other tensor's.

Each looks at one :class:`harness.explain.evidence.Evidence` and says what the slice holds, or
nothing. Those that what the slice has allows are tried in order; the first that explains every
unequal element wins. Elements are looked at a stretch at a time, and of a tensor that is wrong
throughout few rules see more than the first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from harness.base.bits import ITEMSIZE, Bits, converted, is_nan
from harness.base.scanning import Mask
from harness.explain.causes import Cause, Finding
from harness.explain.delivery_rules import bias_lost, never_written
from harness.explain.distance import farthest
from harness.explain.evidence import Evidence, Need, Rule, rule
from harness.explain.provenance_rules import (
    another_expert,
    another_layer,
    another_of_its_array,
    another_tensor,
    columns_reordered,
    columns_rolled,
    draft_layer,
    expert_groups,
    heads_exchanged,
    interleaved,
    other_bytes,
    rows_reordered,
    rows_rolled,
    shards_exchanged,
    tied,
    transposed,
    wrong_corner,
)

#: Types that weights are converted to, as safetensors and as numpy name them.
_WAYS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
#: Exponent and mantissa of those, as masks.
_EXPONENT = {"F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F80_0000}
_DAMAGED = 2048  # elements; a longer run is more than a broken sector
_SEARCHED = "no other slice, row or run of bytes of the reference fits"
_NOT_SEARCHED = (
    "no other slice or row of the reference fits; after so many slices that nothing explained, "
    "its bytes were not looked for in the files"
)


@rule(Cause.ZEROS)
def zeros(e: Evidence) -> Finding | None:
    """All of it is zero, and zeros were written: fresh memory holds poison."""
    if not e.all_held(lambda device: device == 0):
        return None
    return e.finding(
        Cause.ZEROS,
        f"{e.words.they} {{hold}} only zeros",
        f"{e.name} holds zeros, not the poison it held before the load",
    )


@rule(Cause.REPLICAS_DIFFER, Need.REPLICAS)
def replicas_differ(e: Evidence) -> Finding | None:
    """Some of the devices that hold the same part hold it right."""
    if (found := e.replicas()) is None:
        return None
    wrong, right = (", ".join(devices) for devices in found)
    return e.finding(
        Cause.REPLICAS_DIFFER,
        f"{wrong} {'hold' if len(found[0]) > 1 else 'holds'} another {e.words.it} than the other "
        f"replicas{e.words.tail}",
        f"{right} {'hold' if len(found[1]) > 1 else 'holds'} the same part of {e.name} right",
        wrong,
    )


@rule(Cause.SIGN_OF_ZERO)
def sign_of_zero(e: Evidence) -> Finding | None:
    """Only zeros differ, in their sign."""
    magnitude = (1 << (8 * e.reference.itemsize - 1)) - 1
    if not e.only(lambda before, after: ((before | after) & magnitude) == 0):
        return None
    return e.finding_of_all(
        Cause.SIGN_OF_ZERO,
        "zeros lost or gained their sign, all else is equal",
        f"{e.name}: {e.pattern.count} zeros differ in their sign alone",
    )


@rule(Cause.SUBNORMALS_FLUSHED)
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
        Cause.SUBNORMALS_FLUSHED,
        "subnormals became zeros of their sign, all else is equal",
        f"{e.name}: {e.pattern.count} elements of {e.reference.size}",
    )


@rule(Cause.BIT_FLIP)
def bit_flip(e: Evidence) -> Finding | None:
    """One bit of one element differs."""
    if e.pattern.count != 1:
        return None
    (part,) = e.pattern.parts
    flipped = int((e.reference[part] ^ e.device[part]).max())
    if flipped.bit_count() != 1:
        return None
    return e.finding(
        Cause.BIT_FLIP,
        f"one bit of {e.name} is flipped",
        f"bit {flipped.bit_length() - 1} of one element differs, the other "
        f"{e.reference.size - 1} elements are equal",
        e.name,
    )


@rule(Cause.NAN_CANONICALISED)
def nans_of_a_conversion(e: Evidence) -> Finding | None:
    """It was converted and only NaNs differ, which stay NaNs: torch has no rule for them."""
    stored = e.stored()[1]
    if stored == e.dtype or e.dtype not in _WAYS or not _only_nans(e):
        return None
    return e.finding_of_all(
        Cause.NAN_CANONICALISED,
        f"NaNs stored as {stored} are others as {e.dtype}, all else is equal",
        f"{e.name}: {e.pattern.count} NaNs, which stay NaNs",
        stored,
    )


@rule(Cause.NAN_CANONICALISED, Need.BF16)
def nan_canonicalised(e: Evidence) -> Finding | None:
    """Only NaNs differ: each is the quiet NaN of its sign."""

    def is_canonical(before: Bits, after: Bits) -> Mask:
        quiet = (before & 0x8000) | 0x7FC0
        return np.asarray(((before & 0x7FFF) > 0x7F80) & (after == quiet))

    if not e.only(is_canonical):
        return None
    return e.finding_of_all(
        Cause.NAN_CANONICALISED,
        "NaN payloads were replaced by the quiet NaN of their sign, all else is equal",
        f"{e.name}: {e.pattern.count} NaNs",
    )


@rule(Cause.NARROWED)
def narrowed(e: Evidence) -> Finding | None:
    """What was written is right; the rest was never written, or is zero."""
    for what, value in (("never written", e.poison), ("zero", 0)):
        if value is None or not _only_became(e, value):
            continue
        return e.finding(
            Cause.NARROWED,
            f"a part of {e.words.it} is {what}{e.words.tail}",
            f"{e.name}: {e.pattern} is {what}, all else is equal",
            f"{e.slice.matrix} {what}",
        )
    return None


@rule(Cause.OTHER_DTYPE)
def other_dtype(e: Evidence) -> Finding | None:
    """Its bytes were taken for those of another type."""
    stored, dtype = e.stored()
    for other in _WAYS if _are_numbers(e) else ():
        if other == dtype or ITEMSIZE[other] != stored.itemsize:
            continue
        if _becomes(e, partial(converted, dtype=other, target=e.dtype)):
            return e.finding(
                Cause.OTHER_DTYPE,
                f"{e.words.they} {{are}} {dtype} in the reference, and came as {other}",
                f"{e.name} is what becomes of its bytes where they are taken for {other}",
                other,
            )
    return None


@rule(Cause.DTYPE_ROUND_TRIP)
def dtype_round_trip(e: Evidence) -> Finding | None:
    """It went through another type and back."""
    dtype = e.stored()[1]
    for other, name in _WAYS.items() if _are_numbers(e) else ():
        if other in (dtype, e.dtype):
            continue

        def there_and_back(bits: Bits, other: str = other) -> Bits:
            return converted(converted(bits, dtype, other), other, e.dtype)

        if _becomes(e, there_and_back):
            return e.finding(
                Cause.DTYPE_ROUND_TRIP,
                f"{e.words.they} went through {name}",
                f"{e.name} is the reference cast to {name} and back",
            )
    return None


@rule(Cause.DAMAGED)
def damaged(e: Evidence) -> Finding | None:
    """One short run of the file's bytes differs, the slice around it is right."""
    reference, device = e.reference, e.device
    pattern, lines = e.pattern, e.pattern.rows
    if e.stored_transposed:
        reference, device, lines = reference.T, device.T, pattern.columns
    width = max(1, reference[:1].size)
    if lines[1] - lines[0] > _DAMAGED // width + 2:
        return None
    near = slice(*lines)
    (places,) = np.nonzero((reference[near] != device[near]).ravel())
    places += lines[0] * width
    length = int(places[-1] - places[0]) + 1
    if length > min(_DAMAGED, reference.size // 4) or places.size < length // 2:
        return None
    return e.finding(
        Cause.DAMAGED,
        f"a run of {length * reference.itemsize} bytes of {e.name} is damaged",
        f"elements {places[0]} to {places[-1]} of it in the file's order differ, the other "
        f"{reference.size - length} are equal, and their bytes "
        + (
            "were not looked for elsewhere"
            if e.around.unsearched
            else "stand nowhere else in the checkpoint"
        ),
        e.name,
    )


def unexplained(e: Evidence) -> Finding:
    """The raw facts, and how far off the values are."""
    far = farthest(e.reference, e.device, e.dtype)
    return e.finding(
        Cause.UNEXPLAINED,
        f"{e.words.they} {{differ}} for no known reason",
        f"{e.name}: {e.pattern.count / e.reference.size:.1%} of its elements differ, within "
        f"{e.pattern}; {_NOT_SEARCHED if e.around.unsearched else _SEARCHED}"
        + (f"; {far}" if far else ""),
    )


def explain(e: Evidence) -> Finding:
    """What the first rule says that applies and explains all of it; else the raw facts."""
    applicable = (each for each in RULES if each.needs <= e.has)
    return next((f for each in applicable if (f := each.look(e))), None) or unexplained(e)


def _only_became(e: Evidence, value: int) -> bool:
    return e.only(lambda _, after: after == value)


def _only_nans(e: Evidence) -> bool:
    return e.only(lambda before, after: is_nan(before, e.dtype) & is_nan(after, e.dtype))


def _are_numbers(e: Evidence) -> bool:
    """Whether numbers differ, and not NaNs alone or FP8 codes."""
    return e.dtype in _WAYS and not e.only(lambda before, _: is_nan(before, e.dtype))


def _becomes(e: Evidence, made: Callable[[Bits], Bits]) -> bool:
    return e.becomes(made, lambda bits: ~is_nan(bits, e.dtype))


#: In the order they are tried: what the slice itself tells first, for to find its bytes elsewhere
#: the reference has to be read; then whole slices before their pieces.
RULES: tuple[Rule, ...] = (
    bias_lost,
    never_written,
    zeros,
    replicas_differ,
    sign_of_zero,
    subnormals_flushed,
    bit_flip,
    nans_of_a_conversion,
    nan_canonicalised,
    tied,
    expert_groups,
    another_expert,
    another_of_its_array,
    draft_layer,
    another_layer,
    another_tensor,
    transposed,
    narrowed,
    wrong_corner,
    other_dtype,
    dtype_round_trip,
    interleaved,
    heads_exchanged,
    rows_rolled,
    columns_rolled,
    shards_exchanged,
    rows_reordered,
    columns_reordered,
    other_bytes,
    damaged,
)
