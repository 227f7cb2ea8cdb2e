"""Why a parameter besides experts differs: what its bytes are instead. Runs only when one does.

An unequal tensor is put back together from the devices and looked up in the reference: as a
whole, then head by head, shard by shard, row by row. "Unexplained" is an answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from harness.base.bits import Bits, canonical_nans
from harness.compare.difference import (
    BitsDiffer,
    Difference,
    PaddingWritten,
    ReplicasDiffer,
    ShardMisplaced,
    Subject,
    Unaccounted,
    ValuesDiffer,
)
from harness.compare.parameter_comparison import ParameterComparison
from harness.compare.parameter_view import Fault, ParameterView, held, recovered
from harness.compare.words import device_words, reference_words
from harness.explain.causes import Cause, Diagnosis, Finding, diagnoses_of
from harness.explain.diagnosis import holding, odd_replica
from harness.explain.distance import farthest
from harness.explain.rules import nans_of_a_conversion, taken_for, went_through
from harness.families.blocks import Pieces
from harness.families.family import TIE
from harness.families.model import ModelCheckpoint
from harness.load.ledger import POISON

_SHOWN = 3
_TIED = "head and embedding are tied otherwise than config.json says"


class ParameterExplainer:
    """Explains the differences of one part's parameters.

    Args:
        comparison: it has been run; its reference and devices are read again.
    """

    def __init__(self, comparison: ParameterComparison) -> None:
        self._comparison = comparison

    def diagnose(self, differences: Sequence[Difference], offset: int = 0) -> list[Diagnosis]:
        """The causes, in order of their first difference.

        Args:
            differences: the comparison's.
            offset: the place of the first of them in the report.
        """
        return diagnoses_of(((d, self._explain(d)) for d in differences), offset)

    def _explain(self, difference: Difference) -> Finding:
        if not isinstance(difference, BitsDiffer) or difference not in self._comparison.faults:
            return _headless(difference, self._comparison) or _metadata(difference)
        fault = self._comparison.faults[difference]
        evidence = ParameterEvidence(self._comparison, fault)
        found = next((f for rule in _RULES if (f := rule(evidence))), None)
        cause, summary, detail = found or unexplained_parameter(evidence, difference)
        if cause in (Cause.NAN_CANONICALISED, Cause.TIED):
            return Finding(cause, f"{cause} {difference.part}", summary, detail)
        where = f"{difference.part} {evidence.placed.row.kind}"
        return Finding(cause, f"{cause} {where}", f"{summary} ({where})", detail)


class ParameterEvidence:
    """One unequal tensor: the reference and what the device holds, [outputs, …]."""

    def __init__(self, comparison: ParameterComparison, fault: Fault) -> None:
        self.comparison = comparison
        self.fault = fault
        self.placed: ParameterView = fault.placed
        self.name = fault.source + (f" (copy {fault.copy})" if fault.copy else "")

    def expected(self, source: str) -> Bits:
        """A tensor as the device is to hold it."""
        checkpoint = self.comparison.checkpoint
        dtype = checkpoint.entries[source].dtype
        return self.comparison.expected(checkpoint.bits(source), dtype, self.placed.layout)

    @property
    def dtype(self) -> str:
        """Of what the device holds."""
        return self.placed.layout.dtype

    @property
    def stored(self) -> tuple[Bits, str]:
        """The tensor and its dtype, as the checkpoint has them."""
        checkpoint = self.comparison.checkpoint
        return checkpoint.bits(self.fault.source), checkpoint.entries[self.fault.source].dtype

    @cached_property
    def reference(self) -> Bits:
        """The tensor as it should be."""
        return self.expected(self.fault.source)

    @cached_property
    def device(self) -> Bits:
        """The tensor as the device that departs holds it."""
        return recovered(
            self.placed, self.fault.source, self.fault.copy, self.fault.device_name, self.reference
        )

    @cached_property
    def held(self) -> Bits:
        """Which elements the devices of this process hold; the others are the reference's."""
        return held(self.placed, self.fault.source, self.fault.copy, self.reference)

    def holds(self, source: str) -> bool:
        """Whether it is another tensor of the checkpoint that the devices hold, of like shape."""
        own, other = (self.comparison.checkpoint.entries[n] for n in (self.fault.source, source))
        return own.shape == other.shape and np.array_equal(
            self.expected(source)[self.held], self.device[self.held]
        )

    @property
    def repeated(self) -> bool:
        """Whether this tensor's heads are held several times."""
        return any(b.copy for b in self.placed.layout.blocks if b.source == self.fault.source)

    def granules(self) -> Iterator[tuple[Cause, str, int, int]]:
        """Sizes to cut the tensor into: cause if they are exchanged, noun, axis, length."""
        row, layout, sizes = self.placed.row, self.placed.layout, self.comparison.placements.sizes
        rows = self.reference.shape[0]
        if row.pieces is Pieces.QKV:
            of_q = self.fault.source == self.placed.sources[0]  # with its output gate, in Qwen3.5
            yield Cause.HEADS_EXCHANGED, "head", 0, rows // sizes.heads if of_q else sizes.head_dim
        if row.pieces is Pieces.QKV_FUSED:
            yield Cause.HEADS_EXCHANGED, "head", 0, rows // (3 * sizes.vision_heads)
        if layout.cut_axis is not None and layout.shards > 1:
            axis = 0 if layout.cut_axis == layout.output_axis else 1
            yield Cause.SHARDS_EXCHANGED, "shard", axis, self.reference.shape[axis] // layout.shards
        yield Cause.ROWS_EXCHANGED, "row", 0, 1


