"""FP8 weights with block scales: what they mean, and how far a second quantisation may move them.

A release in FP8 stores a matrix [outputs, inputs] as e4m3 codes (F8_E4M3, "fn": no infinities,
0x7f and 0xff are NaN) and one scale for each block of 128 by 128; a value is code times scale.

tpu-inference does not keep that (unless ``DISABLE_WEIGHT_REQUANTIZATION=1``): it takes the values,
for experts in f32 and for linear layers in bf16, and quantises them anew in that arithmetic, with
one scale for each output, s' = max |v| / 448 (``layers/common/quantization/__init__.py``,
``dequantize_tensor``, ``quantize_tensor``; ``layers/common/process_weights/moe_weights.py``,
``_requant_expert_batch_fn``; ``layers/common/quantization/fp8.py``,
``process_blockwise_fp8_linear_weights``; 0.26 and 0.32).

The bound. Let v be the checkpoint's value, a 4-bit significand times a bf16 or f32 scale; d the
rounding of the arithmetic, 2^-8 for bf16. What is rounded to e4m3 is w = v (1 / s'), with three
roundings on the way, of v, of 1 / s' and of the product: |s' w - v| <= e |v|, e = (1 + d)^3 - 1.
e4m3 keeps 4 bits of significand above 2^-6 and has steps of 2^-9 below, so rounding moves s' w by
at most max(2^-4 |s' w|, 2^-10 s'). Clipping moves nothing more: w exceeds 448 by roundings only,
and would be rounded to it. Then

    |v' - v|  <=  e |v| + max(2^-4 (1 + e) |v|, 2^-10 s').

s' itself has two roundings, of the largest v and of the quotient: it is within (1 + d)^2 - 1 of
max |v| / 448. f32's own roundings, 2^-24 each, are covered by a factor of 1 + 2^-19. A value that
is off by more was not made from this code and this scale.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from harness.base.bits import E4M3, Bits, converted

Values = npt.NDArray[np.float32]

BLOCK = 128
CODES = "F8_E4M3"  # what quantised weights are stored as, and held as
SCALE_SUFFIX = "_scale_inv"  # what a tensor's scales are called, after its own name
LARGEST = 448.0
_SLACK = np.float32(1 + 2**-19)
_BF16 = 2.0**-8  # its unit roundoff


class Arithmetic(NamedTuple):
    """Relative errors of quantising anew: of a value before it is rounded, and of a scale."""

    values: float
    scales: float


EXPERTS = Arithmetic(0.0, 0.0)
LINEAR = Arithmetic((1 + _BF16) ** 3 - 1, (1 + _BF16) ** 2 - 1)


def scales_as_f32(bits: Bits, dtype: str) -> Values:
    """Scales of whatever type, as f32: vLLM makes their parameter in it."""
    return np.ascontiguousarray(converted(bits, dtype, "F32")).view(np.float32)


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


def requantisation_bound(reference: Values, scales: Values, arithmetic: Arithmetic) -> Values:
    """How far each value may lie from the checkpoint's after a second quantisation.

    Args:
        reference: the checkpoint's values, [outputs, inputs].
        scales: the new scales, [outputs].
        arithmetic: :data:`EXPERTS` or :data:`LINEAR`.
    """
    size, error = np.abs(reference), arithmetic.values
    step = np.maximum(size * (1 + error) * 2.0**-4, scales[:, None] * 2.0**-10)
    bound: Values = ((error * size + step) * _SLACK).astype(np.float32)
    return bound


def scale_bound(reference: Values, arithmetic: Arithmetic) -> tuple[Values, Values]:
    """The new scale of each output and how far it may be off: max |v| / 448.

    Args:
        reference: the checkpoint's values, [outputs, inputs].
        arithmetic: as above.
    """
    scale = np.abs(reference).max(axis=1) / np.float32(LARGEST)
    return scale, (scale * (arithmetic.scales + 2.0**-20)).astype(np.float32)
