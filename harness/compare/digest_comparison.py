"""Compares by digests: devices sum up their shards where they lie.

Four words for each expert, matrix and shard come back instead of the weights, and four for each
feature of other parameters. A digest that differs is explained by the bits, which are then read
back; experts' padding is asked for exactly, whether any of it is not zero. Arrays of experts whose
shards are not the layout's are read back instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple

import numpy as np

from harness.base.bits import Bits
from harness.base.errors import BadInput
from harness.devices.digest import LANES, Words, feature_sums, finished
from harness.devices.expert_layout import LayoutBlock, Padding, Parameter, Span
from harness.devices.programs import AnySet, Askable, DeviceAnswer, Question, Rectangle, Shares, ask
from harness.devices.tensors import DeviceShard, DeviceTensor
from harness.families.family import Projection


class Method(StrEnum):
    """How bits are compared.

    - ``readback``: every bit is read back.
    - ``digests``: 128 bits of every matrix and tensor are (:mod:`harness.devices.digest`).
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
        able = bool(shards) and all(shard.held is not None for shard in shards)
        if self is Method.AUTO:
            return able and not any(shard.in_host_memory for shard in shards)
        if self is Method.DIGESTS and shards and not able:
            raise no_digests(next(shard.device for shard in shards if shard.held is None))
        return able and self is Method.DIGESTS


def no_digests(
    of: str,
    where: str = "--compare digests",
    hint: str = "--compare auto, which reads back what digests cannot compare",
) -> BadInput:
    """The error that ``where`` asks for digests where there are none: on a device, of a release."""
    return BadInput(
        f"digests cannot be used for {of}",
        where=where,
        expected="devices that JAX addresses, and a checkpoint whose bits are kept",
        hint=hint,
    )


class ExpertAnswers:
    """What devices say of arrays of experts; they are asked at once, and waited for at last.

    Args:
        tensors: [E, rows, columns], each with its blocks and its padding, as far as the devices of
            this process hold them.
        width: F, all intermediate features.
    """

    def __init__(
        self,
        tensors: Mapping[Parameter, DeviceTensor],
        blocks: Mapping[Parameter, Sequence[LayoutBlock]],
        gaps: Mapping[Parameter, Sequence[Padding]],
        width: int,
    ) -> None:
        self._experts = {
            block.projection: tensors[p].shape[0] for p in tensors for block in blocks[p]
        }
        self._asked = [
            _Asked(parameter, shard, own, dry, shard.held)
            for parameter, tensor in tensors.items()
            for shard in tensor.distinct_shards
            if shard.held
            for own in [[b for b in blocks[parameter] if _inside(b.rows, b.columns, shard)]]
            for dry in [
                [n for n, g in enumerate(gaps[parameter]) if _inside(g.rows, g.columns, shard)]
            ]
        ]
        self._answers = ask(
            (each.shard.device, each.held, question)
            for each in self._asked
            for question in each.questions(gaps[each.parameter], width)
        )

    @cached_property
    def words(self) -> dict[Projection, Words]:
        """The digests of every expert, uint32 [E, 4]; of others than held ones zero."""
        found = {p: np.zeros((count, LANES), np.uint32) for p, count in self._experts.items()}
        for (_, shard, blocks, *_), (shares, _) in self._answered():
            for block, share in zip(blocks, shares.words, strict=True):
                found[block.projection][shard.index[0].as_slice()] += share
        return found

    @cached_property
    def dirty(self) -> dict[Parameter, set[tuple[int, int]]]:
        """Which padding of an array is not zero: expert and number of the gap."""
        found: dict[Parameter, set[tuple[int, int]]] = {
            asked.parameter: set() for asked in self._asked
        }
        for asked, (_, any_set) in self._answered():
            first = asked.shard.index[0].start
            for number, experts in zip(asked.gaps, any_set.words, strict=True):
                there = ((first + int(expert), number) for expert in np.nonzero(experts)[0])
                found[asked.parameter].update(there)
        return found

    def _answered(self) -> Iterator[tuple[_Asked, tuple[DeviceAnswer, DeviceAnswer]]]:
        answers = iter(self._answers)
        for asked in self._asked:
            yield asked, (next(answers), next(answers))


class _Asked(NamedTuple):
    """A shard that is asked: of which array, for which blocks' digests, about which gaps."""

    parameter: Parameter
    shard: DeviceShard
    blocks: Sequence[LayoutBlock]
    gaps: Sequence[int]
    held: Askable

    def questions(self, gaps: Sequence[Padding], width: int) -> tuple[Question, Question]:
        """What blocks add to digests, then whether gaps are zero."""
        experts = len(self.shard.index[0])
        places = tuple(_rectangle(block, self.shard, width) for block in self.blocks)
        dry = tuple(_relative(gaps[n].rows, gaps[n].columns, self.shard) for n in self.gaps)
        return Shares(experts, places), AnySet(experts, dry)


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