_Found = tuple[Cause, str, str] | None


def unexplained_parameter(e: ParameterEvidence, difference: BitsDiffer) -> tuple[Cause, str, str]:
    """The raw facts, and how far off the values are."""
    far = farthest(e.reference, np.where(e.held, e.device, e.reference), e.dtype)
    detail = f"{difference.count} of {difference.total} elements are unequal"
    return Cause.UNEXPLAINED, f"{e.name} differs", detail + (f"; {far}" if far else "")


def _never_written(e: ParameterEvidence) -> _Found:
    poison = POISON.get(e.device.itemsize)
    if not (e.device[e.held] == poison).all():
        return None
    detail = f"{e.name} still holds the poison 0x{poison:x}"
    return Cause.PARAMETER_UNWRITTEN, f"{e.name} was never written", detail


def _zeros(e: ParameterEvidence) -> _Found:
    if e.device[e.held].any():
        return None
    return Cause.ZEROS, f"{e.name} holds only zeros", f"{e.placed.tensor.name} is all zeros"


def _replicas_differ(e: ParameterEvidence) -> _Found:
    """Some of the devices that hold the same part hold it right."""
    odd = e.fault.devices
    for replicas in zip(*e.comparison.mesh.groups(e.placed.layout.axes), strict=True):
        holders = [device for device in replicas if device in e.comparison.local]
        wrong = sorted(set(holders) & odd)
        if wrong and len(wrong) < len(holders):
            summary = f"{', '.join(wrong)} holds another {e.name} than the other replicas"
            right = ", ".join(sorted(set(holders) - odd))
            return Cause.REPLICAS_DIFFER, summary, f"{right} holds the same part right"
    return None


def _another_tensor(e: ParameterEvidence) -> _Found:
    for name in e.comparison.checkpoint.entries:
        if name != e.fault.source and e.holds(name):
            same = name in e.placed.sources
            cause = Cause.PROJECTIONS_EXCHANGED if same else Cause.OTHER_BYTES
            return cause, f"{e.name} holds {name}", f"all {int(e.held.sum())} elements are equal"
    return None


def _tied(e: ParameterEvidence) -> _Found:
    """The head where the embedding should be, or the embedding where the head should be."""
    family = e.comparison.checkpoint.family
    of = {family.head: family.embedding, family.embedding: family.head}.get(e.fault.source, "")
    exchanged = any(fault.source == of for fault in e.comparison.faults.values())
    if exchanged or of not in e.comparison.checkpoint.entries or not e.holds(of):
        return None
    detail = f"{e.placed.tensor.name} holds {of}"
    return Cause.TIED, _TIED, f"{detail}; {_ties_text(e.comparison.checkpoint)}"


def _headless(difference: Difference, comparison: ParameterComparison) -> Finding | None:
    """A head of the checkpoint's that the model has none for, where config.json says both."""
    checkpoint = comparison.checkpoint
    head = checkpoint.family.head
    lost = Subject.TENSOR_OF_NO_PARAMETER, head
    if not isinstance(difference, Unaccounted) or (difference.subject, difference.name) != lost:
        return None
    if not checkpoint.family.contradicts_ties(checkpoint.config):
        return None
    group = f"{Cause.TIED} {difference.part}"
    return Finding(Cause.TIED, group, _TIED, f"no parameter holds {head}; {_ties_text(checkpoint)}")


def _ties_text(checkpoint: ModelCheckpoint) -> str:
    """What config.json says of the tie, at both places."""
    below = checkpoint.family.text_key
    places = (checkpoint.config, checkpoint.config.get(below, {}))
    top, text = (json.dumps(each[TIE]) if TIE in each else "absent" for each in places)
    return f"{TIE} is {top}, that of {below} {text}"


def _granules_exchanged(e: ParameterEvidence) -> _Found:
    for cause, noun, axis, length in e.granules():
        if not length or e.reference.shape[axis] % length:
            continue
        moved = _moved(e, axis, length)
        if moved is None:
            continue
        if noun == "head" and e.repeated and {s for _, s, _ in moved} == {e.fault.source}:
            cause = Cause.HEADS_REPEATED
        texts = [f"{noun} {to} of {e.name} holds {noun} {of} of {s}" for to, s, of in moved]
        more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
        summary = f"{noun}s of {e.name} are in other places"
        return cause, summary, "; ".join(texts[:_SHOWN]) + more
    return None


