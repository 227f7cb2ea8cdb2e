"""Compares everything besides experts with the checkpoint, bit for bit, device by device.

Each device's shard is held against what its partition says it holds: first which part of the
whole, then every bit of it; replicas are not taken on trust. A parameter without a rule and
without a derivation is a difference, and so is a tensor of the checkpoint that no parameter holds.
Tensors are read a piece at a time, as they are judged. Devices with memory of their own are asked
what they hold digests to, before the reference is read; no more is read back unless it differs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property, partial
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple, TypedDict

import numpy as np

from harness.base.bits import ITEMSIZE, Bits, Nan, canonical_nans, converted
from harness.base.errors import BadInput
from harness.base.scanning import nonzero, scan
from harness.checkpoint.fp8_blocks import SCALE_SUFFIX
from harness.compare.accounting import left_alone, model_parts
from harness.compare.authority import WEIGHTS, Authority, as_text
from harness.compare.difference import (
    ArrayMissing,
    BitsDiffer,
    Difference,
    DigestDiffers,
    DtypeDiffers,
    PaddingWritten,
    ParameterTally,
    ReplicasDiffer,
    ShapeDiffers,
    ShardMisplaced,
    Subject,
    Unaccounted,
    ValuesDiffer,
)
from harness.compare.digest_comparison import Method
from harness.compare.digesting import digest_of_tensor
from harness.compare.equality import on_all_cores
from harness.compare.file_sums import HeldForm, digests_of_rows
from harness.compare.fp8_linear import unequal_values
from harness.compare.parameter_view import Fault, ParameterView, ParameterViews, is_fp8, padding_of
from harness.compare.pieces import (
    USUAL,
    Judged,
    Piece,
    PieceSize,
    judge_piece,
    note_fault,
    pieces_of,
)
from harness.compare.tensor_sums import Summed, TensorSums, question_of, sum_piece, sum_rows
from harness.devices.digest import Words
from harness.devices.expert_layout import Backend, Span
from harness.devices.mesh import Mesh
from harness.devices.parameter_layout import Packing, ParameterLayout
from harness.devices.programs import DeviceAnswer, ask
from harness.devices.replicas import odd_replicas
from harness.devices.sharding import misplaced
from harness.devices.tensors import DeviceTensor, is_of_experts
from harness.families.experts import ReferencePart, TensorSlice
from harness.families.family import Part


class _Array(TypedDict):
    """Which array a difference is of, as fields."""

    part: Part
    layer: int | None
    parameter: str


class _Wanted(NamedTuple):
    """What the reference's rows of a piece add to the digest that devices are to have."""

    source: str
    words: Words


_Seen = Judged | Summed | _Wanted


class _Step(NamedTuple):
    """A parameter, and what a piece of it showed; None before its first."""

    tensor: DeviceTensor
    seen: _Seen | None


class _Faults:
    """What departs of a parameter's tensors, as their pieces are compared."""

    def __init__(self) -> None:
        self._faults: dict[tuple[str, int], Fault] = {}
        self._totals: Counter[tuple[str, int]] = Counter()

    def add(self, judged: Judged) -> None:
        """Add what a piece showed."""
        piece, of_copies, unequal = judged
        for copy, count in of_copies.items():
            self._totals[piece.source, copy] += count
        for departure in unequal:
            note_fault(self._faults, piece, departure)

    def of(self, name: str) -> list[Fault]:
        """What departs of each copy of a tensor, of which all was compared."""
        found = {key: fault for key, fault in self._faults.items() if key[0] == name}
        for key, fault in found.items():
            fault.total = self._totals[key]
        return list(found.values())


