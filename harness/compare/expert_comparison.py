"""Compares a part of the model on the device with the reference, bit for bit.

Metadata before values; whole slices before elements: a slice is walked only when it is unequal.
Every difference is collected. Memory stays at a few expert slices.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, groupby
from typing import NamedTuple

import numpy as np

from harness.base.bits import Bits, Nan, bits_dtype, canonical_nans, converted, itemsize
from harness.base.errors import BadInput
from harness.base.progress import Meter
from harness.base.scanning import nonzero, unequal
from harness.compare.authority import WEIGHTS, Authority, as_text
from harness.compare.checks import Check, Checked, Gap
from harness.compare.difference import (
    ArrayExtra,
    ArrayMissing,
    BitsDiffer,
    Difference,
    DigestDiffers,
    DtypeDiffers,
    PaddingWritten,
    ShapeDiffers,
    ShardMisplaced,
    Tally,
)
from harness.compare.digest_comparison import (
    ExpertAnswers,
    Method,
    held_digest,
    reference_digest,
)
from harness.compare.equality import all_equal, on_all_cores, zeros
from harness.compare.file_sums import HeldForm, digest_of_matrix, digests_of_expert
from harness.compare.selection import Chosen, keys_of
from harness.devices.digest import Words
from harness.devices.expert_layout import (
    PARAMETER_OF,
    Backend,
    Layout,
    Padding,
    Parameter,
    Span,
    expert_layout,
)
from harness.devices.held import Held
from harness.devices.sharding import misplaced
from harness.devices.tensors import DevicePart, DeviceTensor
from harness.families.experts import ExpertKey, ExpertShape, ReferencePart
from harness.families.family import Projection


def tally_of(reference: ReferencePart, chosen: Chosen | None = None) -> Tally:
    """The tally of a part of which nothing has been compared yet."""
    return Tally(
        part=reference.part,
        layers=len(reference.layers),
        experts=len(reference.layers) * reference.shape.experts,
        left_out=chosen.left_out if chosen else 0,
    )


_Tensors = dict[Parameter, DeviceTensor]


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer, before its experts are compared.

    Attributes:
        number: which.
        differences: how its arrays depart as a whole.
        tensors: those that can be compared.
        experts: to be compared.
        digests: what the devices say of them.
    """

    number: int
    differences: list[Difference]
    tensors: _Tensors
    experts: list[int]
    digests: ExpertAnswers


class _Step(NamedTuple):
    """A layer, and what came of one of its experts; of none before the first."""

    layer: _Layer
    verdicts: list[Checked]


