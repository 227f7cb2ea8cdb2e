"""Why a parameter besides experts differs. Runs only when one does.

An unequal tensor is put back together from the devices and becomes
:class:`harness.explain.evidence.Evidence`; the rules, the same as for experts, say what it holds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from harness.base.bits import Bits, bits_dtype
from harness.base.scanning import Mask, equal, stretches
from harness.compare.difference import BitsDiffer, Difference, Subject, Unaccounted
from harness.compare.parameter_comparison import ParameterComparison
from harness.compare.parameter_view import Fault, ParameterView, held, recovered
from harness.explain.causes import Diagnosis, Finding, diagnoses_of
from harness.explain.evidence import (
    Around,
    Deliveries,
    Evidence,
    Granule,
    Need,
    Slice,
    Words,
)
from harness.explain.metadata import Known, explain_metadata
from harness.explain.origin_rules import TIED_EMBEDDINGS, TIED_OTHERWISE
from harness.explain.provenance import FileSearch, Occurrence, depth, lines_of
from harness.explain.rules import explain
from harness.families.blocks import Pieces
from harness.families.family import TIE, Family, Part
from harness.families.model_checkpoint import ModelCheckpoint
from harness.load.ledger import Ledger

#: A module, its number, and what of it.
_NUMBERED = re.compile(r"(.*)\.(\d+)\.(.*)")


class ParameterExplainer:
    """Explains the differences of one part's parameters.

    Args:
        comparison: it has been run; its reference and devices are read again.
        ledger: the loader calls of this part.
    """

    def __init__(self, comparison: ParameterComparison, ledger: Ledger | None = None) -> None:
        self._comparison = comparison
        self._ledger = ledger or Ledger()
        self._search = FileSearch(comparison.checkpoint)
        layers = comparison.expert_layers
        self._known = Known(
            comparison.reference, layers, self._ledger, of_experts=False,
            authority=comparison.authority,
        )  # fmt: skip

    def diagnose(self, differences: Sequence[Difference]) -> list[Diagnosis]:
        """The causes of the comparison's differences, in order of the first that each is of."""
        return diagnoses_of((d, self._explain(d)) for d in differences)

    def _explain(self, difference: Difference) -> Finding:
        if isinstance(difference, BitsDiffer) and difference in self._comparison.faults:
            return explain(self.evidence(difference))
        told = _headless(difference, self._comparison)
        return told or explain_metadata(difference, self._known)

    def evidence(self, difference: BitsDiffer) -> Evidence:
        """What rules may look at of a tensor that differs; the difference is the comparison's."""
        comparison, fault = self._comparison, self._comparison.faults[difference]
        around = AroundTensor(comparison, fault, self._search)
        checkpoint, view = comparison.checkpoint, fault.view
        granules = tuple(_granules(around))
        return Evidence(
            slice=around.own,
            words=_words(difference.part, view.row.kind),
            wanted=lambda: around.reference,
            device=around.device,
            dtype=view.layout.dtype,
            made_in=view.layout.made_in,
            stored=lambda: (
                checkpoint.bits(fault.source),
                checkpoint.entries[fault.source].dtype,
            ),
            around=around,
            held=around.mask,
            granules=granules,
            repeated=any(b.copy for b in view.layout.blocks if b.source == fault.source),
            deliveries=lambda: self._deliveries(fault),
            replicas=lambda: _replicas(comparison, fault),
            tied=lambda: _tied(around),
            has=_has(around, granules),
        )

    def _deliveries(self, fault: Fault) -> Deliveries:
        ledger = self._ledger
        return Deliveries(
            tensor=fault.source,
            ledger=ledger,
            calls=[call for call in ledger.calls if call.source == fault.source],
            never=self._known.never(fault.view.tensor.name),
        )


