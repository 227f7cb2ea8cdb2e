"""What a difference from a digest file comes from, where there are no right bits to look at.

The checkpoint's own file differs from the digest file, too; or it could not be read, and digests
tell what the devices hold: nothing but zeros, the poison, or another matrix of the checkpoint.
"""

from __future__ import annotations

import math

import numpy as np

from harness.base.bits import ITEMSIZE
from harness.compare.authority import Authority
from harness.compare.difference import DigestDiffers
from harness.devices.digest import Words, digest_of_constant
from harness.explain.causes import Cause, Finding, Suspect
from harness.explain.delivery_rules import PARAMETER_UNWRITTEN, UNWRITTEN
from harness.explain.origin_rules import OTHER_SLICE
from harness.explain.rules import UNEXPLAINED
from harness.explain.value_rules import ZEROS
from harness.families.experts import ReferencePart
from harness.load.ledger import POISON

FILE_DIFFERS = Cause.declared(
    "file-differs",
    "compare the file with its store's checksum (--checksums) and download it again; or take "
    "the digest file of this revision",
    suspect=Suspect.CHECKPOINT,
)


def by_digest(
    difference: DigestDiffers, part: ReferencePart, authority: Authority, *, never: bool
) -> Finding:
    """What digests alone tell of a matrix or a tensor.

    Args:
        difference: it.
        part: it is of.
        authority: knows digests of other slices.
        never: whether nothing was ever written to its parameter.
    """
    of = str(difference.key or difference.source.tensor)
    its = f"the device's is {difference.device}" if difference.device else "no device has all of it"
    evidence = f"{of}: the digest file has {difference.reference or 'none'}, {its}"
    if difference.checkpoint:
        evidence += f", {difference.source.file}'s {difference.checkpoint}"
        loaded = difference.device == difference.checkpoint
        evidence += "; the device holds what that file does" if loaded else ""
        what = f"the checkpoint's own files hold other bits than the digest file says ({part.part})"
        return Finding(FILE_DIFFERS, f"{FILE_DIFFERS} {part.part}", what, evidence)
    evidence += f"; the checkpoint's own bits could not be read: {difference.unread}"
    if told := _held_instead(difference, part, authority):
        cause, what = told
        cause = PARAMETER_UNWRITTEN if cause is UNWRITTEN and never else cause
        return Finding(cause, f"{cause} {of}", f"{of} holds {what}", evidence)
    what = f"{of} differs from the digest file; weights not reachable"
    return Finding(UNEXPLAINED, f"{UNEXPLAINED} {of}", what, evidence)


def _held_instead(
    difference: DigestDiffers, part: ReferencePart, authority: Authority
) -> tuple[Cause, str] | None:
    """The cause, and what is held in words."""
    if not difference.device:
        return None
    words = np.array([int(difference.device[i : i + 8], 16) for i in range(0, 32, 8)], np.uint32)
    features, hidden = _sizes(difference, part)
    itemsize = ITEMSIZE[difference.dtype]
    constants = {0: (ZEROS, "nothing but zeros")}
    if itemsize in POISON:
        constants[POISON[itemsize]] = (UNWRITTEN, "what it held before it was written")
    for value, told in constants.items():
        if np.array_equal(words, _constant(value, itemsize, features, hidden)):
            return told
    found = authority.find(words, difference.dtype)
    return None if found is None else (OTHER_SLICE, f"what {found} is to hold")


def _constant(value: int, itemsize: int, features: int, hidden: int) -> Words:
    return digest_of_constant(np.dtype(f"<u{itemsize}").type(value), features, hidden)


def _sizes(difference: DigestDiffers, part: ReferencePart) -> tuple[int, int]:
    """Features and their length: of an expert's matrix, or of a tensor along its first axis."""
    if difference.projection is not None:
        return part.shape.intermediate, part.shape.hidden
    first, *others = part.checkpoint.entries[difference.source.tensor].shape or (1,)
    return first, math.prod(others)