class PartComparison:
    """The comparison of one part: yields differences, keeps the tally.

    Args:
        reference: the part's experts in the checkpoint.
        device: the part's arrays on the mesh.
        backend: the packing the device is to have.
        nan: how NaNs count; ``canonical`` is defined for bf16 only.
        chosen: the experts to compare, all by default; arrays as a whole are looked at anyway.
        method: how their bits are compared.
        authority: settles which bits are right.
        meter: counts the bytes of experts that were compared.
    """

    def __init__(
        self,
        reference: ReferencePart,
        device: DevicePart,
        *,
        backend: Backend = Backend.GMM_TP,
        nan: Nan = Nan.PAYLOAD,
        chosen: Chosen | None = None,
        method: Method = Method.AUTO,
        authority: Authority = WEIGHTS,
        meter: Meter | None = None,
    ) -> None:
        self._method = method
        self._last = threading.local()
        self.authority = authority
        self._meter = meter or Meter()
        self.reference = reference
        self.device = device
        self.layout: Layout = expert_layout(
            backend, self.packed_shape(), len(device.mesh),
            alternating=reference.checkpoint.family.alternating,
        )  # fmt: skip
        self.held = Held(self.layout, device.mesh, device.local)
        self._blocks = {projection: self.held.blocks(projection) for projection in Projection}
        padding = [gap for gap in self.layout.padding if self.held.holds(gap)]
        self._gaps = {p: [gap for gap in padding if gap.parameter is p] for p in Parameter}
        self._nan = nan
        self.chosen = chosen or Chosen(reference)
        self.tally = tally_of(reference, self.chosen)
        self.tally.divided = self.held.divides_experts

    def packed_shape(self) -> ExpertShape:
        """Sizes of an expert on the devices."""
        return self.reference.shape

    def differences(self) -> Iterator[Difference]:
        """Yield every difference: what is extra, then layer by layer."""
        part = self.reference.part
        for layer in sorted(set(self.device.layers) - set(self.reference.layers)):
            name = next(iter(self.device.layers[layer].values())).name
            yield ArrayExtra(part=part, layer=layer, parameter=name)
        for name in self.device.unknown:
            yield ArrayExtra(part=part, parameter=name)
        for layer, steps in groupby(self._steps(), key=lambda step: step.layer):
            yield from layer.differences
            for verdict in chain.from_iterable(step.verdicts for step in steps):
                yield from self._noted(verdict, layer)
            if len(layer.tensors) == len(Parameter):
                self.tally.experts_compared += len(layer.experts)

    def reference_bits(self, key: ExpertKey) -> Bits:
        """What the devices of this process are to hold for ``key``, [output, input]."""
        return self.expected(self.held.of(key.projection, self.reference[key]))

    def stored_bits(self, key: ExpertKey) -> tuple[Bits, str]:
        """The same elements as the checkpoint has them, and their dtype."""
        bits, dtype = self.reference.stored(key)
        return self.held.of(key.projection, bits), dtype

    def finder(self) -> Callable[[Bits], ExpertKey | None] | None:
        """What finds a matrix [output, input] of a whole expert by its digest; None if nothing."""
        if not (self.authority.finds and self._has_whole_matrices):
            return None

        def find(bits: Bits) -> ExpertKey | None:
            for projection in (Projection.GATE, Projection.DOWN):  # up is digested as gate is
                words = digest_of_matrix(bits, projection)
                found = self.authority.find(words, self.reference.shape.dtype)
                down = isinstance(found, ExpertKey) and found.projection is Projection.DOWN
                if isinstance(found, ExpertKey) and down is (projection is Projection.DOWN):
                    return found
            return None

        return find

    def expected(self, bits: Bits) -> Bits:
        """What becomes of reference bits, of the model's dtype, on the way to the device."""
        if self._nan is Nan.CANONICAL and self.reference.shape.dtype == "BF16":
            return canonical_nans(bits)
        return bits

    def device_bits(self, key: ExpertKey) -> Bits:
        """What those devices hold for ``key``, [output, input], through the layout; a copy."""
        tensor = self.device.layers[key.layer][PARAMETER_OF[key.projection]]
        out = np.empty(self.reference[key].shape, dtype=bits_dtype(tensor.dtype))
        for block in self.held.blocks(key.projection):
            block.of(out)[:] = tensor.rectangle(key.expert, block.rows, block.columns)
        return self.held.of(key.projection, out)

    def _steps(self) -> Iterator[_Step]:
        """What comparing showed, expert by expert; layers follow each other without a pause."""
        return on_all_cores(self._step, self._tasks())

    def _tasks(self) -> Iterator[tuple[_Layer, int | None]]:
        """Every layer, none of its experts yet; then them.

        Devices are asked about all layers before the first is judged.
        """
        for layer in [self._layer(layer) for layer in self.reference.layers]:
            yield layer, None
            for expert in layer.experts:
                yield layer, expert

    def _step(self, task: tuple[_Layer, int | None]) -> _Step:
        layer, expert = task
        return _Step(layer, [] if expert is None else self._judge(layer, expert))

    def _layer(self, number: int) -> _Layer:
        """A layer's arrays: how they depart as a whole, which can be read; devices are asked."""
        tensors = self.device.layers.get(number, {})
        differences: list[Difference] = []
        readable: _Tensors = {}
        summed: _Tensors = {}  # compared by digests
        for parameter in Parameter:
            found = list(self._metadata(number, parameter, tensors.get(parameter)))
            differences += found
            if not any(isinstance(d, ArrayMissing | ShapeDiffers | DtypeDiffers) for d in found):
                readable[parameter] = tensor = tensors[parameter]
                # digests are of whole blocks: only right shards are known to hold those
                placed = not any(isinstance(d, ShardMisplaced) for d in found)
                if placed and self._method.by_digests([tensor]):
                    summed[parameter] = tensor
        experts = self.held.experts(self.chosen.of(number)) if readable else []
        return _Layer(number, differences, readable, experts, self._asked(summed))

    def _asked(self, summed: _Tensors) -> ExpertAnswers:
        """Have devices digest arrays, and look at their padding."""
        blocks = {
            p: [b for of in self._blocks.values() for b in of if b.parameter is p] for p in summed
        }
        return ExpertAnswers(summed, blocks, self._gaps, self.reference.shape.intermediate)

    def _metadata(
        self, layer: int, parameter: Parameter, tensor: DeviceTensor | None
    ) -> Iterator[Difference]:
        part, shape = self.reference.part, self.layout.shapes[parameter]
        if tensor is None:
            yield ArrayMissing(
                part=part, layer=layer, parameter=parameter, expected=f"an array {list(shape)}"
            )
            return
        if tensor.shape != shape:
            yield ShapeDiffers(
                part=part, layer=layer, parameter=tensor.name, reference=shape, device=tensor.shape
            )
            return
        if tensor.dtype != self.reference.shape.dtype:
            yield DtypeDiffers(
                part=part, layer=layer, parameter=tensor.name,
                reference=self.reference.shape.dtype, device=tensor.dtype,
            )  # fmt: skip
        yield from self._placement(layer, parameter, tensor)

    def _placement(
        self, layer: int, parameter: Parameter, tensor: DeviceTensor
    ) -> Iterator[Difference]:
        axis = self.layout.sharded_axis[parameter]
        shares = {}
        for number in self.held.shards:
            wanted = [Span(0, size) for size in tensor.shape]
            wanted[axis] = self.layout.shard_span(parameter, number)
            shares[self.device.mesh[number]] = (number, tuple(wanted))
        for fact in misplaced(tensor, shares):
            yield ShardMisplaced(
                part=self.reference.part, layer=layer, parameter=tensor.name, **fact
            )

    def _gap(self, layer: int, tensor: DeviceTensor, expert: int, gap: Padding) -> Difference:
        bits = tensor.rectangle(expert, gap.rows, gap.columns)
        written = nonzero(bits)
        assert written, "only what is not zero comes here"
        row, column = written.first
        at = (expert, gap.rows.start + row, gap.columns.start + column)
        shard, device_name = self._holder(tensor, at)
        return PaddingWritten(
            part=self.reference.part, layer=layer, expert=expert, parameter=tensor.name, index=at,
            device=int(bits[row, column]), itemsize=bits.itemsize,
            count=written.count, total=bits.size,
            shard=shard, device_name=device_name,
        )  # fmt: skip

    def _judge(self, layer: _Layer, expert: int) -> list[Checked]:
        """Compare an expert's padding and matrices: all at once, one by one if that is unequal."""
        checks = [*self._padding(layer, expert)]
        for key in keys_of(self.reference.part, layer.number, [expert]):
            if (tensor := layer.tensors.get(PARAMETER_OF[key.projection])) is not None:
                checks.append(self._matrix(key, tensor, layer.digests.words.get(key.projection)))
        equal = all_equal(chain.from_iterable(check.pairs for check in checks))
        return [
            Checked(c.what, c.nbytes, equal=c.equal and (equal or all_equal(c.pairs)))
            for c in checks
        ]

    def _padding(self, layer: _Layer, expert: int) -> Iterator[Check]:
        """What is to be zero; the device was asked for it, or it is read."""
        for parameter, tensor in layer.tensors.items():
            suspects = layer.digests.dirty.get(parameter)
            for number, gap in enumerate(self._gaps[parameter]):
                what = Gap(expert, gap)
                nbytes = len(gap.rows) * len(gap.columns) * itemsize(tensor.dtype)
                if suspects is None:
                    bits = tensor.rectangle(expert, gap.rows, gap.columns)
                    yield Check(what, nbytes, [(bits, zeros(bits.shape, bits.dtype))])
                else:
                    yield Check(what, nbytes, equal=(expert, number) not in suspects)

    def _matrix(self, key: ExpertKey, tensor: DeviceTensor, words: Words | None) -> Check:
        """A matrix: bits beside bits, or digests where one side has those.

        ``words`` are the experts' digests, as the device made them.
        """
        blocks = self._blocks[key.projection]
        elements = sum(len(block.rows) * len(block.columns) for block in blocks)
        nbytes = elements * itemsize(self.reference.shape.dtype)
        if (known := self._known(key)) is not None:
            held = self._held(key, tensor) if words is None else words[key.expert]
            return Check(key, nbytes, equal=np.array_equal(held, known))
        try:
            if not self._vouched(key):
                return Check(key, nbytes, equal=False)
        except BadInput:  # told of by the difference
            return Check(key, nbytes, equal=False)
        if words is not None:
            return Check(key, nbytes, equal=np.array_equal(words[key.expert], self._wanted(key)))
        expected = self.expected(self.reference[key])
        pairs = [(tensor.rectangle(key.expert, b.rows, b.columns), b.of(expected)) for b in blocks]
        return Check(key, nbytes, pairs)

    @property
    def _has_whole_matrices(self) -> bool:
        """Whether these devices hold all of any matrix of which they hold some."""
        return self.held.whole or not self.held.divides_experts

    def _known(self, key: ExpertKey) -> Words | None:
        """What a matrix digests to, by the authority, if all of it is on these devices."""
        if not self._has_whole_matrices:
            return None
        return self.authority.digest(key, self.reference.shape.dtype)

    def _wanted(self, key: ExpertKey) -> Words:
        """What these devices' part of a matrix is to digest to, made of the checkpoint's bits.

        All of an expert's matrices are read at once; each thread keeps those of its last.
        """
        if not self._has_whole_matrices:
            expected = self.expected(self.reference[key])
            return reference_digest(expected, self._blocks[key.projection])
        which = (key.layer, key.expert)
        last = getattr(self._last, "words", None)
        if last is None or last[0] != which:
            (words,) = digests_of_expert(self.reference, *which, [self._form])
            self._last.words = last = (which, words)
            self._tell(key, words)
        found: Words = last[1][tuple(Projection).index(key.projection)]
        return found

    def _tell(self, key: ExpertKey, words: Words) -> None:
        """Have whoever listens to the checkpoint know an expert's digests, uint32 [3, 4]."""
        listener = self.reference.checkpoint.listener
        if listener is None or self._nan is not Nan.PAYLOAD:
            return
        for projection, each in zip(Projection, words, strict=True):
            listener.digests(
                key._replace(projection=projection), {self.reference.shape.dtype: each}
            )

    @property
    def _form(self) -> HeldForm:
        keeps = self.reference.shape.dtype if self._nan is Nan.PAYLOAD else ""
        return HeldForm(self._as_held, keeps)

    def _as_held(self, bits: Bits, dtype: str) -> Bits:
        return self.expected(converted(bits, dtype, self.reference.shape.dtype))

    def _held(self, key: ExpertKey, tensor: DeviceTensor) -> Words:
        """What the devices hold of a matrix digests to, read back."""
        blocks, width = self._blocks[key.projection], self.reference.shape.intermediate
        return held_digest(tensor, key.expert, blocks, width)

    def _vouched(self, key: ExpertKey) -> bool:
        """Whether the checkpoint's own bits of a matrix, which are to be read, are the right ones.

        Raises:
            BadInput: they cannot be read.
        """
        self.authority.had_to_read(self.reference.source(key).tensor)
        return self.authority.vouches(
            key,
            self.reference.shape.dtype,
            lambda: digest_of_matrix(self.reference[key], key.projection),
        )

    def _noted(self, verdict: Checked, layer: _Layer) -> Iterator[Difference]:
        """Count what was compared, and walk it if it is unequal."""
        what, nbytes, equal = verdict
        if isinstance(what, Gap):
            self.tally.padding_bytes += nbytes
            if not equal:
                tensor = layer.tensors[what.padding.parameter]
                yield self._gap(layer.number, tensor, *what)
            return
        self.tally.bytes_compared += nbytes
        self._meter.advance(nbytes)
        if not equal:
            yield self._unequal(what, layer.tensors[PARAMETER_OF[what.projection]])

    def _unequal(self, key: ExpertKey, tensor: DeviceTensor) -> Difference:
        return self._by_digests(key, tensor) or self._by_bits(key, tensor)

    def _by_digests(self, key: ExpertKey, tensor: DeviceTensor) -> DigestDiffers | None:
        """A difference that has no bits to show: the checkpoint's are not the right ones either."""
        dtype = self.reference.shape.dtype
        known, here, unread = self.authority.digest(key, dtype), "", ""
        try:
            if self._vouched(key):
                return None
            here = as_text(digest_of_matrix(self.reference[key], key.projection))
        except BadInput as error:
            if known is None:
                raise
            unread = error.paragraph
        return DigestDiffers(
            part=key.part, layer=key.layer, expert=key.expert, projection=key.projection,
            parameter=tensor.name, source=self.reference.source(key), dtype=dtype,
            reference="" if known is None else as_text(known),
            device="" if self._known(key) is None else as_text(self._held(key, tensor)),
            checkpoint=here, unread=unread,
        )  # fmt: skip

    def _by_bits(self, key: ExpertKey, tensor: DeviceTensor) -> BitsDiffer:
        reference, device = self.reference_bits(key), self.device_bits(key)
        if not (odd := unequal(device, reference)):
            raise RuntimeError(f"the digest of {key} differs, its bits do not: a fault of ours")
        first = odd.first
        width = self.reference.shape.intermediate
        output, input_ = self.held.index(key.projection, (first[0], first[1]), width)
        shard, device_name = self._holder(tensor, self._device_index(key, output, input_))
        return BitsDiffer(
            part=key.part, layer=key.layer, expert=key.expert, projection=key.projection,
            parameter=tensor.name, source=self.reference.source(key), index=(output, input_),
            reference=int(reference[first]), device=int(device[first]), itemsize=device.itemsize,
            count=odd.count, total=device.size,
            shard=shard, device_name=device_name,
        )  # fmt: skip

    def _device_index(self, key: ExpertKey, output: int, input_: int) -> tuple[int, int, int]:
        """Where element [output, input] of ``key`` lies in its device array."""
        blocks = self.layout.blocks_of(key.projection)
        block = next(block for block in blocks if block.holds(output, input_))
        return key.expert, *block.position(output, input_)

    def _holder(self, tensor: DeviceTensor, at: tuple[int, int, int]) -> tuple[int | None, str]:
        """The number and the device of the shard that holds an element."""
        shard = tensor.holder(*at)
        if shard is None:
            return None, ""
        mesh = self.device.mesh
        return (mesh.index(shard.device) if shard.device in mesh else None), shard.device
