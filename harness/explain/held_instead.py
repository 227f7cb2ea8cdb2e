"""What the devices hold instead, where digests are all there is to tell it by."""

from __future__ import annotations

import math

import numpy as np

from harness.base.bits import ITEMSIZE
from harness.compare.authority import Authority
from harness.compare.difference import Difference, DigestDiffers
from harness.devices.digest import Words, digest_of_constant
from harness.explain.causes import Cause
from harness.families.experts import ReferencePart
from harness.load.ledger import POISON


def held_instead(
    difference: Difference, part: ReferencePart, authority: Authority
) -> tuple[Cause, str] | None:
    """The cause, and what is held in words: nothing but zeros, the poison, or another slice.

    Args:
        difference: any; of a digest that a device's bits have.
        part: it is of.
        authority: knows digests of other slices.
    """
    if not isinstance(difference, DigestDiffers) or not difference.device:
        return None
    words = np.array([int(difference.device[i : i + 8], 16) for i in range(0, 32, 8)], np.uint32)
    features, hidden = _sizes(difference, part)
    itemsize = ITEMSIZE[difference.dtype]
    constants = {0: (Cause.ZEROS, "nothing but zeros")}
    if itemsize in POISON:
        constants[POISON[itemsize]] = (Cause.UNWRITTEN, "what it held before it was written")
    for value, told in constants.items():
        if np.array_equal(words, _constant(value, itemsize, features, hidden)):
            return told
    found = authority.find(words, difference.dtype)
    return None if found is None else (Cause.OTHER_SLICE, f"what {found} is to hold")


def _constant(value: int, itemsize: int, features: int, hidden: int) -> Words:
    return digest_of_constant(np.dtype(f"<u{itemsize}").type(value), features, hidden)


def _sizes(difference: DigestDiffers, part: ReferencePart) -> tuple[int, int]:
    """Features and their length: of an expert's matrix, or of a tensor along its first axis."""
    if difference.projection is not None:
        return part.shape.intermediate, part.shape.hidden
    first, *others = part.checkpoint.entries[difference.source.tensor].shape or (1,)
    return first, math.prod(others)
