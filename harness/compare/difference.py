"""Differences: facts about where the device departs from the reference, and how much was compared.

Objects until the edge. They travel from the process that holds the tensors to the one that
reports, as JSON; one place, :mod:`harness.report.message`, turns them into text.
"""

from __future__ import annotations

from enum import StrEnum
from math import prod
from typing import Annotated

import msgspec

from harness.devices.sharding import Region
from harness.families.experts import ExpertKey, TensorSlice
from harness.families.family import Part, Projection


class Kind(StrEnum):
    """What departs; each is the tag of one class of :data:`Difference`."""

    MISSING = "missing"
    EXTRA = "extra"
    SHAPE = "shape"
    DTYPE = "dtype"
    SHARDING = "sharding"
    PADDING = "padding"
    BITS = "bits"
    DELIVERY = "delivery"
    UNREAD = "unread"
    UNWRITTEN = "unwritten"
    UNACCOUNTED = "unaccounted"
    VALUES = "values"
    REPLICAS = "replicas"
    UNCHECKED = "unchecked"
    DIGEST = "digest"


class Fact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind"):
    """What all differences have in common; :data:`Difference` is the union of them.

    A difference has the fields of its kind and no others; the properties below answer for every
    kind. What a reader is told of one is in :mod:`harness.compare.words`.

    Attributes:
        part: decoder or mtp.
    """

    part: Part

    @property
    def kind(self) -> Kind:
        """What departs."""
        return Kind(self.__struct_config__.tag)  # type: ignore[arg-type]

    @property
    def layer(self) -> int | None:
        """The layer; None for the part as a whole."""
        return None

    @property
    def expert(self) -> int | None:
        """The expert; None where a whole array is meant."""
        return None

    @property
    def projection(self) -> Projection | None:
        """The matrix; None where a whole array is meant."""
        return None

    @property
    def parameter(self) -> str:
        """The name of the device's array; empty where none is meant."""
        return ""

    @property
    def shard(self) -> int | None:
        """The number of the shard, in mesh order, where one is meant that the mesh has."""
        return None

    @property
    def device_name(self) -> str:
        """The device that holds it; empty where none is meant."""
        return ""

    @property
    def name(self) -> str:
        """What it is about: the device's array or, where none is meant, the tensor."""
        return self.parameter

    @property
    def key(self) -> ExpertKey | None:
        """The matrix meant, if one is."""
        if self.layer is None or self.expert is None or self.projection is None:
            return None
        return ExpertKey(self.part, self.layer, self.expert, self.projection)


#: Bytes of one element, and bits of one as an unsigned integer.
_Itemsize = Annotated[int, msgspec.Meta(ge=1, le=8)]
_Word = Annotated[int, msgspec.Meta(ge=0)]
_Some = Annotated[int, msgspec.Meta(ge=1)]


class Unequal(Fact, frozen=True, kw_only=True):
    """Elements that were compared and are unequal.

    Attributes:
        index: the first of them.
        count: how many there are.
        total: how many were compared.
    """

    index: tuple[int, ...]
    count: _Some
    total: _Some


class BitsDiffer(Unequal, frozen=True, kw_only=True, tag=Kind.BITS.value):
    """Bits of a matrix, of a tensor, or of a buffer that is to be constant.

    Attributes:
        layer: its layer, None for the part as a whole.
        expert: the expert, None besides experts.
        projection: the matrix, None besides experts.
        parameter: the device's array.
        source: where the reference has it; None where no tensor does.
        index: in the expert's matrix [output, input], or in the checkpoint's tensor.
        reference: bits of the first unequal element that the device is to hold.
        device: those it holds.
        itemsize: bytes of an element.
        shard: number of the shard that holds the element, in mesh order.
        device_name: the device that holds it.
    """

    layer: int | None = None
    expert: int | None = None
    projection: Projection | None = None
    parameter: str
    source: TensorSlice | None = None
    reference: _Word
    device: _Word
    itemsize: _Itemsize
    shard: int | None = None
    device_name: str = ""


class ValuesDiffer(Unequal, frozen=True, kw_only=True, tag=Kind.VALUES.value):
    """Quantised values that are off by more than a second quantisation explains.

    Attributes:
        layer, expert, projection, parameter, index: as those of :class:`BitsDiffer`.
        source: where the reference has them.
        reference: the first of them as the checkpoint has it, nine digits, or ``nan``, ``inf``.
        device: the same on the device.
        pattern: what the values are instead, in words.
        shard, device_name: as those of :class:`BitsDiffer`.
    """

    layer: int | None = None
    expert: int | None = None
    projection: Projection | None = None
    parameter: str
    source: TensorSlice
    reference: str
    device: str
    pattern: str
    shard: int | None = None
    device_name: str = ""


