"""A parameter on the device beside its layout, read run by run, and put back together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from harness.device import DeviceShard, DeviceTensor
from harness.dtypes import Bits
from harness.layout import Span
from harness.parameter_layout import ParameterLayout, RowBlock
from harness.parameters import Rule


@dataclass(frozen=True)
class Placed:
    """A parameter of the device with its rule, its layout and its tensors."""

    tensor: DeviceTensor
    rule: Rule
    layout: ParameterLayout
    sources: tuple[str, ...]


@dataclass
class Fault:
    """What departs of one tensor, or of one copy of it, over all devices.

    ``at`` is the first unequal element in the tensor, ``device_name`` where it was found.
    """

    placed: Placed
    source: str
    copy: int
    at: tuple[int, ...]
    reference: int
    device: int
    device_name: str
    count: int = 0
    devices: set[str] = field(default_factory=set)


_Where = tuple[slice, ...]


def pairs(
    layout: ParameterLayout, shard: DeviceShard, source: str, reference: Bits, first_row: int = 0
) -> Iterator[tuple[RowBlock, Bits, _Where, _Where]]:
    """For each run of ``source``'s rows in a shard: its block, what it must be, and two indexes.

    Args:
        layout: of the parameter.
        shard: a part of it, whichever it is.
        source: the tensor.
        reference: rows of it as the device is to hold them, [outputs, …].
        first_row: the first of them.

    Yields:
        The block; what the run must be, in the device's orientation; where it is in the shard;
        where it is in the tensor.
    """
    own = shard.index[layout.output_axis]
    others = [s.as_slice() for a, s in enumerate(shard.index) if a != layout.output_axis]
    for block in layout.blocks:
        if block.source != source or not (here := block.at.overlap(own)):
            continue
        ahead = block.at.start - block.rows.start
        given = Span(first_row + ahead, first_row + ahead + len(reference))
        if not (outputs := here.overlap(given)):
            continue
        origin = (slice(outputs.start - ahead, outputs.stop - ahead), *others)
        wanted = reference[(outputs.within(given), *others)]
        there = at_outputs(layout, outputs.within(own), slice(None))
        yield block, wanted.T if layout.transposed else wanted, there, origin


def recovered(placed: Placed, source: str, copy: int, prefer: str, like: Bits) -> Bits:
    """Tensor ``source`` as the device holds it, in the checkpoint's orientation.

    Args:
        placed: the parameter.
        source: the tensor.
        copy: which of its copies.
        prefer: of replicas, the one on this device.
        like: the reference; gives shape and dtype, and the rows that no shard holds.
    """
    out = like.copy()
    layout = placed.layout
    for shard in sorted(placed.tensor.shards, key=lambda shard: shard.device == prefer):
        held = shard.fetch(...)
        for block, _, there, origin in pairs(layout, shard, source, like):
            if block.copy == copy:
                out[origin] = held[there].T if layout.transposed else held[there]
    return out


def held(placed: Placed, source: str, copy: int, like: Bits) -> Bits:
    """Which elements of :func:`recovered` are from the devices; of several hosts each has some."""
    mask = np.zeros(like.shape, dtype=bool)
    for shard in placed.tensor.shards:
        for block, _, _, origin in pairs(placed.layout, shard, source, like):
            if block.copy == copy:
                mask[origin] = True
    return mask


def padding_of(placed: Placed) -> Iterator[tuple[DeviceShard, Bits, tuple[int, ...]]]:
    """Each shard's part of the padding, and where in the whole array it begins."""
    layout = placed.layout
    for shard in placed.tensor.shards if layout.padding else ():
        assert layout.padding is not None
        own = shard.index[layout.output_axis]
        if here := layout.padding.overlap(own):
            bits = shard.fetch(...)[at_outputs(layout, here.within(own), slice(None))]
            where = [span.start for span in shard.index]
            where[layout.output_axis] = here.start
            yield shard, bits, tuple(where)


def at_outputs(layout: ParameterLayout, outputs: slice, others: slice) -> _Where:
    """An index that takes ``outputs`` of the output axis and ``others`` of all others."""
    where = [others] * len(layout.shape)
    where[layout.output_axis] = outputs
    return tuple(where)