class AroundTensor(Around):
    """What could have come in the place of a tensor: those of its array, then all of its shape."""

    def __init__(self, comparison: ParameterComparison, fault: Fault, search: FileSearch) -> None:
        self.comparison = comparison
        self.fault = fault
        self.view: ParameterView = fault.view
        self.checkpoint: ModelCheckpoint = comparison.checkpoint
        self._search = search
        self._lines: dict[int, dict[bytes, tuple[Slice, int]]] = {}

    @cached_property
    def own(self) -> Slice:
        """The tensor, or the copy of it."""
        found = slice_of(self.fault.source, self.checkpoint.family)
        copy = f" (copy {self.fault.copy})" if self.fault.copy else ""
        return Slice(found.key, f"{found.name}{copy}", found.place, found.layer, None, found.matrix)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor, [outputs, …]."""
        return self.checkpoint.entries[self.fault.source].shape

    @cached_property
    def reference(self) -> Bits:
        """The tensor as it should be."""
        return self._expected(self.fault.source)

    @cached_property
    def device(self) -> Bits:
        """The tensor as the device that departs holds it.

        One that was never written may be as large as an embedding: neither it nor its reference
        need be read again.
        """
        if self.fault.is_uniform and self.mask is None:
            value = np.array(self.fault.device, bits_dtype(self.view.layout.dtype))
            return np.broadcast_to(value, self.shape)
        return self._held(self.fault.source, self.fault.copy)

    @cached_property
    def mask(self) -> Mask | None:
        """Which elements the devices of this process hold; None for all."""
        layout = self.view.layout
        found = {shard.index for shard in self.view.tensor.shards}
        if {layout.share(number) for number in range(layout.shards)} <= found:
            return None
        return held(self.view, self.fault.source, self.fault.copy, self.reference)

    def fellows(self) -> Sequence[Slice]:
        """The tensors that its parameter is made of, where there are several."""
        sources = dict.fromkeys(self.view.sources)
        return [self._slice(name) for name in sources] if len(sources) > 1 else ()

    def expected(self, other: Slice) -> Bits:
        """See :meth:`Around.expected`."""
        return self._expected(str(other.key))

    def held(self, other: Slice) -> Bits:
        """See :meth:`Around.held`; of a tensor of the same array."""
        return self._held(str(other.key), 0)

    def whose(self) -> Slice | None:
        """See :meth:`Around.whose`."""
        return self._whose

    @cached_property
    def _whose(self) -> Slice | None:
        entries, own = self.checkpoint.entries, self.fault.source
        alike = (name for name in entries if entries[name].shape == entries[own].shape)
        for name in dict.fromkeys((*self.view.sources, *alike)):
            if name != own and entries[name].shape == entries[own].shape and self.holds(name):
                return self._slice(name)
        return None

    def holds(self, name: str) -> bool:
        """Whether it is this tensor of the checkpoint, of the same shape, that the devices hold."""
        if self.mask is None:
            return equal(self._expected(name, slice(0, 1)), self.device[:1]) and equal(
                self._expected(name), self.device
            )
        wanted = self._expected(name)
        return all(
            (wanted[part] == self.device[part])[self.mask[part]].all()
            for part in stretches(wanted.shape)
        )

    def depth(self, other: Slice) -> int | None:
        """See :meth:`Around.depth`; None for what is no layer of the language model."""
        family, name = self.checkpoint.family, str(other.key)
        layer = family.layer_of(name)
        return None if layer is None else depth(self.checkpoint, family.part_of(name), layer)

    def line(self, axis: int, digest: bytes) -> tuple[Slice, int] | None:
        """See :meth:`Around.line`; of the tensors of its array."""
        if axis not in self._lines:
            known: dict[bytes, tuple[Slice, int]] = {}
            for each in self.fellows():
                if each.key != self.own.key:
                    for number, line in enumerate(lines_of(self.expected(each), axis)):
                        known.setdefault(line, (each, number))
            self._lines[axis] = known
        return self._lines[axis].get(digest)

    def bytes_at(self, run: bytes) -> Occurrence | None:
        """See :meth:`Around.bytes_at`."""
        return self._search.bytes_at(self.own.key, self.own.layer, run)

    @property
    def unsearched(self) -> bool:
        """See :attr:`Around.unsearched`."""
        return self.own.key in self._search.unsearched

    def _slice(self, name: str) -> Slice:
        return self.own if name == self.fault.source else slice_of(name, self.checkpoint.family)

    def _expected(self, name: str, rows: slice = slice(None)) -> Bits:
        """Rows of a tensor as the device is to hold them."""
        bits = (
            self.checkpoint.bits(name)
            if rows == slice(None)
            else self.checkpoint.bits(name, (rows,))
        )
        dtype = self.checkpoint.entries[name].dtype
        return self.comparison.expected(bits, dtype, self.view.layout)

    def _held(self, name: str, copy: int) -> Bits:
        reference = self.reference if name == self.fault.source else self._expected(name)
        return recovered(self.view, name, copy, self.fault.device_name, reference)


def slice_of(name: str, family: Family) -> Slice:
    """A tensor as rules know it; it belongs to a layer, or to another module with a number."""
    part, found = family.part_of(name), _NUMBERED.match(name)
    if found is None:
        return Slice(name, name, part, None, None, name)
    layer = family.layer_of(name)
    at = (str(part), layer) if layer is not None else (found[1], int(found[2]))
    place = f"{part} layer {layer}" if layer is not None else f"{found[1]}.{found[2]}"
    return Slice(name, name, place, at, None, found[3])


def _words(part: Part, kind: str) -> Words:
    return Words(
        they="{names}", it="{names}", place="{names}", tail="", kind=f" ({part} {kind})",
        group=f"{part} {kind}", part=part,
    )  # fmt: skip


def _granules(around: AroundTensor) -> Iterator[Granule]:
    """Heads and shards: what pieces of the tensor could change places."""
    row, layout = around.view.row, around.view.layout
    sizes, rows = around.comparison.views.sizes, around.shape[0]
    head = 1
    if row.pieces is Pieces.QKV:
        of_q = around.fault.source == around.view.sources[0]  # with its output gate, in Qwen3.5
        head = rows // sizes.heads if of_q else sizes.head_dim
    if row.pieces is Pieces.QKV_FUSED:
        head = rows // (3 * sizes.vision_heads)
    if head > 1:
        yield Granule("head", 0, head)
    if layout.cut_axis is not None and layout.shards > 1:
        outputs = layout.source_axis
        axis = outputs if layout.cut_axis == layout.output_axis else 1 - outputs
        length = around.shape[axis] // layout.shards
        if not length % head:  # a part of a head is no shard: those are repeated
            yield Granule("shard", axis, length)


def _has(around: AroundTensor, granules: Sequence[Granule]) -> frozenset[Need]:
    nouns = {granule.noun for granule in granules}
    groups = around.comparison.mesh.groups(around.view.layout.axes)
    family, source = around.checkpoint.family, around.fault.source
    has = {
        Need.TWO_AXES: sum(size > 1 for size in around.shape) > 1,
        Need.EXPERTS: False,
        Need.LAYERS: around.own.layer is not None,
        Need.FELLOWS: bool(around.fellows()),
        Need.HEADS: "head" in nouns,
        Need.SHARDS: "shard" in nouns,
        Need.REPLICAS: len(groups) > 1,
        Need.TIE: source in (family.head, family.embedding),
        Need.BF16: around.view.layout.dtype == "BF16",
    }
    return frozenset(need for need, there in has.items() if there)


def _replicas(comparison: ParameterComparison, fault: Fault) -> tuple[list[str], list[str]] | None:
    """The devices that hold a part wrong that others hold right, and those."""
    for replicas in zip(*comparison.mesh.groups(fault.view.layout.axes), strict=True):
        holders = {device for device in replicas if device in comparison.local}
        wrong = holders & fault.devices
        if wrong and wrong < holders:
            return sorted(wrong), sorted(holders - fault.devices)
    return None


def _tied(around: AroundTensor) -> str | None:
    """The words for the head where the embedding should be, or the other way round."""
    checkpoint, source = around.checkpoint, around.fault.source
    family = checkpoint.family
    of = {family.head: family.embedding, family.embedding: family.head}.get(source, "")
    exchanged = any(fault.source == of for fault in around.comparison.faults.values())
    if exchanged or of not in checkpoint.entries:
        return None
    if checkpoint.entries[of].shape != checkpoint.entries[source].shape or not around.holds(of):
        return None
    return f"{around.view.tensor.name} holds {of}; {_ties_text(checkpoint)}"


def _headless(difference: Difference, comparison: ParameterComparison) -> Finding | None:
    """A head of the checkpoint's that the model has none for, where config.json says both."""
    checkpoint = comparison.checkpoint
    head = checkpoint.family.head
    lost = Subject.TENSOR_OF_NO_PARAMETER, head
    if not isinstance(difference, Unaccounted) or (difference.subject, difference.name) != lost:
        return None
    if not checkpoint.family.contradicts_ties(checkpoint.config):
        return None
    group = f"{TIED_EMBEDDINGS} {difference.part}"
    evidence = f"no parameter holds {head}; {_ties_text(checkpoint)}"
    return Finding(TIED_EMBEDDINGS, group, TIED_OTHERWISE, evidence)


def _ties_text(checkpoint: ModelCheckpoint) -> str:
    """What config.json says of the tie, at both places."""
    config, below = checkpoint.config, checkpoint.family.text_key
    places = (config, config.get(below, {})) if below else (config,)
    top, *text = (json.dumps(each[TIE]) if TIE in each else "absent" for each in places)
    return f"{TIE} is {top}" + (f", that of {below} {text[0]}" if below else "")
