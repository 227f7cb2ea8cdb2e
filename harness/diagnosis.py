"""Why the device differs: few causes for many differences, each with its evidence and next step.

Runs only when something differs. Digests of the layer's reference slices make an index; what a
differing slice holds instead is looked up there. Rules are ordered, the first that fits wins, and
"unexplained" is an answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec
import numpy as np

from harness.compare import PartComparison
from harness.difference import Difference, Kind
from harness.dtypes import Bits
from harness.experts import ExpertKey
from harness.family import Part


class Cause(StrEnum):
    """The classes of fault that can be told apart so far."""

    UNWRITTEN = "unwritten"
    EXPERTS_EXCHANGED = "experts-exchanged"
    PROJECTIONS_EXCHANGED = "projections-exchanged"
    OTHER_SLICE = "other-slice"
    TRANSPOSED = "transposed"
    BIT_FLIP = "bit-flip"
    SIGN_OF_ZERO = "sign-of-zero"
    NAN_CANONICALISED = "nan-canonicalised"
    REPLICATED = "replicated"
    MISPLACED = "misplaced"
    PADDING = "padding"
    STRUCTURE = "structure"
    ARGUMENT_CONTRACT = "argument-contract"
    FUSED_WITHOUT_SHARD = "fused-without-shard"
    UNEXPLAINED = "unexplained"


NEXT_STEP: dict[Cause, str] = {
    Cause.UNWRITTEN: "look for a weight_loader call that never came, or came before the buffer "
    "was replaced: the model's load_weights and load_fused_expert_weights",
    Cause.EXPERTS_EXCHANGED: "look at the order of expert ids: ids sorted as strings, or a "
    "permuted expert map",
    Cause.PROJECTIONS_EXCHANGED: "look at the shard_id each half is loaded under (w1, w2, w3) and "
    "at how the fused tensor is chunked",
    Cause.OTHER_SLICE: "look at the expert_id and shard_id the slice was loaded under",
    Cause.TRANSPOSED: "look for a transpose too many or too few on the way from the file",
    Cause.BIT_FLIP: "read the file and the device again: storage, memory or link corruption",
    Cause.SIGN_OF_ZERO: "look for arithmetic on the weights (x + 0, casts): a copy keeps -0.0",
    Cause.NAN_CANONICALISED: "expected where tpu-inference casts bf16 to f32 and back (t2j); "
    "compare with nan=canonical",
    Cause.REPLICATED: "look at the partition spec: every device holds the whole array; an expert "
    "axis without NEW_MODEL_DESIGN=1 does this",
    Cause.MISPLACED: "look at the mesh's device order and the array's partition spec",
    Cause.PADDING: "look at get_w13_padding_config: something was written past a piece's end",
    Cause.STRUCTURE: "look at the parameter's creation: shape, dtype or name changed upstream",
    Cause.ARGUMENT_CONTRACT: "pass them by keyword at the call site: shard_id=shard_id, "
    "expert_id=expert_id",
    Cause.FUSED_WITHOUT_SHARD: "let the hook take a call without shard_id as one that loads all "
    "shards; fixed by tpu-inference #2647, released with 0.22",
    Cause.UNEXPLAINED: "the differences are listed raw; rerun to see whether they are stable",
}


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """One cause, the sentence that states it, its evidence, the next step, and how much it covers.

    ``first`` indexes the report's differences; ``covers`` counts those with this cause. Both are
    0 where a load failed and nothing was compared.
    """

    cause: Cause
    summary: str
    evidence: str
    next_step: str
    first: int = 0
    covers: int = 0


@dataclass
class _Finding:
    """What one difference was explained by. Findings with the same ``group`` become one.

    ``{experts}`` in the summary stands for the experts of all of them.
    """

    cause: Cause
    group: str
    summary: str
    evidence: str


@dataclass
class _Group:
    finding: _Finding
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
    """Explains the differences of one part, with the tensors at hand.

    Args:
        comparison: the part's comparison; its reference and device are read again.
    """

    def __init__(self, comparison: PartComparison) -> None:
        self._comparison = comparison
        self._index: dict[int, dict[bytes, ExpertKey]] = {}

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
            )
            for group in groups.values()
        ]

    def _explain(self, difference: Difference) -> _Finding:
        if difference.kind is Kind.SHARDING:
            return _explain_sharding(difference)
        if difference.kind is Kind.PADDING:
            return _simple(Cause.PADDING, difference, "the padding of an expert array is not zero")
        key = difference.key
        if difference.kind is not Kind.BITS or key is None:
            return _simple(Cause.STRUCTURE, difference, "the array is not what the layout says")
        reference = self._comparison.reference_bits(key)
        device = self._comparison.device_bits(key)
        if device.any() and (other := self._holds(key, device)):
            return _explain_other(key, other, self._mutual(key, other))
        for rule in _RULES:
            if finding := rule(key, reference, device):
                return finding
        return _unexplained(key, reference, device)

    def _holds(self, key: ExpertKey, device: Bits) -> ExpertKey | None:
        """The reference slice of the same layer whose bytes the device holds under ``key``."""
        if key.layer not in self._index:
            self._index[key.layer] = {
                _digest(self._comparison.reference_bits(other)): other
                for other in self._comparison.reference.keys_of(key.layer)
            }
        return self._index[key.layer].get(_digest(device))

    def _mutual(self, key: ExpertKey, other: ExpertKey) -> bool:
        """Whether ``other`` holds ``key``'s bytes in return."""
        return self._holds(other, self._comparison.device_bits(other)) == key


