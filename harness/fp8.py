"""FP8 weights with block scales: what they mean, and how far a second quantisation may move them.

A release in FP8 stores a matrix [outputs, inputs] as e4m3 codes (F8_E4M3, "fn": no infinities,
0x7f and 0xff are NaN) and one scale for each block of 128 by 128; a value is code times scale.

tpu-inference does not keep that (unless ``DISABLE_WEIGHT_REQUANTIZATION=1``): it takes the values,
as f32 for experts and as bf16 for linear layers, and quantises them anew with one scale for each
output, s' = max |v| / 448 (``layers/common/quantization/__init__.py``, ``quantize_tensor``;
``layers/common/process_weights/moe_weights.py``, ``_requant_expert_batch_fn``;
``layers/common/quantization/fp8.py``, ``process_blockwise_fp8_linear_weights``; 0.26).

The bound. Let v be the checkpoint's value, exact in f32 but for one rounding (a 4-bit significand
times a bf16 or f32 scale), u what is quantised: u = v for experts; for linear layers v rounded to
bf16's 8-bit significand, so |u - v| <= 2^-8 |v|. The code is u / s' rounded to the nearest e4m3: 4
bits of significand above 2^-6, steps of 2^-9 below. So |u' - u| <= max(2^-4 |u|, 2^-10 s').
Nothing is clipped: s' is made of the largest |u|. Then

    |v' - v|  <=  e |v| + max(2^-4 (1 + e) |v|, 2^-10 s'),   e = 0 or 2^-8,

and the few roundings of f32 arithmetic on the way, relative 2^-24 each, are covered by a factor of
1 + 2^-19. A value that is off by more was not made from this code and this scale.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from harness.dtypes import Bits

Values = npt.NDArray[np.float32]

BLOCK = 128
SCALE_SUFFIX = "_scale_inv"  # what a tensor's scales are called, after its own name
LARGEST = 448.0
_SLACK = np.float32(1 + 2**-19)
#: Relative error of what is quantised anew: experts are taken as f32, linear layers as bf16.
EXPERT_ERROR, LINEAR_ERROR = 0.0, 2.0**-8


def _table() -> Values:
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    normal = np.ldexp(1 + mantissa / 8, exponent - 7)
    value = np.where(exponent == 0, np.ldexp(mantissa / 8, -6), normal)
    value[(codes & 0x7F) == 0x7F] = np.nan
    return np.where(codes & 0x80, -value, value).astype(np.float32)


#: The value of every e4m3 code.
E4M3: Values = _table()


def scales_as_f32(bits: Bits, dtype: str) -> Values:
    """Scales stored as BF16 or F32 bits, as f32."""
    if dtype == "BF16":
        bits = bits.astype("<u4") << np.uint32(16)
    return np.ascontiguousarray(bits).view(np.float32)


def block_values(codes: Bits, scales: Values) -> Values:
    """The values of a matrix [outputs, inputs] with one scale for each block of 128 by 128.

    Args:
        codes: uint8, [outputs, inputs].
        scales: [ceil(outputs / 128), ceil(inputs / 128)].

    Raises:
        ValueError: the grid of scales is not that of the matrix.
    """
    grid = tuple(-(-size // BLOCK) for size in codes.shape)
    if scales.shape != grid:
        raise ValueError(f"scales {list(scales.shape)}, for {list(codes.shape)} {list(grid)}")
    spread = np.repeat(np.repeat(scales, BLOCK, axis=0), BLOCK, axis=1)
    values: Values = E4M3[codes] * spread[: codes.shape[0], : codes.shape[1]]
    return values


def output_values(codes: Bits, scales: Values) -> Values:
    """The values of a matrix [outputs, inputs] with one scale for each output.

    Args:
        codes: uint8, [outputs, inputs].
        scales: [outputs].
    """
    values: Values = E4M3[codes] * scales[:, None]
    return values


def requantisation_bound(reference: Values, scales: Values, error: float) -> Values:
    """How far each value may lie from the checkpoint's after a second quantisation.

    Args:
        reference: the checkpoint's values, [outputs, inputs].
        scales: the new scales, [outputs].
        error: :data:`EXPERT_ERROR` or :data:`LINEAR_ERROR`.
    """
    size = np.abs(reference)
    step = np.maximum(size * (1 + error) * 2.0**-4, scales[:, None] * 2.0**-10)
    bound: Values = ((error * size + step) * _SLACK).astype(np.float32)
    return bound


def scale_bound(reference: Values, error: float) -> tuple[Values, Values]:
    """The new scale of each output and how far it may be off: max |v| / 448, one more rounding.

    Args:
        reference: the checkpoint's values, [outputs, inputs].
        error: as above.
    """
    scale = np.abs(reference).max(axis=1) / np.float32(LARGEST)
    return scale, (scale * (error + 2.0**-20)).astype(np.float32)