class DigestDiffers(Fact, frozen=True, kw_only=True, tag=Kind.DIGEST.value):
    """A matrix or tensor that is other than a digest file says; which bits are, nobody can say.

    Where the checkpoint's weights are those of the digest file, and can be read, there is a
    :class:`BitsDiffer` instead. Digests are 32 hexadecimal digits.

    Attributes:
        layer, expert, projection, parameter: as those of :class:`BitsDiffer`.
        source: where the checkpoint has it.
        dtype: what the device is to hold it in, which all digests are of.
        reference: the digest file's; empty where it has none in that type.
        device: what the device holds digests to; empty where no process holds all of it.
        checkpoint: what the checkpoint's own files hold digests to, where that is not what the
            digest file says either; else empty.
        unread: why the checkpoint's weights could not be read, or empty.
    """

    layer: int | None = None
    expert: int | None = None
    projection: Projection | None = None
    parameter: str
    source: TensorSlice
    dtype: str
    reference: str
    device: str = ""
    checkpoint: str = ""
    unread: str = ""


class ReplicasDiffer(Unequal, frozen=True, kw_only=True, tag=Kind.REPLICAS.value):
    """A device that holds other bits than the first device with the same part of an array.

    Attributes:
        layer: the array's.
        parameter: the array.
        index: in the whole array.
        reference: bits of the first unequal element on the other device.
        reference_device: that device.
        device: its bits on this one.
        itemsize: bytes of an element.
        device_name: this device.
    """

    layer: int | None = None
    parameter: str
    reference: _Word
    reference_device: str
    device: _Word
    itemsize: _Itemsize
    device_name: str


class PaddingWritten(Unequal, frozen=True, kw_only=True, tag=Kind.PADDING.value):
    """Padding that is not zero.

    Attributes:
        layer: the array's.
        expert: whose padding it is, None besides experts.
        parameter: the array.
        index: in the whole array.
        device: bits of the first element that is not zero.
        itemsize: bytes of an element.
        shard: number of the shard that holds it, in mesh order.
        device_name: the device that holds it.
    """

    layer: int | None = None
    expert: int | None = None
    parameter: str
    device: _Word
    itemsize: _Itemsize
    shard: int | None = None
    device_name: str = ""


class ShardMisplaced(Fact, frozen=True, kw_only=True, tag=Kind.SHARDING.value):
    """A device that holds another part of an array than its share.

    Attributes:
        layer: the array's.
        parameter: the array.
        share: the part that its partition gives the device; None for a device without one.
        held: the parts it holds.
        shard: number of its share, in mesh order.
        device_name: the device.
    """

    layer: int | None = None
    parameter: str
    share: Region | None
    held: tuple[Region, ...]
    shard: int | None = None
    device_name: str

    @property
    def replicated(self) -> bool:
        """Whether the device holds more than its share."""
        share = _elements(self.share) if self.share is not None else 0
        return sum(map(_elements, self.held)) > share > 0


class ArrayMissing(Fact, frozen=True, kw_only=True, tag=Kind.MISSING.value):
    """An array that the device should have and has not; ``expected`` says what, in words."""

    layer: int | None = None
    parameter: str
    expected: str


class ArrayExtra(Fact, frozen=True, kw_only=True, tag=Kind.EXTRA.value):
    """An array of experts that the reference has none for; with ``layer``, all of a layer's."""

    layer: int | None = None
    parameter: str


class ShapeDiffers(Fact, frozen=True, kw_only=True, tag=Kind.SHAPE.value):
    """An array of another shape than its layout's."""

    layer: int | None = None
    parameter: str
    reference: tuple[int, ...]
    device: tuple[int, ...]


class DtypeDiffers(Fact, frozen=True, kw_only=True, tag=Kind.DTYPE.value):
    """An array of another safetensors dtype than its layout's."""

    layer: int | None = None
    parameter: str
    reference: str
    device: str


class DeliveredAgain(Fact, frozen=True, kw_only=True, tag=Kind.DELIVERY.value):
    """An expert's matrix that was delivered ``times`` times, and not once."""

    layer: int
    expert: int
    projection: Projection
    source: TensorSlice
    times: int

    @property
    def name(self) -> str:
        """The tensor."""
        return self.source.tensor


