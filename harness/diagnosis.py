"""Why the device differs: few causes for many differences, each with its evidence and next step.

Runs only when something differs. The ledger is asked first, where a slice was never written: it
knows what became of it. What was written is told by its bytes. "Unexplained" is an answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from harness.causes import NEXT_STEP, Cause, Diagnosis, Finding
from harness.checkpoint import Checkpoint
from harness.compare import PartComparison
from harness.difference import Difference, Kind
from harness.evidence import Evidence
from harness.experts import ReferencePart
from harness.family import Part
from harness.ledger import POISON, Ledger, LoaderCall
from harness.maps import runs_text
from harness.provenance import ReferenceIndex
from harness.rules import RULES, unexplained


@dataclass
class _Group:
    finding: Finding
    members: list[int] = field(default_factory=list)
    experts: set[int] = field(default_factory=set)

    def summary(self) -> str:
        return self.finding.summary.replace("{experts}", experts_text(self.experts))


def experts_text(experts: Iterable[int]) -> str:
    """``expert 3``, or ``experts 0-5, 7``."""
    runs: list[list[int]] = []
    for number in sorted(experts):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    text = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return f"expert{'' if sum(map(len, runs)) == 1 else 's'} {text}"


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
        self._checkpoint: Checkpoint = comparison.reference.checkpoint
        others = {part.part: part for part in parts} | {
            comparison.reference.part: comparison.reference
        }
        self._index = ReferenceIndex(
            list(others.values()),
            lambda key: comparison.expected(others[key.part][key]),
        )

    def diagnose(self, differences: list[Difference], offset: int = 0) -> list[Diagnosis]:
        """The causes of this part's differences, in order of their first difference.

        Args:
            differences: the part's differences.
            offset: the place of the first of them in the report.
        """
        groups: dict[str, _Group] = {}
        for number, difference in enumerate(differences):
            finding = self._explain(difference)
            group = groups.setdefault(finding.group, _Group(finding))
            group.members.append(number)
            group.experts |= set() if difference.expert is None else {difference.expert}
        return [
            Diagnosis(
                cause=group.finding.cause,
                summary=group.summary(),
                evidence=group.finding.evidence,
                next_step=NEXT_STEP[group.finding.cause],
                first=offset + group.members[0],
                covers=len(group.members),
                members=runs_text(offset + number for number in group.members),
            )
            for group in groups.values()
        ]

    def _explain(self, difference: Difference) -> Finding:
        key = difference.key
        if difference.kind is not Kind.BITS or key is None:
            return explain_metadata(difference)
        slice_ = Evidence(
            key,
            self._comparison.reference_bits(key),
            self._comparison.device_bits(key),
            self._index,
            self._comparison.device_bits,
            self._checkpoint,
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
        if call := next((c for c in ledger.of(*key[1:]) if c.ids_are_positional), None):
            return slice_.finding(
                Cause.ARGUMENT_CONTRACT,
                f"{key.layer} {call.site}",
                f"weight_loader got shard_id and expert_id positionally, where the hook does not "
                f"look for them; {lost}",
                f"{call.site} called {call.as_call} of a {call.layer_type}; {poison}",
            )
        if call := next((c for c in ledger.of(*key[1:]) if c.late), None):
            return slice_.finding(
                Cause.DELIVERED_LATE,
                key.layer,
                f"the layer was processed before its pieces had come; {lost}",
                f"{call.site} delivered {key} to a parameter the layer no longer held; {poison}",
            )
        if call := next(iter(ledger.of(*key[1:])), None):
            how = f"{call.site} called {call.as_call} of a {call.layer_type}"
            return slice_.finding(Cause.UNWRITTEN, key.layer, lost, f"{how}; {poison}")
        if ledger.calls and tensor not in ledger.streamed:
            return slice_.finding(
                Cause.NOT_STREAMED,
                key.layer,
                f"{lost}: their tensors were never streamed",
                f"the streamer gave {len(ledger.streamed)} tensors, {tensor} was not among them; "
                f"{poison}",
            )
        if ledger.calls:
            return slice_.finding(
                Cause.NOT_DELIVERED,
                key.layer,
                f"{lost}: no weight_loader was called for them",
                f"{tensor} was streamed, no call named {key}; {poison}",
            )
        return slice_.finding(Cause.UNWRITTEN, key.layer, lost, poison)


def explain_metadata(difference: Difference) -> Finding:
    """What a difference in presence, shape, placement, padding or delivery comes from."""
    where = _at(difference.part, difference.layer)
    evidence = f"{where}: expected {difference.reference}, found {difference.device}"
    match difference.kind:
        case Kind.SHARDING:
            return _sharding(difference)
        case Kind.PADDING:
            cause, summary = Cause.PADDING, "the padding of an expert array is not zero"
        case Kind.DELIVERY:
            cause = Cause.DELIVERED_TWICE
            summary = f"{{experts}} of {where} were delivered more than once"
            evidence = f"{difference.key}: {difference.device}"
        case Kind.UNREAD:
            cause, summary = Cause.TENSOR_UNREAD, "tensors of the checkpoint were not read"
            evidence = f"{difference.source}: {difference.device}"
        case Kind.UNWRITTEN:
            cause, summary = Cause.PARAMETER_UNWRITTEN, "parameters were never written"
            evidence = f"{difference.parameter}: {difference.device}"
        case _:
            cause, summary = Cause.STRUCTURE, "the array is not what the layout says"
    parameter = "" if difference.kind in _COLLECTED else difference.parameter
    return Finding(cause, f"{cause} {where} {parameter}", summary, evidence)


_COLLECTED = (Kind.DELIVERY, Kind.UNREAD, Kind.UNWRITTEN)


def _at(part: Part, layer: int | None) -> str:
    return f"{part} layer {layer}" if layer is not None else str(part)


def _sharding(difference: Difference) -> Finding:
    where = f"{_at(difference.part, difference.layer)} {difference.parameter.rsplit('.', 1)[-1]}"
    evidence = (
        f"{difference.device_name} holds {difference.device}, its share is {difference.reference}"
    )
    if difference.count > difference.total > 0:
        summary = f"{where} is replicated instead of sharded"
        return Finding(Cause.REPLICATED, f"replicated {where}", summary, evidence)
    summary = f"shards of {where} lie on the wrong devices"
    return Finding(Cause.MISPLACED, f"misplaced {where}", summary, evidence)


#: The fixes of positional ids, by the file of the call site; all released with vLLM 0.22.0.
FIXES: dict[str, str] = {
    "qwen3_5.py": "vLLM #42521",
    "qwen3_vl_moe.py": "vLLM #42671 and #42716",
    "qwen3_5_mtp.py": "vLLM #42716",
}


def diagnose_failure(
    call: LoaderCall | None, undelivered: dict[int, tuple[int, ...]]
) -> list[Diagnosis]:
    """The cause of a failed load, if the loader call it failed in explains it; else "unexplained".

    Args:
        call: the call that raised.
        undelivered: by layer, the experts that were not delivered when it did.
    """
    if call is None:
        return [_failed(Cause.UNEXPLAINED, "the stack under test raised an error", "see above")]
    evidence = f"{call.site} called {call.as_call} of a {call.layer_type}"
    if call.ids_are_positional:
        summary = (
            "the hook received shard_id and expert_id positionally and reads them from the "
            f"keyword arguments; {_lost(undelivered)}"
        )
        return [_failed(Cause.ARGUMENT_CONTRACT, summary, evidence, _fix(call.site))]
    if call.layer_type == "QKVParallelLinear" and not call.arguments:
        summary = "the hook wants a shard_id for a tensor that is stored fused and has none"
        return [_failed(Cause.FUSED_WITHOUT_SHARD, summary, evidence)]
    return [_failed(Cause.UNEXPLAINED, "a weight_loader raised an error", evidence)]


def _failed(cause: Cause, summary: str, evidence: str, fix: str = "") -> Diagnosis:
    next_step = f"{NEXT_STEP[cause]}{fix}"
    return Diagnosis(cause=cause, summary=summary, evidence=evidence, next_step=next_step)


def _lost(undelivered: dict[int, tuple[int, ...]]) -> str:
    layers = [f"layer {layer}: {experts_text(e)}" for layer, e in undelivered.items()]
    return f"never arrived: {'; '.join(layers)}" if layers else "its experts never arrived"


def _fix(call_site: str) -> str:
    file = call_site.rsplit("/", 1)[-1].split(":")[0]
    return f"; fixed by {FIXES[file]}, released with vLLM 0.22.0" if file in FIXES else ""
