"""Why the device differs: few causes for many differences, each with its evidence and next step.

Runs only when something differs. The ledger is asked first, where a slice was never written: it
knows what became of it. What was written is told by its bytes. "Unexplained" is an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from harness.compare.difference import (
    BitsDiffer,
    DeliveredAgain,
    Difference,
    PaddingWritten,
    ParameterUnwritten,
    ReplicasDiffer,
    ShardMisplaced,
    TensorUnread,
    ValuesDiffer,
)
from harness.compare.expert_comparison import PartComparison
from harness.compare.words import device_words, reference_words, source_words
from harness.explain.causes import Cause, Diagnosis, Finding, diagnoses_of, fix_of
from harness.explain.evidence import Evidence
from harness.explain.provenance import ReferenceIndex
from harness.explain.rules import RULES, unexplained
from harness.families.experts import ReferencePart
from harness.families.family import Part, Storage
from harness.families.model import ModelCheckpoint
from harness.load.ledger import POISON, Ledger


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
        self._ledger = ledger
        self._undelivered: dict[str, Finding] = {}  # by the tensor that was to bring it
        self._checkpoint: ModelCheckpoint = comparison.reference.checkpoint
        others = {part.part: part for part in parts} | {
            comparison.reference.part: comparison.reference
        }
        self._index = ReferenceIndex(
            list(others.values()),
            lambda key: comparison.expected(
                comparison.held.of(key.projection, others[key.part][key])
            ),
        )

    def diagnose(self, differences: list[Difference], offset: int = 0) -> list[Diagnosis]:
        """The causes of this part's differences, in order of their first difference.

        Args:
            differences: the part's differences.
            offset: the place of the first of them in the report.
        """
        return diagnoses_of(((d, self._explain(d)) for d in differences), offset)

    def _explain(self, difference: Difference) -> Finding:
        key = difference.key
        if isinstance(difference, TensorUnread) and (
            known := self._undelivered.get(difference.tensor)
        ):
            return known
        if not isinstance(difference, BitsDiffer) or key is None:
            return explain_metadata(difference)
        slice_ = Evidence(
            key,
            self._comparison.reference_bits(key),
            self._comparison.device_bits(key),
            self._index,
            self._comparison.device_bits,
            self._checkpoint,
            partial(self._comparison.stored_bits, key),
            self._comparison.reference.shape.dtype,
            self._comparison.reference.naming.storage is Storage.FUSED_TRANSPOSED,
        )
        if (slice_.device == POISON.get(slice_.device.itemsize)).all():
            return self._never_written(slice_)
        return next((f for rule in RULES if (f := rule(slice_))), None) or unexplained(slice_)

    def _never_written(self, slice_: Evidence) -> Finding:
        """What the ledger knows of a slice that still holds the poison."""
        key, ledger = slice_.key, self._ledger or Ledger()
        lost = f"{{experts}} of {slice_.where} never written"
        poison = f"{key} still holds the poison 0x{POISON[slice_.device.itemsize]:x}"
        tensor = self._comparison.reference.source(key).tensor
        calls = ledger.of(*key[1:])
        if call := next((c for c in calls if c.ids_are_positional), None):
            return slice_.finding(
                Cause.ARGUMENT_CONTRACT,
                f"{key.layer} {call.site}",
                f"weight_loader got shard_id and expert_id positionally, where the hook does not "
                f"look for them; {lost}",
                f"{call.site} called {call.as_call} of a {call.layer_type}; {poison}"
                f"{fix_of(call.site)}",
            )
        if call := next((c for c in calls if c.late), None):
            return slice_.finding(
                Cause.DELIVERED_LATE,
                key.layer,
                f"the layer was processed before its pieces had come; {lost}",
                f"{call.site} delivered {key} to a parameter the layer no longer held; {poison}",
            )
        if call := next(iter(calls), None):
            how = f"{call.site} called {call.as_call} of a {call.layer_type}"
            return slice_.finding(Cause.UNWRITTEN, key.layer, lost, f"{how}; {poison}")
        if ledger.recorded and tensor not in ledger.streamed:
            return slice_.finding(
                Cause.NOT_STREAMED,
                key.layer,
                f"{lost}: their tensors were never streamed",
                f"the streamer gave {len(ledger.streamed)} tensors, {tensor} was not among them; "
                f"{poison}",
            )
        if ledger.recorded:
            self._undelivered[tensor] = slice_.finding(
                Cause.NOT_DELIVERED,
                key.layer,
                f"{lost}: no weight_loader was called for them",
                f"{tensor} was streamed, no call named {key}; {poison}",
            )
            return self._undelivered[tensor]
        return slice_.finding(Cause.UNWRITTEN, key.layer, lost, poison)


def explain_metadata(difference: Difference) -> Finding:
    """What a difference in presence, shape, placement, padding or delivery comes from."""
    where = _at(difference.part, difference.layer)
    evidence = f"{where}: expected {reference_words(difference)}, found {device_words(difference)}"
    parameter = ""
    match difference:
        case ShardMisplaced():
            return _sharding(difference)
        case ReplicasDiffer():
            return odd_replica(difference, f"{where} {difference.parameter.rsplit('.', 1)[-1]}")
        case PaddingWritten():
            parameter = difference.parameter
            cause, summary = Cause.PADDING, "the padding of an expert array is not zero"
        case DeliveredAgain():
            cause = Cause.DELIVERED_TWICE
            summary = f"{{experts}} of {where} {{were}} delivered more than once"
            evidence = f"{difference.key}: {device_words(difference)}"
        case ValuesDiffer():
            cause, summary = Cause.SCALE, f"scales of {where} are not the checkpoint's"
            evidence = f"{difference.key or difference.parameter}: {difference.pattern}"
        case TensorUnread():
            cause, summary = Cause.TENSOR_UNREAD, "tensors of the checkpoint were not read"
            evidence = f"{source_words(difference)}: {device_words(difference)}"
        case ParameterUnwritten():
            cause, summary = Cause.PARAMETER_UNWRITTEN, "parameters were never written"
            evidence = f"{difference.parameter}: {device_words(difference)}"
        case _:
            parameter = difference.parameter
            cause, summary = Cause.STRUCTURE, "the array is not what the layout says"
    return Finding(cause, f"{cause} {where} {parameter}", summary, evidence)


def odd_replica(difference: ReplicasDiffer, name: str) -> Finding:
    """A device that holds another part than its replicas; ``name`` is the array's."""
    evidence = (
        f"at {list(difference.index)} {difference.device_name} holds "
        f"{device_words(difference)}, not {reference_words(difference)}; "
        f"{difference.count} of {difference.total} elements are unequal"
    )
    cause = Cause.REPLICAS_DIFFER
    return Finding(cause, f"{cause} {name}", f"replicas of {name} hold other bits", evidence)


def holding(difference: ShardMisplaced) -> str:
    """What a device holds of an array, and what it should."""
    found, share = device_words(difference), reference_words(difference)
    return f"{difference.device_name} holds {found}, its share is {share}"


def _at(part: Part, layer: int | None) -> str:
    return f"{part} layer {layer}" if layer is not None else str(part)


def _sharding(difference: ShardMisplaced) -> Finding:
    where = f"{_at(difference.part, difference.layer)} {difference.parameter.rsplit('.', 1)[-1]}"
    evidence = holding(difference)
    if difference.replicated:
        summary = f"{where} is replicated instead of sharded"
        return Finding(Cause.REPLICATED, f"replicated {where}", summary, evidence)
    summary = f"shards of {where} lie on the wrong devices"
    return Finding(Cause.MISPLACED, f"misplaced {where}", summary, evidence)
