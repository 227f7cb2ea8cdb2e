"""What a difference in presence, shape, placement, padding, delivery or scale comes from.

There are no bits to look at: the difference itself says it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from harness.compare.authority import WEIGHTS, Authority
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
from harness.explain.causes import Cause, Finding, Suspect
from harness.explain.delivery_rules import (
    BIAS_LOST,
    BIASES_LOST,
    PARAMETER_UNWRITTEN,
    UNWRITTEN,
    is_lone_bias,
)
from harness.explain.digest_only import by_digest
from harness.explain.value_rules import REPLICAS_DIFFER
from harness.families.experts import ReferencePart
from harness.load.ledger import POISON, Ledger

#: What a dense MLP's linear layers are called, on the device and in the file.
_DENSE = "(gate_up_proj|gate_proj|up_proj|down_proj|w1|w2|w3)"


DENSE_LAYER = Cause.declared(
    "dense-layer",
    "look at which layers the model gives experts: first_k_dense_replace, mlp_only_layers, "
    "decoder_sparse_step, moe_layer_freq and their like, and from which layer they count",
)
REPLICATED = Cause.declared(
    "replicated",
    "look at the partition spec: every device holds the whole array; an expert axis "
    "without NEW_MODEL_DESIGN=1 does this",
)
MISPLACED = Cause.declared(
    "misplaced", "look at the mesh's device order and the array's partition spec"
)
PADDING = Cause.declared(
    "padding", "look at get_w13_padding_config: something was written past a piece's end"
)
DELIVERED_TWICE = Cause.declared(
    "delivered-twice",
    "look for files that hold the same tensors twice, and for tensors that are streamed twice",
)
SCALE = Cause.declared(
    "scale",
    "look at the scales on their way: the slot each is loaded into, the orientation "
    "of their grid, the block size they are taken for",
)
TENSOR_UNREAD = Cause.declared(
    "tensor-unread",
    "look at the name mapping of the model's load_weights, or tell the harness why "
    "this model leaves the tensor alone (harness/verification/coverage.py)",
)
UNACCOUNTED = Cause.declared(
    "unaccounted",
    "look at what the release renamed or added, and give it a rule, a derivation or a "
    "reason in harness/families/",
    suspect=Suspect.HARNESS,
)
STRUCTURE = Cause.declared(
    "structure", "look at the parameter's creation: shape, dtype or name changed upstream"
)
#: A device that nobody looked at: said where the reports of hosts are merged.
UNCHECKED = Cause.declared(
    "unchecked",
    "every host of the mesh has to run the harness; see that each left a report",
    suspect=Suspect.HARNESS,
)


@dataclass(frozen=True)
class Known:
    """What is known besides the difference.

    Attributes:
        reference: the part's experts.
        layers: those that have arrays of experts on the devices.
        ledger: of the part.
        of_experts: whether it is of an array of experts; those of a layer share a sentence.
        authority: what settled which bits are right.
    """

    reference: ReferencePart
    layers: Collection[int | None]
    ledger: Ledger
    of_experts: bool
    authority: Authority = WEIGHTS

    def never(self, parameter: str) -> bool:
        """Whether nothing was ever written to a parameter; the ledger has vLLM's name of it."""
        return any(f".{parameter}".endswith(f".{name}") for name in self.ledger.unwritten)


def _mistaken(difference: Difference, known: Known) -> str:
    """The layer of a difference, and which side gives it experts, where only one does."""
    layer = _layer_of_kind(difference, known.reference)
    if layer is None or (layer in known.reference.layers) is (layer in known.layers):
        return ""
    sides = "in the reference, and none on the device", "on the device, and none in the reference"
    return f"{difference.part} layer {layer} has experts {sides[layer in known.layers]}"


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
    if mistaken := _mistaken(difference, known):
        evidence = f"{difference.name}: {device_words(difference)}"
        return _finding(DENSE_LAYER, mistaken, mistaken, evidence)
    if is_lone_bias(difference.name, known.ledger):
        evidence = f"{difference.name}: {device_words(difference)}"
        return _finding(BIAS_LOST, difference.part, BIASES_LOST, evidence)
    match difference:
        case ShardMisplaced():
            return _placement(difference, _array(difference, of_experts))
        case ReplicasDiffer():
            return _odd_replica(difference, _array(difference, of_experts))
        case PaddingWritten():
            return _padding(difference, where, evidence, known)
        case DigestDiffers():
            never = not of_experts and known.never(difference.parameter)
            return by_digest(difference, known.reference, known.authority, never=never)
        case DeliveredAgain():
            summary = f"{{experts}} of {where} {{were}} delivered more than once"
            evidence = f"{difference.key}: {device_words(difference)}"
            return _finding(DELIVERED_TWICE, where, summary, evidence)
        case ValuesDiffer():
            of = where if of_experts else str(difference.source)
            evidence = f"{difference.key or of}: {difference.pattern}"
            return _finding(SCALE, where, f"scales of {of} are not the checkpoint's", evidence)
        case TensorUnread():
            evidence = f"{source_words(difference)}: {device_words(difference)}"
            summary = "tensors of the checkpoint were not read"
            return _finding(TENSOR_UNREAD, where, summary, evidence)
        case ParameterUnwritten():
            evidence = f"{difference.parameter}: {device_words(difference)}"
            summary = "parameters were never written"
            return _finding(PARAMETER_UNWRITTEN, where, summary, evidence)
        case Unaccounted():
            summary = f"{difference.name} is unaccounted for"
            return _finding(UNACCOUNTED, difference.part, summary, evidence)
        case _:
            array = difference.parameter
            what = f"the array of {where}" if of_experts else array
            summary = f"{what} is not what its layout says"
            return _finding(STRUCTURE, f"{where} {array}", summary, evidence)


def _padding(difference: PaddingWritten, where: str, evidence: str, known: Known) -> Finding:
    array = difference.parameter
    if difference.device == POISON.get(difference.itemsize):
        never = not known.of_experts and known.never(array)
        cause = PARAMETER_UNWRITTEN if never else UNWRITTEN
        what = "was never written"
    else:
        cause, what = PADDING, "is not zero"
    of = "an expert array" if known.of_experts else array
    return _finding(cause, f"{where} {array} padding", f"the padding of {of} {what}", evidence)


def _odd_replica(difference: ReplicasDiffer, name: str) -> Finding:
    evidence = (
        f"at {list(difference.index)} {difference.device_name} holds "
        f"{device_words(difference)}, not {reference_words(difference)}; "
        f"{difference.count} of {difference.total} elements are unequal"
    )
    return _finding(REPLICAS_DIFFER, name, f"replicas of {name} hold other bits", evidence)


def _placement(difference: ShardMisplaced, name: str) -> Finding:
    found, share = device_words(difference), reference_words(difference)
    evidence = f"{difference.device_name} holds {found}, its share is {share}"
    if difference.replicated:
        summary = f"{name} is replicated instead of sharded"
        return _finding(REPLICATED, name, summary, evidence)
    return _finding(MISPLACED, name, f"shards of {name} lie on the wrong devices", evidence)


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
