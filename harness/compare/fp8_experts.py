"""Compares FP8 weights by their values, within the bound that a second quantisation implies.

The bound is derived in :mod:`harness.checkpoint.fp8_blocks`; it holds for each element with the
scales found on the device, and those must be what the checkpoint's values make them. A wrong, a
lost or a transposed scale moves a block's values by more and is named.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypedDict

import numpy as np

from harness.base.bits import Bits
from harness.base.scanning import nonzero
from harness.checkpoint.fp8_blocks import (
    BLOCK,
    EXPERTS,
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
from harness.compare.checks import Check
from harness.compare.difference import (
    ArrayMissing,
    Difference,
    DtypeDiffers,
    ReplicasDiffer,
    ShapeDiffers,
    ShardMisplaced,
    ValuesDiffer,
)
from harness.compare.digest_comparison import Method, no_digests
from harness.compare.expert_comparison import PartComparison
from harness.compare.parameter_view import ParameterView, recovered
from harness.devices.digest import Words
from harness.devices.expert_layout import PARAMETER_OF, Backend, LayoutBlock, Parameter, Span
from harness.devices.replicas import odd_replicas
from harness.devices.sharding import misplaced
from harness.devices.tensors import DevicePart, DeviceTensor
from harness.families.experts import ExpertKey, ReferencePart, TensorSlice
from harness.families.model_checkpoint import ModelCheckpoint

#: A block whose values are off by more than this, on the median, has another scale.
_NOTABLE = 0.02
_SCALES = "F32"  # whatever the checkpoint's are


class UnequalValues(TypedDict):
    """How a matrix departs, as fields of a :class:`harness.compare.difference.ValuesDiffer`."""

    index: tuple[int, ...]
    reference: str
    device: str
    count: int
    total: int
    pattern: str


def departs(
    codes: Bits, scales: Values, reference: Bits, grid: Values, arithmetic: Arithmetic
) -> UnequalValues | None:
    """How a matrix quantised anew departs from the checkpoint's.

    Args:
        codes: what the device holds, [outputs, inputs].
        scales: its scales, [outputs].
        reference: the checkpoint's codes, [outputs, inputs].
        grid: their scales, one a block.
        arithmetic: ``EXPERTS`` or ``LINEAR`` of :mod:`harness.checkpoint.fp8_blocks`.

    Returns:
        None where every value and every scale is within its bound.
    """
    wanted = block_values(reference, grid)
    found = output_values(codes, scales)
    right, slack = scale_bound(wanted, arithmetic)
    off = ~(np.abs(found - wanted) <= requantisation_bound(wanted, scales, arithmetic))
    off |= ~(np.abs(scales - right) <= slack)[:, None]
    if not (found_off := nonzero(off)):
        return None
    first = found_off.first
    return UnequalValues(
        index=first, reference=f"{wanted[first]:.9g}", device=f"{found[first]:.9g}",
        count=found_off.count, total=off.size,
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


class Fp8PartComparison(PartComparison):
    """The comparison of one part's FP8 experts; see
    :class:`harness.compare.expert_comparison.PartComparison`.

    Raises:
        BadInput: digests were asked for; of values there are none.
    """

    def __init__(self, reference: ReferencePart, device: DevicePart, **options: Any) -> None:
        scales = {t.name for tensors in device.scales.values() for t in tensors.values()}
        unknown = tuple(name for name in device.unknown if name not in scales)
        if options.get("method") is Method.DIGESTS:
            raise no_digests("an FP8 release, whose values are compared, not its bits")
        super().__init__(reference, replace(device, unknown=unknown), **options)

    def _metadata(
        self, layer: int, parameter: Parameter, tensor: DeviceTensor | None
    ) -> Iterator[Difference]:
        yield from super()._metadata(layer, parameter, tensor)
        scales = self.device.scales.get(layer, {}).get(parameter)
        yield from self._scale_metadata(layer, parameter, scales)

    def _scale_metadata(
        self, layer: int, parameter: Parameter, tensor: DeviceTensor | None
    ) -> Iterator[Difference]:
        part, shape = self.reference.part, self._scale_shape(parameter)
        if tensor is None:
            yield ArrayMissing(
                part=part, layer=layer, parameter=f"{parameter}_scale", expected="scales"
            )
            return
        if tensor.folded().shape != shape:
            yield ShapeDiffers(
                part=part, layer=layer, parameter=tensor.name, reference=shape, device=tensor.shape
            )
            return
        if tensor.dtype != _SCALES:
            yield DtypeDiffers(
                part=part, layer=layer, parameter=tensor.name,
                reference=_SCALES, device=tensor.dtype,
            )  # fmt: skip
            return
        yield from self._scale_placement(layer, parameter, tensor)
        for odd in odd_replicas(tensor):
            yield ReplicasDiffer(part=part, layer=layer, parameter=tensor.name, **odd)

    def _scale_shape(self, parameter: Parameter) -> tuple[int, int, int]:
        """[E, rows, columns]: a row for each matrix, and, for the fused kernel, D's or F's padding.

        Upstream pads scales as it pads weights; only the axis along inputs is one row long
        (``process_moe_weights``).
        """
        experts, rows, columns = self.layout.shapes[parameter]
        if self.layout.backend is not Backend.FUSED_MOE:
            return experts, 1, columns
        shape = self.reference.shape
        if parameter is Parameter.W13:
            return experts, rows - 2 * (shape.hidden - 1), columns
        return experts, rows - (shape.intermediate - 1), columns

    def _scale_placement(
        self, layer: int, parameter: Parameter, tensor: DeviceTensor
    ) -> Iterator[Difference]:
        """Scales lie as their weights do; w2's, one for each output, on every device (GMM_TP)."""
        whole = tuple(Span(0, size) for size in tensor.shape)
        by_output = self.layout.backend is Backend.GMM_TP and parameter is Parameter.W2
        axis = len(whole) - 1 if self.layout.backend is Backend.GMM_TP else 0
        part = tensor.shape[axis] // self.layout.shards
        shares = {}
        for number in self.held.shards:
            device = self.device.mesh[number]
            own = Span(number * part, (number + 1) * part)
            cut = (*whole[:axis], own, *whole[axis + 1 :])
            shares[device] = (number, whole if by_output else cut)
        for fact in misplaced(tensor, shares):
            yield ShardMisplaced(
                part=self.reference.part, layer=layer, parameter=tensor.name, **fact
            )

    def _matrix(self, key: ExpertKey, tensor: DeviceTensor, words: Words | None) -> Check:
        """Values are compared: what they are made of is no pair of arrays."""
        _, nbytes, found = self._departs(key)
        return Check(key, nbytes, equal=found is None)

    def _unequal(self, key: ExpertKey, tensor: DeviceTensor) -> Difference:
        source, _, found = self._departs(key)
        if found is None:
            raise RuntimeError(f"the values of {key} were unequal, and are equal: a fault of ours")
        return ValuesDiffer(
            part=key.part, layer=key.layer, expert=key.expert, projection=key.projection,
            parameter=tensor.name, source=source, **found,
        )  # fmt: skip

    def _departs(self, key: ExpertKey) -> tuple[TensorSlice, int, UnequalValues | None]:
        """Where a matrix stands, bytes of it, and how the device's values depart from it."""
        source = self.reference.source(key)
        checkpoint = self.reference.checkpoint
        entry = checkpoint.entries[f"{source.tensor}{SCALE_SUFFIX}"]
        reference, grid = self.reference[key], scales_as_f32(entry.bits(), entry.dtype)
        found = departs(self.device_bits(key), self._scales(key), reference, grid, EXPERTS)
        return source, reference.nbytes + entry.nbytes, found

    def _scales(self, key: ExpertKey) -> Values:
        """The device's scales of one matrix, one for each output."""
        tensor = self.device.scales[key.layer][PARAMETER_OF[key.projection]].folded()
        blocks = self.layout.blocks_of(key.projection)
        out = np.zeros(max(block.outputs.stop for block in blocks), dtype="<u4")
        for block in blocks:
            row = self._scale_row(block)
            out[block.outputs.as_slice()] = tensor.rectangle(key.expert, row, block.columns)[0]
        return scales_as_f32(out, tensor.dtype)

    def _scale_row(self, block: LayoutBlock) -> Span:
        """Where a block's scales are on the middle axis: FUSED_MOE has gate's, then up's."""
        second = self.layout.backend is Backend.FUSED_MOE and block.rows.start > 0
        rows = self._scale_shape(block.parameter)[1] // 2
        return Span(rows, rows + 1) if second else Span(0, 1)


def part_comparison(reference: ReferencePart, device: DevicePart, **options: Any) -> PartComparison:
    """The comparison of a part's experts, by bits or, in an FP8 release, by values."""
    made = Fp8PartComparison if reference.checkpoint.fp8 else PartComparison
    return made(reference, device, **options)


def unequal_values(
    checkpoint: ModelCheckpoint, weight: ParameterView, scales: ParameterView
) -> Iterator[tuple[TensorSlice, UnequalValues]]:
    """What is off of a quantised parameter: where the reference has it, and how it departs.

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
            held = recovered(scales, name, copy, "", np.zeros(len(reference), dtype="<u4"))
            found = departs(codes, scales_as_f32(held, "F32"), reference, grid, LINEAR)
            if found:
                yield TensorSlice(entry.file.name, name, copy=copy), found
