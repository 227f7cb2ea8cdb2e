"""Compares a quantised release's experts: codes and scales in bits, or as quantised anew.

What upstream keeps as it is stored is compared bit for bit. What it quantises anew is held to the
rule that :mod:`harness.checkpoint.grids` derives: each scale must be the one that the checkpoint's
values make, and each code one that its value may become; rounding leaves two to choose from for a
few values in a thousand.

Both rules ask the checkpoint for a scale, never the device. So of several hosts each judges the
codes and the scales that its own devices hold, wherever the blocks are cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from harness.base.bits import Bits
from harness.base.scanning import nonzero
from harness.checkpoint.grids import Departed, Quantised, Values, grid_of, kept, requantised
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
from harness.devices.digest import Words
from harness.devices.expert_layout import PARAMETER_OF, Backend, Parameter, Span
from harness.devices.replicas import odd_replicas
from harness.devices.sharding import misplaced
from harness.devices.tensors import DevicePart, DeviceTensor
from harness.families.experts import ExpertKey, ExpertShape, ReferencePart, TensorSlice
from harness.families.family import Projection
from harness.families.formats.format import Stored, TensorKind

_SCALES = "F32"  # whatever the checkpoint's are
_FOUR_BITS = 0xF


class HeldMatrix(NamedTuple):
    """What the device holds of a matrix.

    Attributes:
        codes: [outputs, inputs], padding and all.
        scales: [outputs, blocks of inputs].
    """

    codes: Bits
    scales: Values


class QuantisedPartComparison(PartComparison):
    """The comparison of one part's quantised experts; see
    :class:`harness.compare.expert_comparison.PartComparison`.

    Raises:
        BadInput: digests were asked for; of values there are none.
    """

    def __init__(self, reference: ReferencePart, device: DevicePart, **options: Any) -> None:
        assert reference.format
        self.form = reference.format.form
        scales = {t.name for tensors in device.scales.values() for t in tensors.values()}
        self._left = {_left_as(p, k): (p, k) for k in reference.format.tensors if k.left
                      for p in Parameter}  # fmt: skip
        for of in device.others.values():
            scales |= {of[name].name for name in self._left.keys() & of.keys()}
        unknown = tuple(name for name in device.unknown if name not in scales)
        if options.get("method") is Method.DIGESTS:
            raise no_digests("a quantised release, whose values are compared, not its bits")
        super().__init__(reference, replace(device, unknown=unknown), **options)
        self._here = {projection: self._masks(projection) for projection in Projection}

    def packed_shape(self) -> ExpertShape:
        """Sizes on the device: padded to whole blocks, where the loader does that."""
        return self.reference.packed_shape

    def block_of(self, projection: Projection) -> int:
        """How many inputs share a scale on the device."""
        shape = self.packed_shape()
        inputs = shape.intermediate if projection is Projection.DOWN else shape.hidden
        return min(self.form.block or inputs, inputs)

    def differences(self) -> Iterator[Difference]:
        """Yield every difference: those of weights and scales, then of what upstream left."""
        yield from super().differences()
        for layer in self.reference.layers if self.held.shards else ():  # else a copy elsewhere
            for name, tensor in self.device.others.get(layer, {}).items():
                if name in self._left:
                    yield from self._left_behind(layer, tensor, *self._left[name])

    def _left_behind(
        self, layer: int, tensor: DeviceTensor, parameter: Parameter, kind: TensorKind
    ) -> Iterator[Difference]:
        """An array of a number for each matrix, [E, 2] or [E], that is replicated."""
        whole = tensor.distinct_shards[0].fetch(...)
        held = whole.view("<f4").reshape(len(whole), -1)
        for key in self.reference.keys_of(layer):
            if PARAMETER_OF[key.projection] is not parameter:
                continue
            source = self.reference.source(key)
            name = self.reference.naming.beside(source.tensor, kind.suffix)
            entry = self.reference.checkpoint.entries[name]
            right = Stored(entry.bits(), entry.dtype).f32.ravel()[0]
            column = int(key.projection is Projection.UP)
            found = held[key.expert, column]
            if right.tobytes() != found.tobytes():
                yield ValuesDiffer(
                    part=key.part, layer=layer, expert=key.expert, projection=key.projection,
                    parameter=tensor.name, source=TensorSlice(source.file, name),
                    index=(key.expert, column), reference=f"{right:.9g}", device=f"{found:.9g}",
                    count=1, total=1, pattern=f"{name} is left on the device with another value",
                )  # fmt: skip

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

    def _blocks_along(self, parameter: Parameter) -> int:
        """How many scales an output has."""
        down = parameter is Parameter.W2
        shape = self.packed_shape()
        inputs = shape.intermediate if down else shape.hidden
        return -(-inputs // self.block_of(Projection.DOWN if down else Projection.GATE))

    def _scale_shape(self, parameter: Parameter) -> tuple[int, int, int]:
        """[E, rows, columns]: a row for each block of inputs, and columns as the weights have.

        Upstream pads scales as it pads weights, for the fused kernel along the blocks, too, by as
        many rows as D or F gets (``process_moe_weights``).
        """
        experts, rows, columns = self.layout.shapes[parameter]
        blocks = self._blocks_along(parameter)
        if self.layout.backend is not Backend.FUSED_MOE:
            return experts, blocks, columns
        shape = self.packed_shape()
        if parameter is Parameter.W13:
            return experts, rows - 2 * (shape.hidden - blocks), columns
        return experts, rows - (shape.intermediate - blocks), columns

    def _scale_placement(
        self, layer: int, parameter: Parameter, tensor: DeviceTensor
    ) -> Iterator[Difference]:
        """Scales lie as their weights do; w2's of whole channels on every device (GMM_TP)."""
        whole = tuple(Span(0, size) for size in tensor.shape)
        tensor_parallel = self.layout.backend is Backend.GMM_TP
        down = parameter is Parameter.W2
        everywhere = tensor_parallel and down and self._blocks_along(parameter) == 1
        axis = 0 if not tensor_parallel else 1 if down else len(whole) - 1
        part = tensor.shape[axis] // self.layout.shards
        shares = {}
        for number in self.held.shards:
            device = self.device.mesh[number]
            own = Span(number * part, (number + 1) * part)
            cut = (*whole[:axis], own, *whole[axis + 1 :])
            shares[device] = (number, whole if everywhere else cut)
        for fact in misplaced(tensor, shares):
            yield ShardMisplaced(
                part=self.reference.part, layer=layer, parameter=tensor.name, **fact
            )

    def _masks(self, projection: Projection) -> Departed | None:
        """Which codes and scales of an expert's matrix are here; None where a whole one is."""
        if self.held.whole or not self.held.divides_experts:
            return None
        outputs, inputs = self._sizes(projection)
        parameter = PARAMETER_OF[projection]
        codes = np.zeros((outputs, inputs), dtype=bool)
        scales = np.zeros((outputs, self._blocks_along(parameter)), dtype=bool)
        for block in self.held.blocks(projection):
            block.of(codes)[:] = True
            if parameter is Parameter.W13:
                scales[block.outputs.as_slice()] = True
        if parameter is Parameter.W2:
            for number in self.held.shards:
                scales[:, self._scale_rows(number)] = True
        return Departed(codes, scales)

    def _scale_rows(self, shard: int) -> slice:
        """Of w2's scales, where the intermediate axis is cut, the rows that a shard holds."""
        count = self._blocks_along(Parameter.W2)
        part = count // self.layout.shards
        return slice(0, 1) if count == 1 else slice(shard * part, (shard + 1) * part)

    def _sizes(self, projection: Projection) -> tuple[int, int]:
        """Outputs and inputs of a matrix on the device."""
        shape = self.packed_shape()
        sizes = (shape.intermediate, shape.hidden)
        return sizes[::-1] if projection is Projection.DOWN else sizes

    def _matrix(self, key: ExpertKey, tensor: DeviceTensor, words: Words | None) -> Check:
        """Judged as a whole: what it is made of is no pair of arrays."""
        wanted = self.reference.quantised(key)
        nbytes = wanted.codes.nbytes + wanted.scales.nbytes
        if self._here[key.projection]:
            nbytes = nbytes * len(self.held.shards) // self.layout.shards
        return Check(key, nbytes, equal=not self.departure(key, wanted).any)

    def departure(self, key: ExpertKey, wanted: Quantised, rows: slice = slice(None)) -> Departed:
        """Where the device does not hold what upstream makes of ``wanted`` in the place of ``key``.

        What lies on other hosts' devices departs nowhere.

        Args:
            key: names the matrix.
            wanted: the checkpoint's codes and scales, or what may have been taken for them.
            rows: the outputs that ``wanted`` is of; all by default.
        """
        whole = self.holds(key)
        held = HeldMatrix(whole.codes[rows], whole.scales[rows])
        departed = self._departure(key, wanted, held)
        here = self._here[key.projection]
        return departed.within(here, rows) if here else departed

    def _departure(self, key: ExpertKey, wanted: Quantised, held: HeldMatrix) -> Departed:
        """The same as if the devices of this process held all of it."""
        if self.form.kept:
            return kept(wanted, held.codes, held.scales)
        outputs, inputs = held.codes.shape
        values = wanted.values
        if values.shape != held.codes.shape:
            more = [(0, outputs - values.shape[0]), (0, inputs - values.shape[1])]
            values = np.pad(values, more)
        block = self.block_of(key.projection)
        return requantised(values, self.form.dtype, held.codes, held.scales, block)

    def holds(self, key: ExpertKey) -> HeldMatrix:
        """The device's codes and scales of one matrix, through the layout.

        Zeros stand for those that other hosts' devices hold.
        """
        tensor = self.device.layers[key.layer][PARAMETER_OF[key.projection]]
        scales = self.device.scales[key.layer][PARAMETER_OF[key.projection]].folded()
        outputs, inputs = self._sizes(key.projection)
        codes = np.zeros((outputs, inputs), dtype=np.uint8)
        count = self._blocks_along(PARAMETER_OF[key.projection])
        held = np.zeros((outputs, count), dtype="<u4")
        second = self._scale_shape(PARAMETER_OF[key.projection])[1] // 2
        for block in self.held.blocks(key.projection):
            block.of(codes)[:] = tensor.rectangle(key.expert, block.rows, block.columns)
            after = self.layout.backend is Backend.FUSED_MOE and block.rows.start > 0
            rows = Span(second, second + count) if after else Span(0, count)
            held[block.outputs.as_slice()] = scales.rectangle(key.expert, rows, block.columns).T
        if len(grid_of(self.form.dtype).values) == _FOUR_BITS + 1:
            codes &= _FOUR_BITS
        return HeldMatrix(codes, held.view("<f4"))

    def _unequal(self, key: ExpertKey, tensor: DeviceTensor) -> Difference:
        wanted, held = self.reference.quantised(key), self.holds(key)
        departed = self.departure(key, wanted)
        mask = departed.codes.copy()
        block = self.block_of(key.projection)
        mask |= np.repeat(departed.scales, block, axis=1)[:, : mask.shape[1]]
        here = self._here[key.projection]
        if here:
            mask &= here.codes  # a scale is wherever some of its codes are
        whole = here or Departed(np.ones_like(departed.codes), np.ones_like(departed.scales))
        found = nonzero(mask)
        if not found:
            raise RuntimeError(f"the values of {key} were unequal, and are equal: a fault of ours")
        first = found.first
        values = wanted.values
        inside = all(at < size for at, size in zip(first, values.shape, strict=True))
        code = grid_of(self.form.dtype).values[held.codes[first]]
        shard, device_name = self._holder(tensor, self._device_index(key, *first))
        with np.errstate(invalid="ignore", over="ignore"):
            device = code * held.scales[first[0], first[1] // block]
        return ValuesDiffer(
            part=key.part, layer=key.layer, expert=key.expert, projection=key.projection,
            parameter=tensor.name, source=self.reference.source(key),
            index=first, reference=f"{values[first] if inside else 0:.9g}",
            device=f"{device:.9g}", count=found.count, total=int(whole.codes.sum()),
            pattern=_extent(departed, whole), shard=shard, device_name=device_name,
        )  # fmt: skip


def _left_as(parameter: Parameter, kind: TensorKind) -> str:
    """The name of an array that upstream leaves: ``w13_weight_scale_2``."""
    return parameter.removesuffix("weight") + kind.suffix


def _extent(departed: Departed, whole: Departed) -> str:
    """How much of a matrix departs, of all that is here: codes, and scales of the device."""
    nouns = zip(departed, whole, ("codes", "scales"), strict=True)
    words = [f"{odd.sum()} of {all_.sum()} {noun}" for odd, all_, noun in nouns if odd.any()]
    return " and ".join(words) + " are not what the checkpoint's values make"


def part_comparison(reference: ReferencePart, device: DevicePart, **options: Any) -> PartComparison:
    """The comparison of a part's experts, by bits or as its format is quantised."""
    made = QuantisedPartComparison if reference.format else PartComparison
    return made(reference, device, **options)
