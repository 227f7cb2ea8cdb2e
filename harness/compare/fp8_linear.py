"""Compares FP8 weights by their values, within the bound that a second quantisation implies.

The bound is derived in :mod:`harness.checkpoint.fp8_blocks`; it holds for each element with the
scales found on the device, and those must be what the checkpoint's values make them. A wrong, a
lost or a transposed scale moves a block's values by more and is named. Of several hosts each judges
what its own devices hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypedDict

import numpy as np

from harness.base.bits import Bits
from harness.base.scanning import Mask, nonzero
from harness.checkpoint.fp8_blocks import (
    BLOCK,
    LINEAR,
    SCALE_SUFFIX,
    Arithmetic,
    Values,
    block_values,
    output_values,
    requantisation_bound,
    scale_bound,
    scales_as_f32,
)
from harness.compare.parameter_view import ParameterView, held, holder, recovered
from harness.families.experts import TensorSlice
from harness.families.model_checkpoint import ModelCheckpoint

#: A block whose values are off by more than this, on the median, has another scale.
_NOTABLE = 0.02
_SCALES = "F32"  # whatever the checkpoint's are


class UnequalParameter(NamedTuple):
    """How one tensor of a parameter departs: where the reference has it, and who holds it.

    Attributes:
        source: the tensor.
        values: how it departs.
        device_name: the device that holds the first element of that.
    """

    source: TensorSlice
    values: UnequalValues
    device_name: str


class UnequalValues(TypedDict):
    """How a matrix departs, as fields of a :class:`harness.compare.difference.ValuesDiffer`."""

    index: tuple[int, ...]
    reference: str
    device: str
    count: int
    total: int
    pattern: str


def departs(
    codes: Bits,
    scales: Values,
    reference: Bits,
    grid: Values,
    arithmetic: Arithmetic,
    here: Mask | None = None,
) -> UnequalValues | None:
    """How a matrix quantised anew departs from the checkpoint's.

    Args:
        codes: what the device holds, [outputs, inputs].
        scales: its scales, [outputs].
        reference: the checkpoint's codes, [outputs, inputs].
        grid: their scales, one a block.
        arithmetic: ``EXPERTS`` or ``LINEAR`` of :mod:`harness.checkpoint.fp8_blocks`.
        here: which codes lie on devices of this process, [outputs, inputs]; None for all. A scale
            is wherever a code of its output is.

    Returns:
        None where every value and every scale is within its bound.
    """
    wanted = block_values(reference, grid)
    found = output_values(codes, scales)
    right, slack = scale_bound(wanted, arithmetic)
    off = ~(np.abs(found - wanted) <= requantisation_bound(wanted, scales, arithmetic))
    off |= ~(np.abs(scales - right) <= slack)[:, None]
    if here is not None:
        off &= here
        found = np.where(here, found, wanted)
    if not (found_off := nonzero(off)):
        return None
    first = found_off.first
    return UnequalValues(
        index=first, reference=f"{wanted[first]:.9g}", device=f"{found[first]:.9g}",
        count=found_off.count, total=off.size if here is None else int(here.sum()),
        pattern=_why(found, wanted, reference, grid),
    )  # fmt: skip


def _why(found: Values, wanted: Values, reference: Bits, grid: Values) -> str:
    """What the device's values are instead: of another grid of scales, or of none."""
    turned = grid.T if grid.shape[0] == grid.shape[1] else None
    others = {"the scales' grid is transposed": turned, "the scales are lost": np.ones_like(grid)}
    for text, other in others.items():
        if other is not None and _explains(found, block_values(reference, other)):
            return text
    factors = {
        (i, j): _factor(found, wanted, i, j) for i, j in np.ndindex(*grid.shape)
    }  # of each block
    wrong = [block for block, factor in factors.items() if not abs(factor - 1) <= _NOTABLE]
    if not wrong:
        return "no scale is off as a whole: some codes are other ones"
    named = ", ".join(str(list(block)) for block in wrong[:3])
    return f"{len(wrong)} of {grid.size} blocks, {named}; by a factor of {factors[wrong[0]]:.3g}"


def _factor(found: Values, wanted: Values, i: int, j: int) -> float:
    """By how much the values of block [i, j] are too large, from the larger ones of them."""
    here = (slice(i * BLOCK, (i + 1) * BLOCK), slice(j * BLOCK, (j + 1) * BLOCK))
    large = np.abs(wanted[here]) >= 0.25 * np.abs(wanted[here]).max()
    return float(np.median(found[here][large] / wanted[here][large]))


def _explains(found: Values, wanted: Values) -> bool:
    """Whether nearly all of the large values agree to e4m3's precision."""
    large = np.abs(wanted) >= 0.05 * np.abs(wanted).max()
    return bool((np.abs(found - wanted)[large] <= 0.07 * np.abs(wanted)[large]).mean() > 0.99)


def unequal_values(
    checkpoint: ModelCheckpoint, weight: ParameterView, scales: ParameterView
) -> Iterator[UnequalParameter]:
    """What is off of a quantised parameter, tensor by tensor.

    Args:
        checkpoint: holds its codes and the scales of their blocks.
        weight: the parameter, codes [inputs, outputs] on the device.
        scales: its scales, [outputs] on the device, laid out as a bias would be.
    """
    for name in weight.sources:
        entry = checkpoint.entries[f"{name}{SCALE_SUFFIX}"]
        reference, grid = checkpoint.bits(name), scales_as_f32(entry.bits(), entry.dtype)
        for copy in sorted({b.copy for b in weight.layout.blocks if b.source == name}):
            codes = recovered(weight, name, copy, "", reference)
            found_scales = recovered(scales, name, copy, "", np.zeros(len(reference), dtype="<u4"))
            here = held(weight, name, copy, reference)
            found = departs(
                codes, scales_as_f32(found_scales, "F32"), reference, grid, LINEAR, here
            )
            if found:
                device = holder(weight, name, copy, found["index"], reference)
                source = TensorSlice(entry.file.name, name, copy=copy)
                yield UnequalParameter(source, found, device)
