"""Compares a part of the model on the device with the reference, bit for bit.

Metadata before values; whole slices before elements: a slice is walked only when it is unequal.
Every difference is collected. Memory stays at a few expert slices.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import partial
from itertools import chain

import numpy as np

from harness.base.bits import Bits, Nan, bits_dtype, canonical_nans, itemsize
from harness.base.errors import BadInput
from harness.base.progress import Meter
from harness.base.scanning import nonzero, unequal
from harness.compare.authority import WEIGHTS, Authority, as_text
from harness.compare.checks import Check, Checked, Digests, Gap
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
    Method,
    device_digests,
    dirty,
    held_digest,
    reference_digest,
)
from harness.compare.digesting import digest_of_matrix
from harness.compare.equality import all_equal, on_all_cores, zeros
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
        for layer in self.reference.layers:
            yield from self._layer(layer)

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

    def _layer(self, layer: int) -> Iterator[Difference]:
        tensors = self.device.layers.get(layer, {})
        readable: _Tensors = {}
        summed: set[Parameter] = set()  # compared by digests
        for parameter in Parameter:
            found = list(self._metadata(layer, parameter, tensors.get(parameter)))
            yield from found
            if not any(isinstance(d, ArrayMissing | ShapeDiffers | DtypeDiffers) for d in found):
                readable[parameter] = tensor = tensors[parameter]
                # digests are of whole blocks: only right shards are known to hold those
                placed = not any(isinstance(d, ShardMisplaced) for d in found)
                if placed and self._method.by_digests([tensor]):
                    summed.add(parameter)
        experts = self.held.experts(self.chosen.of(layer)) if readable else []
        judge = partial(self._judge, layer, readable, self._digests(readable, summed))
        for verdict in chain.from_iterable(on_all_cores(judge, experts)):
            yield from self._noted(verdict, layer, readable)
        if len(readable) == len(Parameter):
            self.tally.experts_compared += len(experts)

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

    def _digests(self, tensors: _Tensors, summed: Collection[Parameter]) -> Digests:
        """What the devices say of the arrays that are compared by digests."""
        found = Digests({}, {})
        for parameter in summed:
            blocks = [b for of in self._blocks.values() for b in of if b.parameter is parameter]
            width = self.reference.shape.intermediate
            found.words.update(device_digests(tensors[parameter], blocks, width))
            found.dirty[parameter] = dirty(tensors[parameter], self._gaps[parameter])
        return found

    def _judge(self, layer: int, tensors: _Tensors, digests: Digests, expert: int) -> list[Checked]:
        """Compare an expert's padding and matrices: all at once, one by one if that is unequal."""
        checks = [*self._padding(tensors, digests, expert)]
        for key in keys_of(self.reference.part, layer, [expert]):
            if (tensor := tensors.get(PARAMETER_OF[key.projection])) is not None:
                checks.append(self._matrix(key, tensor, digests.words.get(key.projection)))
        equal = all_equal(chain.from_iterable(check.pairs for check in checks))
        return [
            Checked(c.what, c.nbytes, equal=c.equal and (equal or all_equal(c.pairs)))
            for c in checks
        ]

    def _padding(self, tensors: _Tensors, digests: Digests, expert: int) -> Iterator[Check]:
        """What is to be zero; the device was asked for it, or it is read."""
        for parameter, tensor in tensors.items():
            suspects = digests.dirty.get(parameter)
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
        expected = self.expected(self.reference[key])
        if words is not None:
            digest = reference_digest(expected, blocks)
            return Check(key, nbytes, equal=np.array_equal(words[key.expert], digest))
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

    def _noted(self, verdict: Checked, layer: int, tensors: _Tensors) -> Iterator[Difference]:
        """Count what was compared, and walk it if it is unequal."""
        what, nbytes, equal = verdict
        if isinstance(what, Gap):
            self.tally.padding_bytes += nbytes
            if not equal:
                yield self._gap(layer, tensors[what.padding.parameter], *what)
            return
        self.tally.bytes_compared += nbytes
        self._meter.advance(nbytes)
        if not equal:
            yield self._unequal(what, tensors[PARAMETER_OF[what.projection]])

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
