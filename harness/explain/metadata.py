"""What a difference in presence, shape, placement, padding, delivery or scale comes from.

There are no bits to look at: the difference itself says it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from harness.compare.difference import (
    ArrayExtra,
    ArrayMissing,
    DeliveredAgain,
    Difference,
    DigestDiffers,
    PaddingWritten,
    ParameterUnwritten,
    ReplicasDiffer,
    ShardMisplaced,
    TensorUnread,
    Unaccounted,
    ValuesDiffer,
)
from harness.compare.words import device_words, reference_words, source_words
from harness.devices.expert_layout import Parameter
from harness.explain.causes import Cause, Finding
from harness.explain.delivery_rules import BIASES_LOST
from harness.families.experts import ReferencePart
from harness.load.ledger import POISON

#: What a dense MLP's linear layers are called, on the device and in the file.
_DENSE = "(gate_up_proj|gate_proj|up_proj|down_proj|w1|w2|w3)"


@dataclass(frozen=True)
class Known:
    """What is known besides the difference.

    Attributes:
        of_experts: whether it is of an array of experts; those of a layer share a sentence.
        never: whether the ledger says that nothing was ever written to the parameter.
        mistaken: the layer that has experts on one side alone, in words.
        lone_bias: whether it is of a bias that was not delivered, while its weight was.
        instead: what digests say that it holds, and the cause of that.
    """

    of_experts: bool
    never: bool = False
    mistaken: str = ""
    lone_bias: bool = False
    instead: tuple[Cause, str] | None = None


def mistaken(difference: Difference, part: ReferencePart, device: Collection[int | None]) -> str:
    """The layer that a difference is of, and which side gives it experts, where only one does.

    Args:
        difference: of an array or a tensor.
        part: the reference's experts.
        device: the layers that have arrays of experts on the devices.
    """
    layer = _layer_of_kind(difference, part)
    if layer is None or (layer in part.layers) is (layer in device):
        return ""
    sides = "in the reference, and none on the device", "on the device, and none in the reference"
    return f"{difference.part} layer {layer} has experts {sides[layer in device]}"


def _layer_of_kind(difference: Difference, part: ReferencePart) -> int | None:
    """The layer, where the difference is of its experts or of the dense MLP in their place."""
    family = part.checkpoint.family
    match difference:
        case ArrayMissing(parameter=array) if array not in tuple(Parameter):
            return None
        case ArrayMissing() | ArrayExtra():
            return difference.layer
        case TensorUnread():
            return part.naming.layer_of(difference.tensor)
        case Unaccounted():
            parent = re.escape(family.experts_module.rpartition(".")[0])
            dense = re.compile(rf"(.*\.)?layers\.\d+\.{parent}\.{_DENSE}\.(weight|bias)")
            return difference.layer if dense.fullmatch(difference.name) else None
        case _:
            return None


def explain_metadata(difference: Difference, known: Known) -> Finding:
    """What it comes from.

    Args:
        difference: any but unequal bits of a tensor.
        known: what is known besides.
    """
    of_experts = known.of_experts
    where = _at(difference) if of_experts else difference.name
    evidence = f"{where}: expected {reference_words(difference)}, found {device_words(difference)}"
    if known.mistaken:
        evidence = f"{difference.name}: {device_words(difference)}"
        return _finding(Cause.DENSE_LAYER, known.mistaken, known.mistaken, evidence)
    if known.lone_bias:
        evidence = f"{difference.name}: {device_words(difference)}"
        return _finding(Cause.BIAS_LOST, difference.part, BIASES_LOST, evidence)
    match difference:
        case ShardMisplaced():
            return _placement(difference, _array(difference, of_experts))
        case ReplicasDiffer():
            return _odd_replica(difference, _array(difference, of_experts))
        case PaddingWritten():
            return _padding(difference, where, evidence, known)
        case DigestDiffers():
            return _by_digest(difference, where, known)
        case DeliveredAgain():
            summary = f"{{experts}} of {where} {{were}} delivered more than once"
            evidence = f"{difference.key}: {device_words(difference)}"
            return _finding(Cause.DELIVERED_TWICE, where, summary, evidence)
        case ValuesDiffer():
            of = where if of_experts else str(difference.source)
            evidence = f"{difference.key or of}: {difference.pattern}"
            return _finding(
                Cause.SCALE, where, f"scales of {of} are not the checkpoint's", evidence
            )
        case TensorUnread():
            evidence = f"{source_words(difference)}: {device_words(difference)}"
            summary = "tensors of the checkpoint were not read"
            return _finding(Cause.TENSOR_UNREAD, where, summary, evidence)
        case ParameterUnwritten():
            evidence = f"{difference.parameter}: {device_words(difference)}"
            summary = "parameters were never written"
            return _finding(Cause.PARAMETER_UNWRITTEN, where, summary, evidence)
        case Unaccounted():
            summary = f"{difference.name} is unaccounted for"
            return _finding(Cause.UNACCOUNTED, difference.part, summary, evidence)
        case _:
            array = difference.parameter
            what = f"the array of {where}" if of_experts else array
            summary = f"{what} is not what its layout says"
            return _finding(Cause.STRUCTURE, f"{where} {array}", summary, evidence)


def _padding(difference: PaddingWritten, where: str, evidence: str, known: Known) -> Finding:
    array = difference.parameter
    if difference.device == POISON.get(difference.itemsize):
        cause = Cause.PARAMETER_UNWRITTEN if known.never else Cause.UNWRITTEN
        what = "was never written"
    else:
        cause, what = Cause.PADDING, "is not zero"
    of = "an expert array" if known.of_experts else array
    return _finding(cause, f"{where} {array} padding", f"the padding of {of} {what}", evidence)


def _odd_replica(difference: ReplicasDiffer, name: str) -> Finding:
    evidence = (
        f"at {list(difference.index)} {difference.device_name} holds "
        f"{device_words(difference)}, not {reference_words(difference)}; "
        f"{difference.count} of {difference.total} elements are unequal"
    )
    return _finding(Cause.REPLICAS_DIFFER, name, f"replicas of {name} hold other bits", evidence)


def _by_digest(difference: DigestDiffers, where: str, known: Known) -> Finding:
    """What digests alone tell of a matrix or a tensor."""
    of, part = str(difference.key or difference.source.tensor), difference.part
    its = f"the device's is {difference.device}" if difference.device else "no device has all of it"
    evidence = f"{of}: the digest file has {difference.reference or 'none'}, {its}"
    if difference.checkpoint:
        evidence += f", {difference.source.file}'s {difference.checkpoint}"
        loaded = difference.device == difference.checkpoint
        evidence += "; the device holds what that file does" if loaded else ""
        summary = f"the checkpoint's own files hold other bits than the digest file says ({part})"
        return _finding(Cause.FILE_DIFFERS, part, summary, evidence)
    evidence += f"; the checkpoint's own bits could not be read: {difference.unread}"
    if known.instead:
        cause, what = known.instead
        if cause is Cause.UNWRITTEN and known.never:
            cause = Cause.PARAMETER_UNWRITTEN
        return _finding(cause, f"{of}", f"{of} holds {what}", evidence)
    summary = f"{where} differs from the digest file; weights not reachable"
    return _finding(Cause.UNEXPLAINED, where, summary, evidence)


def _placement(difference: ShardMisplaced, name: str) -> Finding:
    found, share = device_words(difference), reference_words(difference)
    evidence = f"{difference.device_name} holds {found}, its share is {share}"
    if difference.replicated:
        summary = f"{name} is replicated instead of sharded"
        return _finding(Cause.REPLICATED, name, summary, evidence)
    return _finding(Cause.MISPLACED, name, f"shards of {name} lie on the wrong devices", evidence)


def _array(difference: ShardMisplaced | ReplicasDiffer, of_experts: bool) -> str:
    """``decoder layer 1 w13_weight``, or the parameter's own name."""
    if not of_experts:
        return difference.parameter
    return f"{_at(difference)} {difference.parameter.rsplit('.', 1)[-1]}"


def _at(difference: Difference) -> str:
    part, layer = difference.part, difference.layer
    return f"{part} layer {layer}" if layer is not None else str(part)


def _finding(cause: Cause, group: str, summary: str, evidence: str) -> Finding:
    return Finding(cause, f"{cause} {group}", summary, evidence)
