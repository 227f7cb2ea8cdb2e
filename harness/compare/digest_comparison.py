"""Compares experts by their digests: the device sums up its shards where they lie.

Four words for each expert, matrix and shard come back instead of the weights. A digest that
differs is explained by the bits, which are then read back; padding is asked for exactly, whether
any of it is not zero. Arrays whose shards are not the layout's are read back instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum

import numpy as np

from harness.base.bits import Bits
from harness.base.errors import BadInput
from harness.devices.digest import LANES, Words, feature_sums, finished
from harness.devices.digest_xla import Rectangle
from harness.devices.expert_layout import LayoutBlock, Padding, Span
from harness.devices.tensors import DeviceShard, DeviceTensor
from harness.families.family import Projection


class Method(StrEnum):
    """How the bits of experts are compared.

    - ``readback``: every bit is read back.
    - ``digests``: 128 bits of every matrix are (:mod:`harness.devices.digest`).
    - ``auto``: digests, but for devices that share the host's memory.
    """

    AUTO = "auto"
    READBACK = "readback"
    DIGESTS = "digests"

    def by_digests(self, tensors: Iterable[DeviceTensor]) -> bool:
        """Whether these arrays are compared by digests.

        Raises:
            BadInput: digests were asked for, and the devices cannot make them.
        """
        shards = [shard for tensor in tensors for shard in tensor.shards]
        able = bool(shards) and all(shard.shares is not None for shard in shards)
        if self is Method.AUTO:
            return able and not any(shard.in_host_memory for shard in shards)
        if self is Method.DIGESTS and shards and not able:
            raise no_digests(next(shard.device for shard in shards if shard.shares is None))
        return able and self is Method.DIGESTS


def no_digests(
    of: str,
    where: str = "--compare digests",
    hint: str = "--compare auto, which reads back where digests are not to be had",
) -> BadInput:
    """The error that ``where`` asks for digests where there are none: on a device, of a release."""
    return BadInput(
        f"no digests of {of}",
        where=where,
        expected="devices that JAX addresses, and a checkpoint whose bits are kept",
        hint=hint,
    )


def device_digests(
    tensor: DeviceTensor, blocks: Sequence[LayoutBlock], width: int
) -> dict[Projection, Words]:
    """The digests of every expert, uint32 [E, 4], by projection; of others than held ones zero.

    Args:
        tensor: [E, rows, columns].
        blocks: those of the tensor that the devices of this process hold.
        width: F, all intermediate features.
    """
    found = {b.projection: np.zeros((tensor.shape[0], LANES), np.uint32) for b in blocks}
    started = []
    for shard in tensor.distinct_shards:
        inside = [block for block in blocks if _inside(block.rows, block.columns, shard)]
        if inside and shard.shares:
            started.append(
                (shard, inside, shard.shares([_rectangle(b, shard, width) for b in inside]))
            )
    for shard, inside, shares in started:  # all devices are at work before the first is waited for
        experts = shard.index[0].as_slice()
        for block, share in zip(inside, np.asarray(shares), strict=True):
            found[block.projection][experts] += share
    return found


def reference_digest(matrix: Bits, blocks: Sequence[LayoutBlock]) -> Words:
    """What blocks of a matrix [output, input] add to its digest, uint32 [4]."""
    total = np.zeros(LANES, np.uint32)
    for projection, features in dict.fromkeys((b.projection, _features(b)) for b in blocks):
        by_feature = matrix.T if projection is Projection.DOWN else matrix
        part = by_feature[features.as_slice()]
        total += finished(feature_sums(part), features.start, len(by_feature))
    return total


def held_digest(
    tensor: DeviceTensor, expert: int, blocks: Sequence[LayoutBlock], width: int
) -> Words:
    """What blocks of an expert's matrix, read back, add to its digest, uint32 [4].

    Args:
        tensor: [E, rows, columns].
        expert: which.
        blocks: of one matrix, of which every process holds whole features.
        width: F, all intermediate features.
    """
    total = np.zeros(LANES, np.uint32)
    for block in blocks:
        held = tensor.rectangle(expert, block.rows, block.columns)
        by_feature = held.T if block.transposed != (block.projection is Projection.DOWN) else held
        total += finished(feature_sums(by_feature), _features(block).start, width)
    return total


def dirty(tensor: DeviceTensor, gaps: Sequence[Padding]) -> set[tuple[int, int]]:
    """Which padding is not zero: expert and number of the gap."""
    found = set()
    for shard in tensor.distinct_shards:
        inside = [(n, g) for n, g in enumerate(gaps) if _inside(g.rows, g.columns, shard)]
        if inside and shard.any_set:
            rectangles = [_relative(gap.rows, gap.columns, shard) for _, gap in inside]
            for (number, _), experts in zip(inside, shard.any_set(rectangles), strict=True):
                first = shard.index[0].start
                found |= {(first + int(e), number) for e in np.nonzero(experts)[0]}
    return found


def _inside(rows: Span, columns: Span, shard: DeviceShard) -> bool:
    spans = zip((rows, columns), shard.index[1:], strict=True)
    return all(own.start <= span.start and span.stop <= own.stop for span, own in spans)


def _relative(rows: Span, columns: Span, shard: DeviceShard) -> tuple[Span, Span]:
    """A rectangle counted from the shard's first row and column."""
    rectangles = zip((rows, columns), shard.index[1:], strict=True)
    down, across = (Span(s.start - own.start, s.stop - own.start) for s, own in rectangles)
    return down, across


def _rectangle(block: LayoutBlock, shard: DeviceShard, width: int) -> Rectangle:
    rows, columns = _relative(block.rows, block.columns, shard)
    down = block.projection is Projection.DOWN
    hidden_axis = 1 if block.transposed == down else 0
    return Rectangle(rows, columns, hidden_axis, _features(block).start, width)


def _features(block: LayoutBlock) -> Span:
    """The intermediate features of a block."""
    return block.inputs if block.projection is Projection.DOWN else block.outputs
