"""Why experts differ: few causes for many differences, each with its evidence and next step.

Runs only when something differs. An expert's matrix becomes
:class:`harness.explain.evidence.Evidence`, and the rules say what it holds; any other difference
says itself what it is. "Unexplained" is an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from harness.base.bits import Bits
from harness.compare.difference import BitsDiffer, Difference, TensorUnread, ValuesDiffer
from harness.compare.expert_comparison import PartComparison
from harness.compare.quantised_experts import QuantisedPartComparison
from harness.devices.expert_layout import Parameter
from harness.explain.causes import Diagnosis, Finding, diagnoses_of
from harness.explain.delivery_rules import NOT_DELIVERED
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
from harness.explain.provenance import FileSearch, Occurrence, ReferenceIndex, depth
from harness.explain.quantised import explain_quantised
from harness.explain.rules import explain
from harness.families.experts import ExpertKey, ReferencePart
from harness.families.family import Projection
from harness.load.ledger import Ledger

#: Matrices of an expert that one array holds.
_TOGETHER = (Projection.GATE, Projection.UP)


class Explainer:
    """Explains the differences of one part, with the tensors and the ledger at hand.

    Args:
        comparison: the part's comparison; its reference and device are read again.
        parts: all parts of the reference, where a slice's bytes may have come from.
        ledger: the loader calls of this part.
    """

    def __init__(
        self,
        comparison: PartComparison,
        parts: Sequence[ReferencePart] = (),
        ledger: Ledger | None = None,
    ) -> None:
        self._comparison = comparison
        self._ledger = ledger or Ledger()
        self._undelivered: dict[str, Finding] = {}  # by the tensor that was to bring it
        reference = comparison.reference
        others = {part.part: part for part in parts} | {reference.part: reference}
        self._index = ReferenceIndex(
            list(others.values()),
            lambda key: comparison.expected(
                comparison.held.of(key.projection, others[key.part][key])
            ),
            comparison.finder(),
        )
        self._search = FileSearch(reference.checkpoint)
        layers = comparison.device.layers
        self._known = Known(
            reference, layers, self._ledger, of_experts=True, authority=comparison.authority
        )

    def diagnose(self, differences: list[Difference]) -> list[Diagnosis]:
        """The causes of this part's differences, in order of the first that each is of."""
        return diagnoses_of((d, self._explain(d)) for d in differences)

    def _explain(self, difference: Difference) -> Finding:
        if isinstance(difference, TensorUnread) and (
            told := self._undelivered.get(difference.tensor)
        ):
            return told
        key = difference.key
        if isinstance(difference, ValuesDiffer) and difference.parameter.endswith(tuple(Parameter)):
            assert isinstance(self._comparison, QuantisedPartComparison)
            return explain_quantised(difference, self._comparison)
        if not isinstance(difference, BitsDiffer) or key is None:
            return explain_metadata(difference, self._known)
        finding = explain(self.evidence(key))
        if finding.cause is NOT_DELIVERED:
            self._undelivered[self._comparison.reference.source(key).tensor] = finding
        return finding

    def evidence(self, key: ExpertKey) -> Evidence:
        """What rules may look at of a matrix that differs."""
        comparison = self._comparison
        around = AroundExpert(
            key, self._index, self._search, comparison.device_bits,
            comparison.reference.shape.experts, comparison.held.experts,
        )  # fmt: skip
        granules = self._shards(key)
        dtype = comparison.reference.shape.dtype
        lacking = {Need.HEADS, Need.REPLICAS, Need.TIE}
        lacking |= set() if granules else {Need.SHARDS}
        lacking |= set() if dtype == "BF16" else {Need.BF16}
        return Evidence(
            slice=slice_of(key),
            words=words_of(key),
            wanted=partial(comparison.reference_bits, key),
            device=around.device,
            dtype=dtype,
            stored=partial(comparison.stored_bits, key),
            around=around,
            stored_transposed=comparison.reference.naming.storage.is_transposed,
            granules=granules,
            deliveries=partial(self._deliveries, key),
            has=frozenset(Need) - lacking,
        )

    def _shards(self, key: ExpertKey) -> tuple[Granule, ...]:
        """The parts of the intermediate axis, where experts are cut along it."""
        held, shards = self._comparison.held, self._comparison.layout.shards
        if shards < 2 or not held.divides_experts:
            return ()
        width = self._comparison.reference.shape.intermediate
        axis = 1 if key.projection is Projection.DOWN else 0
        return (Granule("shard", axis, width // shards),)

    def _deliveries(self, key: ExpertKey) -> Deliveries:
        ledger = self._ledger
        return Deliveries(
            tensor=self._comparison.reference.source(key).tensor,
            ledger=ledger,
            calls=ledger.of(key.layer, key.expert, key.projection),
        )


@dataclass(frozen=True, eq=False)
class AroundExpert(Around):
    """What could have come in the place of an expert's matrix: the other experts of all layers.

    Attributes:
        key: which matrix.
        index: digests of the reference.
        search: of the files.
        bits_of: what the devices hold for any key.
        count: of the layer's experts.
        held_of: of some experts, those of which this process holds something.
    """

    key: ExpertKey
    index: ReferenceIndex
    search: FileSearch
    bits_of: Callable[[ExpertKey], Bits]
    count: int
    held_of: Callable[[Sequence[int]], Sequence[int]] = list

    @cached_property
    def device(self) -> Bits:
        """What the devices hold for it."""
        return self.bits_of(self.key)

    def fellows(self) -> Sequence[Slice]:
        """Gate and up; down has an array of its own."""
        if self.key.projection not in _TOGETHER:
            return ()
        return [slice_of(self.key._replace(projection=p)) for p in _TOGETHER]

    def expected(self, other: Slice) -> Bits:
        """See :meth:`Around.expected`."""
        return self.index.bits_of(_key(other))

    def held(self, other: Slice) -> Bits:
        """See :meth:`Around.held`."""
        return self.bits_of(_key(other))

    def whose(self) -> Slice | None:
        """See :meth:`Around.whose`."""
        return self._whose

    @cached_property
    def _whose(self) -> Slice | None:
        found = self.index.slice(self.key, self.device)
        return None if found in (None, self.key) else slice_of(found)

    def depth(self, other: Slice) -> int:
        """See :meth:`Around.depth`."""
        key = _key(other)
        return depth(self.search.checkpoint, key.part, key.layer)

    def order(self) -> dict[int, int | None]:
        """See :meth:`Around.order`."""
        return self.index.order(self.key, self.held_of(range(self.count)), self.bits_of)

    def experts(self) -> int:
        """See :meth:`Around.experts`."""
        return self.count

    def line(self, axis: int, digest: bytes) -> tuple[Slice, int] | None:
        """See :meth:`Around.line`; of all experts of the layer."""
        found = self.index.lines(self.key, axis).get(digest)
        return found and (slice_of(found.key), found.number)

    def bytes_at(self, run: bytes) -> Occurrence | None:
        """See :meth:`Around.bytes_at`."""
        return self.search.bytes_at(self.key, (self.key.part, self.key.layer), run)

    @property
    def unsearched(self) -> bool:
        """See :attr:`Around.unsearched`."""
        return self.key in self.search.unsearched


def slice_of(key: ExpertKey) -> Slice:
    """An expert's matrix as rules know it."""
    return Slice(
        key=key,
        name=str(key),
        place=f"{key.part} layer {key.layer}",
        layer=(key.part, key.layer),
        expert=key.expert,
        matrix=key.projection,
    )


def _key(of: Slice) -> ExpertKey:
    assert isinstance(of.key, ExpertKey)
    return of.key


def words_of(key: ExpertKey) -> Words:
    """How sentences name an expert's matrix."""
    place = f"{key.part} layer {key.layer}"
    return Words(
        they=f"{{experts}} of {place}",
        it=f"{key.projection} of {place}",
        place=place,
        tail=", {experts}",
        kind="",
        group=place,
        part=key.part,
    )
