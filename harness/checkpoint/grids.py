"""Quantised matrices: codes on a small grid and scales, and what a second quantisation may make.

Every format stores a matrix [outputs, inputs] as codes and one scale for each block of it; a value
is code times scale. The grids, each from its publisher's document:

- ``F8_E4M3`` ("fn") and ``F4_E2M1``: OCP 8-bit floating point 1.0, and microscaling formats (MX)
  1.0, 5.3. A code of E2M1 is one of 0, 0.5, 1, 1.5, 2, 3, 4, 6 with a sign.
- ``I4``, ``I8``: two's complement.

tpu-inference keeps codes and scales, or takes the values and quantises them anew
(``layers/common/quantization/__init__.py``, ``dequantize_tensor`` and ``quantize_tensor``;
``layers/common/process_weights/moe_weights.py``, ``_requant_expert_batch_fn`` and
``quantize_moe_weights``; 0.26 and 0.32), for experts in f32, with one scale s' for each run of
inputs: s' = max |v| / m, where m is the grid's largest value. A code is made of w = v (1 / s') by
clipping w to the grid and by the type's conversion: to the nearest for floats, **toward zero for
integers**.

The rule. Let w be exact, and q the conversion, which never falls as w rises. Roundings on the way,
of v, s', 1 / s' and the product, make some w~ of it with |w~ - w| <= e |w|. Then

    q(w - e |w|)  <=  q(w~)  <=  q(w + e |w|),

so a code c was made of this value only if [w - e |w|, w + e |w|] meets the interval of numbers that
become c, ends included. Nothing else is allowed to differ: where the interval of w lies within that
of one code, and it does for all but a share of about e of the values, the code is settled to the
bit. f32 rounds by 2^-24, five times at most; e = 2^-19 leaves room for devices whose division is
off by some units of the last place. A conversion to a float of eight bits or less may go by way
of f16, which rounds by 2^-11 more. The scale itself has two roundings and is held to 2^-20.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from harness.base.bits import E4M3, F4_E2M1, F8_E4M3, I4, I8, U4, Bits

Values = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

_ROUNDINGS = 2.0**-19  # of w, in f32
_BY_WAY_OF_F16 = 2.0**-11
_SCALE = 2.0**-20

_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=np.float32)


class Grid(NamedTuple):
    """A type of codes.

    Attributes:
        values: what each code stands for; NaN for codes that stand for none.
        largest: m, what the largest code stands for.
        lower, upper: the ends of the interval of numbers that become the code.
        error: e, of what is converted.
    """

    values: Values
    largest: float
    lower: Values
    upper: Values
    error: float


@cache
def grid_of(dtype: str) -> Grid:
    """The grid of ``F8_E4M3``, ``F4_E2M1``, ``I4`` or ``I8``; or what codes may be mistaken for.

    Raises:
        KeyError: it is of no format.
    """
    return {
        F8_E4M3: lambda: _float_grid(E4M3, 448.0),
        F4_E2M1: lambda: _float_grid(np.concatenate([_E2M1, -_E2M1]), 6.0),
        I4: lambda: _integer_grid(4),
        I8: lambda: _integer_grid(8),
        U4: lambda: _integer_grid(4)._replace(values=np.arange(16, dtype=np.float32)),
    }[dtype]()


def _float_grid(values: Values, largest: float) -> Grid:
    """Numbers become the nearest; of a tie either is allowed, for a rounding may have made it."""
    known = np.unique(values[~np.isnan(values)])  # ascending; one zero for both
    middles = (known[1:] + known[:-1]) / 2
    place = np.searchsorted(known, values)
    lower = np.concatenate([[-np.inf], middles, [np.nan]])[np.minimum(place, len(known))]
    upper = np.concatenate([middles, [np.inf], [np.nan]])[np.minimum(place, len(known))]
    none = np.isnan(values)
    lower, upper = (np.where(none, np.nan, end).astype(np.float32) for end in (lower, upper))
    return Grid(values, largest, lower, upper, _ROUNDINGS + _BY_WAY_OF_F16)


def _integer_grid(width: int) -> Grid:
    """Numbers lose what comes after their point."""
    codes = np.arange(2**width)
    values = np.where(codes < 2 ** (width - 1), codes, codes - 2**width).astype(np.float32)
    lower = np.where(values > 0, values, values - 1)
    upper = np.where(values < 0, values, values + 1)
    most = 2.0 ** (width - 1) - 1
    lower[values == -most - 1], upper[values == most] = -np.inf, np.inf
    return Grid(values, most, lower, upper, _ROUNDINGS)


@dataclass(frozen=True)
class Quantised:
    """A matrix [outputs, inputs], quantised.

    Attributes:
        codes: uint8, one a code; of four bits the lower ones.
        dtype: what they are codes of.
        scales: f32, one for each block: [ceil(outputs / rows), ceil(inputs / columns)].
        block: rows and columns of one.
    """

    codes: Bits
    dtype: str
    scales: Values
    block: tuple[int, int]

    def __post_init__(self) -> None:
        grid = tuple(-(-n // b) for n, b in zip(self.codes.shape, self.block, strict=True))
        if self.scales.shape != grid:
            raise ValueError(
                f"scales {list(self.scales.shape)}, for {list(self.codes.shape)} {list(grid)}"
            )

    @property
    def values(self) -> Values:
        """Codes times scales, [outputs, inputs]; in f32, as upstream takes them."""
        values: Values = grid_of(self.dtype).values[self.codes] * self.spread
        return values

    @property
    def spread(self) -> Values:
        """The scale of each code, [outputs, inputs] or what numpy makes that of."""
        rows, columns = self.block
        spread = self.scales
        if len(spread) > 1 and rows > 1:
            spread = np.repeat(spread, rows, axis=0)[: self.codes.shape[0]]
        if spread.shape[1] > 1 and columns > 1:
            spread = np.repeat(spread, columns, axis=1)[:, : self.codes.shape[1]]
        return spread

    @property
    def by_outputs(self) -> Values:
        """The scales with a row for each output: [outputs, blocks of inputs]."""
        each = np.repeat(self.scales, self.block[0], axis=0)
        return each[: self.codes.shape[0]]

    def with_scales(self, scales: Values) -> Quantised:
        """The same codes with others."""
        return replace(self, scales=scales)

    def with_codes(self, codes: Bits) -> Quantised:
        """The same scales with others."""
        return replace(self, codes=codes)


class Departed(NamedTuple):
    """Which codes of a matrix are not what they may be, and which scales.

    Attributes:
        codes: [outputs, inputs].
        scales: [outputs, blocks of inputs].
    """

    codes: Mask
    scales: Mask

    @property
    def any(self) -> bool:
        """Whether anything is off."""
        return bool(self.codes.any() or self.scales.any())

    def within(self, here: Departed, rows: slice) -> Departed:
        """Those of them that are ``here``, of which these are some rows."""
        return Departed(self.codes & here.codes[rows], self.scales & here.scales[rows])


def kept(wanted: Quantised, codes: Bits, scales: Values) -> Departed:
    """Where codes or scales that upstream keeps as they are differ from the checkpoint's, in bits.

    Args:
        wanted: the checkpoint's.
        codes: the device's, [outputs, inputs].
        scales: its, [outputs, blocks of inputs].
    """
    right = np.ascontiguousarray(wanted.by_outputs).view("<u4")
    return Departed(codes != wanted.codes, np.ascontiguousarray(scales).view("<u4") != right)


def requantised(values: Values, dtype: str, codes: Bits, scales: Values, block: int) -> Departed:
    """Where codes or scales cannot come of quantising ``values`` anew, by the rule above.

    Args:
        values: the checkpoint's, [outputs, inputs].
        dtype: of the device's codes.
        codes: the device's, [outputs, inputs].
        scales: its, [outputs, ceil(inputs / block)].
        block: inputs that share a scale; the last ones may be fewer.
    """
    grid = grid_of(dtype)
    top = np.maximum.reduceat(np.abs(values), range(0, values.shape[1], block), axis=1)
    right = top / np.float32(grid.largest)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        inverse = np.where(right > 0, np.float32(1) / right, np.float32(0))
        wide = np.repeat(inverse, block, axis=1)[:, : values.shape[1]]
        w = values * (inverse if inverse.shape[1] == 1 else wide)
        slack = np.abs(w) * np.float32(grid.error)
        fine = (w + slack >= grid.lower[codes]) & (w - slack <= grid.upper[codes])
        off = ~(np.abs(scales - right) <= right * np.float32(_SCALE))
    return Departed(~fine, off)