class TensorUnread(Fact, frozen=True, kw_only=True, tag=Kind.UNREAD.value):
    """A streamed tensor that no loader was called for; ``file`` is empty if the index lacks it."""

    tensor: str
    file: str = ""

    @property
    def name(self) -> str:
        """The tensor."""
        return self.tensor


class ParameterUnwritten(Fact, frozen=True, kw_only=True, tag=Kind.UNWRITTEN.value):
    """A parameter besides experts that nothing was ever written to."""

    parameter: str


class Subject(StrEnum):
    """What nobody accounts for: an array on the device, or a tensor of a checkpoint's."""

    ARRAY = "array"
    TENSOR_OF_NO_PARAMETER = "tensor-of-no-parameter"
    TENSOR_NOT_COMPARED = "tensor-not-compared"
    TENSOR_NOT_IN_THE_REFERENCE = "tensor-not-in-the-reference"
    TENSOR_NOT_IN_THE_INDEX = "tensor-not-in-the-index"


class Unaccounted(Fact, frozen=True, kw_only=True, tag=Kind.UNACCOUNTED.value):
    """An array that no rule explains, or a tensor that has nothing to be compared with.

    Attributes:
        layer: its layer, None for the part as a whole.
        subject: which of these it is.
        name: the array's or the tensor's.
        file: that has the tensor.
        reason: why no rule explains the array.
    """

    layer: int | None = None
    subject: Subject
    name: str
    file: str = ""
    reason: str = ""

    @property
    def parameter(self) -> str:
        """The array, where one is meant."""
        return self.name if self.subject is Subject.ARRAY else ""


class DeviceUnchecked(Fact, frozen=True, kw_only=True, tag=Kind.UNCHECKED.value):
    """A device of the mesh whose shards no host compared."""

    device_name: str


#: One fact: where the device departs from the reference, and how.
Difference = (
    BitsDiffer
    | ValuesDiffer
    | ReplicasDiffer
    | PaddingWritten
    | ShardMisplaced
    | ArrayMissing
    | ArrayExtra
    | ShapeDiffers
    | DtypeDiffers
    | DeliveredAgain
    | TensorUnread
    | ParameterUnwritten
    | Unaccounted
    | DeviceUnchecked
    | DigestDiffers
)


def _elements(region: Region) -> int:
    return prod(stop - start for start, stop in region)


class Tally(msgspec.Struct, kw_only=True):
    """How much of one part was compared. ``experts`` counts experts of all layers.

    ``left_out`` of them were not selected; the load brought them along all the same. ``divided``:
    every device holds a part of every expert, so that of several hosts each compares its part.
    """

    part: Part
    layers: int
    experts: int
    experts_compared: int = 0
    bytes_compared: int = 0
    padding_bytes: int = 0
    left_out: int = 0
    divided: bool = False


class Side(StrEnum):
    """Whose tensors are meant: the checkpoint under test's, or those it is compared with."""

    REFERENCE = "reference"
    CHECKPOINT = "checkpoint"


class Account(msgspec.Struct, kw_only=True):
    """What became of every tensor of one side: each is counted once.

    Attributes:
        side: the reference, or a checkpoint that is not its own reference.
        tensors: how many it has.
        compared: those the devices were compared with, or, on the checkpoint's side, their
            namesakes.
        left_alone: by the reason, those that nothing was to be compared with.
        unaccounted: the others; each is a difference.
    """

    side: Side
    tensors: int
    compared: int = 0
    left_alone: dict[str, int] = {}
    unaccounted: int = 0


class ParameterTally(msgspec.Struct, kw_only=True):
    """How much besides experts was compared of one part.

    Attributes:
        part: decoder or mtp.
        parameters: parameters on the device that come from the checkpoint, experts' not counted.
        compared: of those, the ones compared bit for bit on every device.
        bytes_compared: bytes of the checkpoint's tensors they hold.
        padding_bytes: bytes that must be zero, on all devices.
        left_out: parameters that were not selected.
        derived: by kind, buffers that the model's code makes and no tensor holds.
    """

    part: Part
    parameters: int = 0
    compared: int = 0
    bytes_compared: int = 0
    padding_bytes: int = 0
    left_out: int = 0
    derived: dict[str, int] = {}
