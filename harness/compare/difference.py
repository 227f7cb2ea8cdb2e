"""Differences: facts about where the device departs from the reference, and how much was compared.

Objects until the edge. They travel from the process that holds the tensors to the one that
reports, as JSON; one place, :mod:`harness.report.message`, turns them into text.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from harness.families.experts import ExpertKey
from harness.families.family import Part, Projection


class Kind(StrEnum):
    """What departs: presence, shape, dtype, placement, padding, bits, or the way to the device.

    ``unchecked`` is a device whose shards no host compared.
    ``unaccounted`` is a parameter on the device that no rule explains, or a tensor of the
    checkpoint that no parameter holds; ``values`` are quantised ones off by more than a second
    quantisation explains.
    """

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
    UNCHECKED = "unchecked"


class Difference(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One fact.

    Attributes:
        kind: what departs.
        part: decoder or mtp.
        layer: the layer, None for the part as a whole.
        expert: the expert, None where a whole array is meant.
        projection: the matrix, None where a whole array is meant.
        parameter: the device array's name.
        reference: what the reference says, in words or as the first unequal element's bits.
        device: what the device holds, alike.
        source: file, tensor and slice of the reference.
        index: first unequal element, in the expert's matrix [output, input], or in the checkpoint's
            tensor, for ``bits``; in the device array for ``padding``.
        count: unequal elements; for ``sharding`` the elements the device holds.
        total: elements compared; for ``sharding`` the elements that are the device's share.
        shard: number of the shard that holds the element, in mesh order.
        device_name: the device that holds it.
        note: what the comparison found out about it, for ``values``.
    """

    kind: Kind
    part: Part
    layer: int | None = None
    expert: int | None = None
    projection: Projection | None = None
    parameter: str = ""
    reference: str = ""
    device: str = ""
    source: str = ""
    index: tuple[int, ...] = ()
    count: int = 0
    total: int = 0
    shard: int | None = None
    device_name: str = ""
    note: str = ""

    @property
    def key(self) -> ExpertKey | None:
        """The matrix meant, if one is."""
        if self.layer is None or self.expert is None or self.projection is None:
            return None
        return ExpertKey(self.part, self.layer, self.expert, self.projection)


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
