"""What counts as equal of NaNs."""

from __future__ import annotations

from enum import StrEnum

import numpy as np

from harness.dtypes import Bits


class Nan(StrEnum):
    """How the reference's NaNs count.

    - ``payload``: like any other bits.
    - ``canonical``: as the quiet NaN of their sign, 0x7fc0 or 0xffc0. That is the exact effect of
      the bf16 -> f32 -> bf16 way to the device (torchax ``ops/mappings.py``, ``t2j``), and the
      only change of values this harness admits.
    """

    PAYLOAD = "payload"
    CANONICAL = "canonical"


def canonical_nans(bits: Bits) -> Bits:
    """bf16 bits with every NaN replaced by the quiet NaN of its sign; the rest untouched."""
    nan = (bits & 0x7FFF) > 0x7F80
    return np.where(nan, (bits & 0x8000) | 0x7FC0, bits).astype(bits.dtype)
