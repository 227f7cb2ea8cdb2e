"""FP8 matrices with block scales, and what upstream makes of them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt

from harness.checkpoint.fp8_blocks import (
    EXPERTS,
    Arithmetic,
    Values,
)

Codes = npt.NDArray[np.uint8]


def quantised_anew(values: Values, arithmetic: Arithmetic = EXPERTS) -> tuple[Codes, Values]:
    """As upstream does it: one scale for each output, values times its inverse, rounded."""
    dtype = np.dtype(np.float32) if arithmetic is EXPERTS else np.dtype(ml_dtypes.bfloat16)
    taken = values.astype(dtype)
    scale = np.abs(taken).max(axis=1) / dtype.type(448)
    inverse = dtype.type(1) / scale
    codes = np.clip(taken * inverse[:, None], dtype.type(-448), dtype.type(448))
    return codes.astype(ml_dtypes.float8_e4m3fn).view(np.uint8), scale.astype(np.float32)


def matrix(rows: int = 300, columns: int = 260) -> tuple[np.ndarray, Values]:
    random = np.random.default_rng(8)
    codes = random.integers(0, 256, (rows, columns), dtype=np.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0x31
    grid = (-(-rows // 128), -(-columns // 128))
    return codes, np.exp(random.normal(-4, 1, grid)).astype(np.float32)