def _moved(e: ParameterEvidence, axis: int, length: int) -> list[tuple[int, str, int]] | None:
    """Which granule holds which, of this parameter's tensors; None unless all are found."""
    known: dict[bytes, list[tuple[str, int]]] = {}
    for source in dict.fromkeys((e.fault.source, *e.placed.sources)):
        for number, bits in enumerate(_cut(e.expected(source), axis, length)):
            known.setdefault(bits, []).append((source, number))
    moved = []
    for number, bits in enumerate(_cut(e.device, axis, length)):
        places = known.get(bits)
        if places is None:
            return None
        if (e.fault.source, number) not in places:
            moved.append((number, *places[0]))
    return moved


def _cut(bits: Bits, axis: int, length: int) -> Iterator[bytes]:
    for start in range(0, bits.shape[axis] - length + 1, length):
        rows = slice(start, start + length)
        yield (bits[rows] if axis == 0 else bits[:, rows]).tobytes()


def _transposed(e: ParameterEvidence) -> _Found:
    if e.device.ndim != 2 or not np.array_equal(e.reference.T.reshape(e.device.shape), e.device):
        return None
    return Cause.TRANSPOSED, f"{e.name} is transposed", "transposing it back makes it equal"


def _nans(e: ParameterEvidence) -> _Found:
    _, stored = e.stored
    if nans_of_a_conversion(e.device[e.held], e.reference[e.held], stored, e.dtype):
        summary = f"NaNs stored as {stored} are others as {e.dtype}, all else is equal"
        return Cause.NAN_CANONICALISED, summary, f"{e.name} is equal but for NaNs, which stay NaNs"
    if e.dtype != "BF16" or not np.array_equal(canonical_nans(e.reference), e.device):
        return None
    summary = "NaNs of parameters lost their payloads, all else is equal"
    detail = f"{e.name} is equal with every NaN as the quiet NaN of its sign"
    return Cause.NAN_CANONICALISED, summary, detail


def _other_dtype(e: ParameterEvidence) -> _Found:
    """Its bytes were taken for another type's, or its values went through another type."""
    stored, dtype = e.stored
    device, stored = e.device[e.held], stored[e.held]
    if other := taken_for(device, stored, dtype, e.dtype):
        summary = f"{e.name} is {dtype} in the reference, and came as {other}"
        detail = f"{e.name} is what becomes of its bytes where they are taken for {other}"
        return Cause.OTHER_DTYPE, summary, detail
    if other := went_through(device, stored, dtype, e.dtype):
        detail = f"{e.name} is the reference cast to {other} and back"
        return Cause.DTYPE_ROUND_TRIP, f"{e.name} went through {other}", detail
    return None


def _one_bit(e: ParameterEvidence) -> _Found:
    changed = (e.device ^ e.reference).ravel()
    (places,) = np.nonzero(changed)
    if len(places) != 1 or int(changed[places[0]]).bit_count() != 1:
        return None
    bit = int(changed[places[0]]).bit_length() - 1
    return Cause.BIT_FLIP, f"one bit of {e.name} is flipped", f"bit {bit} of element {places[0]}"


_RULES = (
    _never_written,
    _zeros,
    _replicas_differ,
    _nans,
    _one_bit,
    _other_dtype,
    _tied,
    _another_tensor,
    _granules_exchanged,
    _transposed,
)


def _metadata(difference: Difference) -> Finding:
    """What a difference in presence, shape, dtype, placement or padding comes from."""
    name = difference.name
    evidence = f"{name}: expected {reference_words(difference)}, found {device_words(difference)}"
    match difference:
        case ShardMisplaced(replicated=replicated):
            cause = Cause.REPLICATED if replicated else Cause.MISPLACED
            what = "is replicated instead of sharded" if replicated else "lies on other devices"
            return Finding(cause, f"{cause} {name}", f"{name} {what}", holding(difference))
        case PaddingWritten():
            never = difference.device == POISON.get(difference.itemsize)
            cause = Cause.PARAMETER_UNWRITTEN if never else Cause.PADDING
            what = "was never written" if never else "is not zero"
            return Finding(cause, f"{cause} {name}", f"the padding of {name} {what}", evidence)
        case ReplicasDiffer():
            return odd_replica(difference, name)
        case ValuesDiffer(source=source):
            summary = f"scales of {source} are not the checkpoint's"
            return Finding(
                Cause.SCALE, f"{Cause.SCALE} {name}", summary, f"{source}: {difference.pattern}"
            )
        case Unaccounted():
            part = difference.part
            summary = f"{name} is unaccounted for"
            return Finding(Cause.UNACCOUNTED, f"unaccounted {part}", summary, evidence)
        case _:
            summary = f"{name} is not what its rule says"
            return Finding(Cause.STRUCTURE, f"{Cause.STRUCTURE} {name}", summary, evidence)
