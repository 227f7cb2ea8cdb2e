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
    layout: ParameterLayout, shard: DeviceShard, source: str, reference: Bits
) -> Iterator[tuple[RowBlock, Bits, _Where, _Where]]:
    """For each run of ``source``'s rows in a shard: its block, what it must be, and two indexes.

    Args:
        layout: of the parameter.
        shard: a part of it, whichever it is.
        source: the tensor.
        reference: all of it as the device is to hold it, [outputs, …].

    Yields:
        The block; what the run must be, in the device's orientation; where it is in the shard;
        where it is in the tensor.
    """
    own = shard.index[layout.output_axis]
    others = [s.as_slice() for a, s in enumerate(shard.index) if a != layout.output_axis]
    for block in layout.blocks:
        if block.source != source or not (here := overlap(block.at, own)):
            continue
        first = block.rows.start + here.start - block.at.start
        origin = (slice(first, first + len(here)), *others)
        wanted = reference[origin]
        there = at_outputs(layout, relative(here, own), slice(None))
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
        if here := overlap(layout.padding, own):
            bits = shard.fetch(...)[at_outputs(layout, relative(here, own), slice(None))]
            where = [span.start for span in shard.index]
            where[layout.output_axis] = here.start
            yield shard, bits, tuple(where)


def at_outputs(layout: ParameterLayout, outputs: slice, others: slice) -> _Where:
    """An index that takes ``outputs`` of the output axis and ``others`` of all others."""
    where = [others] * len(layout.shape)
    where[layout.output_axis] = outputs
    return tuple(where)


def overlap(one: Span, other: Span) -> Span | None:
    """What two spans have in common, if anything."""
    start, stop = max(one.start, other.start), min(one.stop, other.stop)
    return Span(start, stop) if start < stop else None


def relative(span: Span, origin: Span) -> slice:
    """``span`` counted from the start of ``origin``."""
    return slice(span.start - origin.start, span.stop - origin.start)


def note_fault(
    faults: dict[tuple[str, int], Fault], placed: Placed, key: tuple[str, int], device: str,
    wanted: Bits, got: Bits, origin: tuple[slice, ...],
) -> None:  # fmt: skip
    """Add an unequal run of rows to the fault of its tensor."""
    departs = wanted != got
    first = tuple(int(i) for i in np.argwhere(departs)[0])
    in_tensor = first[::-1] if placed.layout.transposed else first
    at = tuple(i + o for i, o in zip(in_tensor, (s.start for s in origin), strict=True))
    fault = faults.setdefault(
        key, Fault(placed, *key, at, int(wanted[first]), int(got[first]), device)
    )
    fault.count += int(np.count_nonzero(departs))
    fault.devices.add(device)
