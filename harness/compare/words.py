"""A difference in words, for a reader: what the reference says, what the device holds, and where.

Nothing decides by these; whoever needs a fact takes it from the difference's own fields.
"""

from __future__ import annotations

from typing import assert_never

from harness.base.bits import as_hex
from harness.compare.difference import (
    ArrayExtra,
    ArrayMissing,
    BitsDiffer,
    DeliveredAgain,
    DeviceUnchecked,
    Difference,
    DigestDiffers,
    DtypeDiffers,
    PaddingWritten,
    ParameterUnwritten,
    ReplicasDiffer,
    ShapeDiffers,
    ShardMisplaced,
    Subject,
    TensorUnread,
    Unaccounted,
    ValuesDiffer,
)
from harness.devices.sharding import Region


def source_words(difference: Difference) -> str:
    """File, tensor and slice of the reference; empty where none is meant."""
    match difference:
        case BitsDiffer() | ValuesDiffer() | DeliveredAgain() | DigestDiffers():
            return str(difference.source or "")
        case TensorUnread():
            return f"{difference.file} {difference.tensor}".lstrip()
        case Unaccounted(subject=Subject.TENSOR_OF_NO_PARAMETER | Subject.TENSOR_NOT_COMPARED):
            return f"{difference.file} {difference.name}"
        case _:
            return ""


def reference_words(difference: Difference) -> str:
    """What the reference says."""
    match difference:
        case BitsDiffer():
            return as_hex(difference.reference, difference.itemsize)
        case ReplicasDiffer():
            bits = as_hex(difference.reference, difference.itemsize)
            return f"{bits} on {difference.reference_device}"
        case PaddingWritten():
            return as_hex(0, difference.itemsize)
        case ValuesDiffer() | DtypeDiffers():
            return difference.reference
        case ShapeDiffers():
            return str(list(difference.reference))
        case ShardMisplaced():
            return "nothing" if difference.share is None else _region(difference.share)
        case ArrayMissing():
            return difference.expected
        case ArrayExtra():
            return "no such parameter" if difference.layer is None else "no such layer"
        case DeliveredAgain():
            return "delivered once"
        case TensorUnread():
            return "a loader call"
        case ParameterUnwritten():
            return "a value from the checkpoint"
        case Unaccounted():
            return _REFERENCE_HAS.get(difference.subject, difference.reason)
        case DeviceUnchecked():
            return "one of the hosts compares its shards"
        case DigestDiffers():
            return difference.reference or f"no digest of {difference.dtype}"
        case _:
            assert_never(difference)


def device_words(difference: Difference) -> str:
    """What the device holds."""
    match difference:
        case BitsDiffer() | ReplicasDiffer() | PaddingWritten():
            return as_hex(difference.device, difference.itemsize)
        case ValuesDiffer() | DtypeDiffers():
            return difference.device
        case ShapeDiffers():
            return str(list(difference.device))
        case ShardMisplaced():
            return " and ".join(map(_region, difference.held)) or "nothing"
        case ArrayMissing():
            return "nothing"
        case ArrayExtra():
            return "an array" if difference.layer is None else "expert arrays"
        case DeliveredAgain():
            return f"delivered {difference.times} times"
        case TensorUnread():
            return "no weight_loader was called for it"
        case ParameterUnwritten():
            return "never written: all of it is the poison"
        case Unaccounted():
            return _DEVICE_HAS[difference.subject].format(file=difference.file)
        case DeviceUnchecked():
            return "no host did"
        case DigestDiffers():
            return difference.device or "not all of it in one process"
        case _:
            assert_never(difference)


_REFERENCE_HAS = {
    Subject.TENSOR_OF_NO_PARAMETER: "a tensor of the checkpoint",
    Subject.TENSOR_NOT_COMPARED: "a tensor of the reference",
    Subject.TENSOR_NOT_IN_THE_REFERENCE: "no tensor of this name",
    Subject.TENSOR_NOT_IN_THE_INDEX: "no such file in the index",
}
_DEVICE_HAS = {
    Subject.ARRAY: "an array",
    Subject.TENSOR_OF_NO_PARAMETER: "no parameter holds it",
    Subject.TENSOR_NOT_COMPARED: "nothing was compared with it",
    Subject.TENSOR_NOT_IN_THE_REFERENCE: "a tensor of the checkpoint, in {file}",
    Subject.TENSOR_NOT_IN_THE_INDEX: "{file} is streamed, though the index does not name it",
}


def _region(region: Region) -> str:
    return "[" + ", ".join(f"{start}:{stop}" for start, stop in region) + "]"
