"""A parameter on the device beside its layout, read run by run, and put back together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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


_Where = tuple[slice, ...]


def pairs(
    layout: ParameterLayout, shard: DeviceShard, source: str, reference: Bits
) -> Iterator[tuple[RowBlock, Bits, _Where, tuple[int, int]]]:
    """For each run of ``source``'s rows in a shard: its block, what it must be, where, and origin.

    ``reference`` is the whole tensor as the device is to hold it, [outputs, …]; what it must be
    is in the device's orientation; the origin is the first row and column in the tensor.
    """
    own = shard.index[layout.output_axis]
    columns = slice(None)
    if layout.cut_axis is not None and layout.cut_axis != layout.output_axis:
        columns = shard.index[layout.cut_axis].as_slice()
    for block in layout.blocks:
        if block.source != source or not (here := overlap(block.at, own)):
            continue
        first = block.rows.start + here.start - block.at.start
        rows = slice(first, first + len(here))
        wanted = reference[rows] if reference.ndim == 1 else reference[rows, columns]
        there = at_outputs(layout, relative(here, own), slice(None))
        yield block, wanted.T if layout.transposed else wanted, there, (first, columns.start or 0)


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
        for block, _, there, (row, column) in pairs(layout, shard, source, like):
            part = held[there].T if layout.transposed else held[there]
            rows = slice(row, row + part.shape[0])
            if block.copy == copy and part.ndim == 2:
                out[rows, column : column + part.shape[1]] = part
            elif block.copy == copy:
                out[rows] = part
    return out


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