def _digest(bits: Bits) -> bytes:
    shape = str(bits.shape).encode()
    return hashlib.blake2b(np.ascontiguousarray(bits).data, person=shape[:16]).digest()


def _at(part: Part, layer: int | None) -> str:
    return f"{part} layer {layer}" if layer is not None else str(part)


def _simple(cause: Cause, difference: Difference, summary: str) -> _Finding:
    where = _at(difference.part, difference.layer)
    evidence = f"{where}: expected {difference.reference}, found {difference.device}"
    return _Finding(cause, f"{cause} {where} {difference.parameter}", summary, evidence)


def _explain_sharding(difference: Difference) -> _Finding:
    where = f"{_at(difference.part, difference.layer)} {difference.parameter.rsplit('.', 1)[-1]}"
    evidence = (
        f"{difference.device_name} holds {difference.device}, its share is {difference.reference}"
    )
    if difference.count > difference.total > 0:
        summary = f"{where} is replicated instead of sharded"
        return _Finding(Cause.REPLICATED, f"replicated {where}", summary, evidence)
    summary = f"shards of {where} lie on the wrong devices"
    return _Finding(Cause.MISPLACED, f"misplaced {where}", summary, evidence)


def _explain_other(key: ExpertKey, other: ExpertKey, mutual: bool) -> _Finding:
    where = _at(key.part, key.layer)
    evidence = f"{key} holds the bytes of expert {other.expert}'s {other.projection}"
    if mutual and key.expert == other.expert:
        first, second = sorted((key.projection, other.projection))
        return _Finding(
            Cause.PROJECTIONS_EXCHANGED,
            f"projections {where} {first} {second}",
            f"{first} and {second} are exchanged in {where}, expert {key.expert} first",
            evidence,
        )
    if mutual and key.projection is other.projection:
        first_expert, second_expert = sorted((key.expert, other.expert))
        return _Finding(
            Cause.EXPERTS_EXCHANGED,
            f"experts {where} {first_expert} {second_expert}",
            f"experts {first_expert} and {second_expert} of {where} are exchanged",
            evidence,
        )
    return _Finding(
        Cause.OTHER_SLICE,
        f"other {where}",
        f"slices of {where} hold the bytes of other experts or projections",
        evidence,
    )


def _unwritten(key: ExpertKey, reference: Bits, device: Bits) -> _Finding | None:
    if device.any():
        return None
    where = _at(key.part, key.layer)
    return _Finding(
        Cause.UNWRITTEN,
        f"unwritten {where}",
        f"{{experts}} of {where} never written, or written with zeros",
        f"{key} holds only zeros",
    )


def _transposed(key: ExpertKey, reference: Bits, device: Bits) -> _Finding | None:
    on_the_host = np.array_equal(device.ravel(), reference.T.ravel())
    on_the_device = np.array_equal(device.T.ravel(), reference.ravel())
    if not (on_the_host or on_the_device):
        return None
    where = _at(key.part, key.layer)
    return _Finding(
        Cause.TRANSPOSED,
        f"transposed {where} {key.projection}",
        f"{key.projection} of {where} is transposed, expert {key.expert} first",
        f"{key} holds the reference's numbers in the order of its transpose",
    )


def _sign_of_zero(key: ExpertKey, reference: Bits, device: Bits) -> _Finding | None:
    unequal = reference != device
    sign = 1 << (8 * reference.itemsize - 1)
    if (((reference[unequal] | device[unequal]) & (sign - 1)) != 0).any():
        return None
    return _Finding(
        Cause.SIGN_OF_ZERO,
        f"sign-of-zero {key.part}",
        "zeros lost or gained their sign, all else is equal",
        f"{key}: {int(unequal.sum())} zeros differ in their sign alone",
    )


def _bit_flip(key: ExpertKey, reference: Bits, device: Bits) -> _Finding | None:
    unequal = reference != device
    if unequal.sum() != 1:
        return None
    flipped = int((reference[unequal] ^ device[unequal])[0])
    if flipped.bit_count() != 1:
        return None
    return _Finding(
        Cause.BIT_FLIP,
        f"bit-flip {key}",
        f"one bit of {key} is flipped",
        f"bit {flipped.bit_length() - 1} of one element differs, the other "
        f"{reference.size - 1} elements are equal",
    )


def _nan_canonicalised(key: ExpertKey, reference: Bits, device: Bits) -> _Finding | None:
    if reference.itemsize != 2:
        return None
    unequal = reference != device
    before, after = reference[unequal], device[unequal]
    if not (((before & 0x7FFF) > 0x7F80) & (after == ((before & 0x8000) | 0x7FC0))).all():
        return None
    return _Finding(
        Cause.NAN_CANONICALISED,
        f"nan {key.part}",
        "NaN payloads were replaced by the quiet NaN of their sign, all else is equal",
        f"{key}: {int(unequal.sum())} NaNs",
    )


def _unexplained(key: ExpertKey, reference: Bits, device: Bits) -> _Finding:
    where = _at(key.part, key.layer)
    share = np.count_nonzero(reference != device) / reference.size
    return _Finding(
        Cause.UNEXPLAINED,
        f"unexplained {where}",
        f"slices of {where} differ for no known reason",
        f"{key}: {share:.1%} of its elements differ, no reference slice of the layer fits",
    )


_RULES: Iterable[Callable[[ExpertKey, Bits, Bits], _Finding | None]] = (
    _unwritten,
    _transposed,
    _sign_of_zero,
    _bit_flip,
    _nan_canonicalised,
)