class ParameterComparison:
    """The comparison of one part's parameters besides experts: yields differences, keeps a tally.

    Args:
        reference: the part's experts, and through them the checkpoint.
        tensors: all of the part's arrays on the devices; experts' are passed over.
        mesh: the devices.
        packing: what the release under test does to parameters.
        backend: the packing that experts have, whose biases follow it.
        nan: how NaNs count, see :class:`harness.base.bits.Nan`.
        chosen: whether a tensor or parameter of this layer (None: of no layer) is compared.
        local: of the devices, those this process addresses; None for all.
        authority: settles which bits are right.
        method: how bits are compared.
        size: of the pieces that parameters are compared in.
    """

    def __init__(
        self,
        reference: ReferencePart,
        tensors: Iterable[DeviceTensor],
        mesh: Mesh,
        *,
        packing: Packing,
        backend: Backend = Backend.GMM_TP,
        nan: Nan = Nan.PAYLOAD,
        chosen: Callable[[int | None], bool] = lambda _: True,
        local: frozenset[str] | None = None,
        authority: Authority = WEIGHTS,
        method: Method = Method.AUTO,
        size: PieceSize = USUAL,
    ) -> None:
        self.authority = authority
        self._method = method
        self.reference = reference
        self.checkpoint = reference.checkpoint
        self._family = reference.checkpoint.family
        self.mesh = mesh
        self.local = frozenset(mesh.devices) if local is None else local
        self.tally = ParameterTally(part=reference.part)
        self.faults: dict[BitsDiffer, Fault] = {}
        tensors = list(tensors)
        names = (tensor.name for tensor in tensors)
        of_experts = {n for n in names if is_of_experts(n, self._family, reference.part)}
        #: The layers that have an array of experts on the devices.
        self.expert_layers = {self._family.layer_of(name) for name in of_experts}
        self._tensors = [tensor for tensor in tensors if tensor.name not in of_experts]
        self.views = ParameterViews(reference, self._tensors, mesh, packing, backend)
        self._nan = nan
        self._chosen = chosen
        self._size = size

    @cached_property
    def sources(self) -> Mapping[str, bool]:
        """Every tensor that a parameter is made of, and whether that was to be compared.

        Scales count with what they scale, which is FP8: beside any other tensor nobody reads them.
        """
        found: dict[str, bool] = {}
        for name, view in self.views.fitting.items():
            for source in view.sources:
                chosen = self._chosen(self._family.layer_of(name))
                found[source] = chosen
                if self.checkpoint.entries[source].dtype == "F8_E4M3":
                    found[f"{source}{SCALE_SUFFIX}"] = chosen
        return found

    def differences(self) -> Iterator[Difference]:
        """Yield every difference: parameter by parameter, then what no parameter holds."""
        for _, steps in groupby(self._steps(), key=lambda step: id(step.tensor)):
            yield from self._parameter(steps)
        yield from self._uncovered()

    def _steps(self) -> Iterator[_Step]:
        """What the pieces show, in order."""
        return on_all_cores(self._step, self._pieces())

    def _pieces(self) -> Iterator[tuple[DeviceTensor, Piece | None]]:
        """Every parameter, none of its pieces yet; then them, where its bits can be compared."""
        asked = self._asked  # devices are at work before the first is judged
        for tensor in self._tensors:
            yield tensor, None
            view = self.views.fitting.get(tensor.name)
            if view is None or not self._is_comparable(view):
                continue
            for source in dict.fromkeys(view.sources):
                known = self._known(view, source) is not None
                if known and tensor.name in asked:
                    continue
                size = self._size.of_sums if known else self._size
                for piece in pieces_of(view, self.checkpoint, size, source):
                    yield tensor, piece

    @cached_property
    def _asked(self) -> Mapping[str, Mapping[str, DeviceAnswer]]:
        """By parameter and device, the sums of features that devices of their own were asked for.

        They are asked about all that stands in one block of layers at once.
        """
        questions = [
            (_block_of(view.tensor.name), view.tensor.name, shard.device, shard.held, question)
            for view in self.views.fitting.values()
            if self._is_summed(view)
            for shard in view.tensor.shards
            if shard.held and (question := question_of(shard, view.layout))
        ]
        found: dict[str, dict[str, DeviceAnswer]] = {}
        for _, block in groupby(sorted(questions, key=itemgetter(0)), key=itemgetter(0)):
            together = list(block)
            answers = ask((device, held, question) for *_, device, held, question in together)
            for (_, name, device, *_), answer in zip(together, answers, strict=True):
                found.setdefault(name, {})[device] = answer
        return found

    def _is_summed(self, view: ParameterView) -> bool:
        """Whether a parameter is compared by what its devices say that it digests to.

        Not what has no rows of a tensor (experts' biases), nor where a cut divides 32 bits.
        """
        layout = view.layout
        return (
            self._is_comparable(view)
            and _has_rows(layout)
            and self._method.by_digests([view.tensor])
            and all(question_of(shard, layout) for shard in view.tensor.shards)
        )

    def _is_comparable(self, view: ParameterView) -> bool:
        tensor, layout = view.tensor, view.layout
        alike = (tensor.shape, tensor.dtype) == (layout.shape, layout.dtype)
        return alike and self._chosen(self._family.layer_of(tensor.name)) and not is_fp8(view)

    def _step(self, given: tuple[DeviceTensor, Piece | None]) -> _Step:
        tensor, piece = given
        if piece is None:
            return _Step(tensor, None)
        if tensor.name in self._asked:
            return _Step(tensor, self._wanted(piece))
        if self._known(piece.view, piece.source) is None:
            return _Step(tensor, judge_piece(piece, self.checkpoint, self.expected))
        return _Step(tensor, sum_piece(piece, self.checkpoint.entries[piece.source].shape))

    def _wanted(self, piece: Piece) -> _Wanted:
        entry, layout = self.checkpoint.entries[piece.source], piece.view.layout
        plain = self._nan is Nan.PAYLOAD and layout.host_dtype == layout.dtype
        form = HeldForm(partial(self.expected, layout=layout), layout.dtype if plain else "")
        (words,) = digests_of_rows(entry, piece.rows, [form])
        if self.checkpoint.listener is not None and self._nan is Nan.PAYLOAD:
            self.checkpoint.listener.digests(piece.source, {layout.dtype: words}, piece.rows)
        return _Wanted(piece.source, words)

    def _known(self, view: ParameterView, source: str) -> Words | None:
        """What a tensor digests to, by the authority, as the parameter is to hold it.

        None, too, where no rows of it are held (experts' biases), or not as they are converted.
        """
        if not _has_rows(view.layout):
            return None
        return self.authority.digest(source, view.layout.dtype)

    def expected(self, bits: Bits, dtype: str, layout: ParameterLayout) -> Bits:
        """What becomes of reference bits, of this dtype, on the way to the device.

        The type counts, not its width: the device is to hold the conversion of the value.
        """
        bits = converted(bits, dtype, layout.host_dtype)
        if layout.host_dtype == "BF16" and layout.casts and self._nan is Nan.CANONICAL:
            bits = canonical_nans(bits)
        return converted(bits, layout.host_dtype, layout.dtype)

    def _parameter(self, steps: Iterator[_Step]) -> Iterator[Difference]:
        tensor = next(steps).tensor
        unfitting = self.views.unfitting.get(tensor.name)
        if unfitting is None and tensor.name not in self.views.fitting:
            if tensor.name not in self.views.scales:
                yield from self._derived(tensor)
            return
        self.tally.parameters += 1
        if not self._chosen(self._family.layer_of(tensor.name)):
            self.tally.left_out += 1
        elif unfitting is not None:
            yield self._unaccounted(tensor, unfitting)
        else:
            seen = (step.seen for step in steps if step.seen)
            yield from self._fitting(self.views.fitting[tensor.name], seen)

    def _fitting(self, view: ParameterView, seen: Iterable[_Seen]) -> Iterator[Difference]:
        """Compare a parameter with what its rule makes of its tensors."""
        found = list(self._metadata(view))
        yield from found
        if not any(isinstance(d, ShapeDiffers | DtypeDiffers) for d in found):
            if is_fp8(view):
                yield from self._quantised(view)
            else:
                self.tally.compared += 1
                yield from self._values(view, seen)
            yield from self._padding(view)

    def _quantised(self, view: ParameterView) -> Iterator[Difference]:
        tensor = self.views.scales.get(f"{view.tensor.name}_scale")
        if tensor is None:
            yield ArrayMissing(**self._array(view.tensor), expected="an array of scales")
            return
        scales = replace(view, tensor=tensor, layout=view.layout.of_scales())
        if found := list(self._metadata(scales)):
            yield from found
            return
        self.tally.compared += 1
        for name in view.sources:
            self.tally.bytes_compared += self.checkpoint.entries[name].nbytes
        for each in (view.tensor, tensor):
            for odd in odd_replicas(each):
                yield ReplicasDiffer(**self._array(each), **odd)
        numbers = self.mesh.shards(view.layout.axes)
        for source, found_values, device in unequal_values(self.checkpoint, view, scales):
            yield ValuesDiffer(
                **self._array(view.tensor), source=source, **found_values,
                shard=numbers.get(device), device_name=device,
            )  # fmt: skip

    def _derived(self, tensor: DeviceTensor) -> Iterator[Difference]:
        """A buffer of no tensor: known, and as it must be where that is known, or unaccounted."""
        row = self._family.derived_for(self._family.in_checkpoint(self.reference.part, tensor.name))
        if row is None:
            yield self._unaccounted(
                tensor, "no rule and no derivation for a parameter of this name"
            )
            return
        self.tally.derived[row.kind] = self.tally.derived.get(row.kind, 0) + 1
        if row.constant is None:
            return
        if tensor.dtype != "F32":
            yield DtypeDiffers(**self._array(tensor), reference="F32", device=tensor.dtype)
            return
        wanted = int(np.float32(row.constant).view("<u4"))
        yield from self._constant(tensor, wanted)

    def _constant(self, tensor: DeviceTensor, wanted: int) -> Iterator[Difference]:
        """A buffer that is not ``wanted`` everywhere: the first such element, all counted."""
        held = [(shard, np.asarray(shard.fetch(...))) for shard in tensor.shards]
        odd = [
            (s, bits, found)
            for s, bits in held
            if (found := scan(lambda part: part != wanted, bits))
        ]
        if not odd:
            return
        shard, bits, found = odd[0]
        first = found.first
        yield BitsDiffer(
            **self._array(tensor), reference=wanted, device=int(bits[first]),
            itemsize=bits.itemsize, count=sum(each.count for *_, each in odd),
            total=sum(bits.size for _, bits in held),
            index=tuple(i + s.start for i, s in zip(first, shard.index, strict=True)),
            device_name=shard.device,
        )  # fmt: skip

    def _metadata(self, view: ParameterView) -> Iterator[Difference]:
        tensor, layout = view.tensor, view.layout
        if tensor.shape != layout.shape:
            yield ShapeDiffers(**self._array(tensor), reference=layout.shape, device=tensor.shape)
            return
        if tensor.dtype != layout.dtype:
            yield DtypeDiffers(**self._array(tensor), reference=layout.dtype, device=tensor.dtype)
        shares = {
            device: (number, layout.share(number))
            for device, number in self.mesh.shards(layout.axes).items()
            if device in self.local
        }
        for fact in misplaced(tensor, shares):
            yield ShardMisplaced(**self._array(tensor), **fact)

    def _values(self, view: ParameterView, seen: Iterable[_Seen]) -> Iterator[Difference]:
        """Sum up what the parameter's pieces showed, tensor by tensor."""
        faults, wanted = _Faults(), dict[str, Words]()
        sums = {name: TensorSums() for name in view.sources}
        for each in seen:
            if isinstance(each, Summed):
                sums[each.piece.source].add(each)
            elif isinstance(each, _Wanted):
                wanted[each.source] = wanted.get(each.source, np.uint32(0)) + each.words
            else:
                faults.add(each)
        asked = self._asked.get(view.tensor.name)
        for name, found in sums.items() if asked else ():
            shape = self.checkpoint.entries[name].shape
            found.add(sum_rows(Piece(view, name, Span(0, shape[0])), shape, asked or {}))
        for name in sums:
            self.tally.bytes_compared += self.checkpoint.entries[name].nbytes
        for name, found in sums.items():
            known = self._known(view, name)
            if known is not None and found.are(known):
                continue
            if told := self._without_bits(view, name, known, found.as_text):
                yield told
                continue
            if name in wanted and found.are(wanted[name]):
                continue
            if known is not None or name in wanted:
                for piece in pieces_of(view, self.checkpoint, self._size):
                    if piece.source == name:
                        faults.add(judge_piece(piece, self.checkpoint, self.expected))
                if found.complete and not faults.of(name):
                    raise RuntimeError(f"the digest of {name} differs, its bits do not: our fault")
            for fault in faults.of(name):
                yield self._bits(fault)

    def _without_bits(
        self, view: ParameterView, name: str, known: Words | None, device: str
    ) -> DigestDiffers | None:
        """The difference of a tensor whose bits in the checkpoint are not the right ones either.

        None where they are the right ones, so that they can be compared.
        """
        self.authority.had_to_read(name)
        entry, dtype = self.checkpoint.entries[name], view.layout.dtype
        here = unread = ""
        try:
            if self.authority.vouches(name, entry.dtype, lambda: digest_of_tensor(entry)):
                return None
            here = as_text(digest_of_tensor(entry, dtype))
        except BadInput as error:
            if known is None:
                raise
            unread = error.paragraph
        return DigestDiffers(
            **self._array(view.tensor), source=TensorSlice(entry.file.name, name), dtype=dtype,
            reference="" if known is None else as_text(known),
            device=device, checkpoint=here, unread=unread,
        )  # fmt: skip

    def _bits(self, fault: Fault) -> BitsDiffer:
        layout = fault.view.layout
        file = self.checkpoint.entries[fault.source].file.name
        difference = BitsDiffer(
            **self._array(fault.view.tensor), index=fault.at,
            source=TensorSlice(file, fault.source, copy=fault.copy), reference=fault.reference,
            device=fault.device, itemsize=ITEMSIZE[layout.dtype],
            count=fault.count, total=fault.total,
            shard=self.mesh.shards(layout.axes).get(fault.device_name),
            device_name=fault.device_name,
        )  # fmt: skip
        self.faults[difference] = fault
        return difference

    def _padding(self, view: ParameterView) -> Iterator[Difference]:
        asked, axis = self._asked.get(view.tensor.name, {}), view.layout.output_axis
        for shard, at, where, elements in padding_of(view):
            self.tally.padding_bytes += elements * ITEMSIZE[view.tensor.dtype]
            answer = asked.get(shard.device)
            if answer and not answer.words[:, at[axis]].any():
                continue
            bits = shard.fetch(at)
            written = nonzero(bits)
            if answer and not written:
                raise RuntimeError(f"padding of {view.tensor.name} differs, and is zero: our fault")
            if written:
                first = written.first
                yield PaddingWritten(
                    **self._array(view.tensor), device_name=shard.device,
                    index=tuple(i + o for i, o in zip(first, where, strict=True)),
                    device=int(bits[first]), itemsize=bits.itemsize,
                    count=written.count, total=bits.size,
                    shard=self.mesh.shards(view.layout.axes).get(shard.device),
                )  # fmt: skip

    def _uncovered(self) -> Iterator[Difference]:
        """Tensors that no parameter on the device holds."""
        held, present = self.sources, model_parts(self.checkpoint)
        for name, entry in self.checkpoint.entries.items():
            if (
                name in held
                or self._family.is_of_experts(name)
                or left_alone(self.reference, name, present)
            ):
                continue
            yield Unaccounted(
                part=self.reference.part, layer=self._family.layer_of(name),
                subject=Subject.TENSOR_OF_NO_PARAMETER, name=name, file=entry.file.name,
            )  # fmt: skip

    def _unaccounted(self, tensor: DeviceTensor, reason: str) -> Unaccounted:
        return Unaccounted(
            part=self.reference.part, layer=self._family.layer_of(tensor.name),
            subject=Subject.ARRAY, name=tensor.name, reason=reason,
        )  # fmt: skip

    def _array(self, tensor: DeviceTensor) -> _Array:
        return _Array(
            part=self.reference.part,
            layer=self._family.layer_of(tensor.name),
            parameter=tensor.name,
        )


def _has_rows(layout: ParameterLayout) -> bool:
    """Whether a parameter holds rows of tensors, as they are converted: experts' biases do not."""
    return not layout.source_axis and layout.host_dtype == layout.dtype


#: A name up to its first number, which is that of a layer or of a block of a tower.
_NUMBERED = re.compile(r"^.*?\.\d+\.")


def _block_of(name: str) -> str:
    """What parameters that devices are asked about together have in common: all of a layer's."""
    found = _NUMBERED.match(name)
    return found[0] if found else ""
