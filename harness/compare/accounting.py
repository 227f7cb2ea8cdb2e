"""Which tensors a part of the model may leave alone, and why.

A name alone excuses nothing: a draft model's tensors are its own where config.json announces one,
and a layer may be left out only if config.json has it and the load was cut before it.
"""

from __future__ import annotations

from collections.abc import Collection

from harness.checkpoint.fp8_blocks import SCALE_SUFFIX
from harness.families.experts import ReferencePart, announced_layers, is_absent
from harness.families.family import Part
from harness.families.model_checkpoint import ModelCheckpoint

#: Why tensors of a part that the model has are left alone, though its family does not say so.
CUT = "of a layer that --num-layers leaves out"
#: Why everything but experts is left alone, where that was asked for.
EXPERTS_ONLY = "not looked at: experts only (--experts-only)"


def model_parts(checkpoint: ModelCheckpoint) -> frozenset[Part]:
    """The parts that config.json announces layers of, and that are not absent from the files.

    Raises:
        BadInput: it announces no number of them.
    """
    counts = checkpoint.family.layer_counts
    return frozenset(
        part
        for part in counts
        if announced_layers(checkpoint, part) and not is_absent(checkpoint, part)
    )


def left_alone(part: ReferencePart, tensor: str, present: Collection[Part]) -> str:
    """Why a part of the model leaves ``tensor`` alone; empty when it should not.

    Args:
        part: the part, cut to the layers it has on the devices.
        tensor: the tensor's name in the checkpoint.
        present: the parts that the model has.
    """
    checkpoint = part.checkpoint
    if reason := beside_experts(checkpoint, tensor):
        return reason
    stored = tensor.removesuffix(SCALE_SUFFIX) if checkpoint.fp8 else tensor
    if reason := checkpoint.family.unused_reason(part.part, stored, checkpoint.tied, present):
        return reason
    layer = checkpoint.family.decoder_layer(tensor) if part.part is Part.DECODER else None
    if layer is None or layer in part.layers:
        return ""
    return CUT if layer < announced_layers(checkpoint, part.part) else ""


def beside_experts(checkpoint: ModelCheckpoint, tensor: str) -> str:
    """Why a tensor that is no expert's is left alone; empty where all tensors are looked at."""
    if checkpoint.experts_only and not checkpoint.family.is_of_experts(tensor):
        return EXPERTS_ONLY
    return ""
