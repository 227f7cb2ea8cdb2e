"""What a tensor digests to as the devices hold it; nothing of it is read.

Regions of a tensor add up, wherever its shards cut it: the first level of the digest over the parts
of a row, the second over rows. Devices with the same region are compared with each other, so that
one digest stands for all of them. Where devices share the host's memory their bits are summed up
here, piece by piece; other devices are asked for the sums of whole tensors.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from harness.base.bits import ITEMSIZE, Bits
from harness.compare.authority import as_text
from harness.compare.equality import equal_bits
from harness.compare.parameter_view import pairs
from harness.compare.pieces import Piece
from harness.devices.digest import LANES, Words, by_rows, feature_sums, finished
from harness.devices.expert_layout import Span
from harness.devices.parameter_layout import ParameterLayout
from harness.devices.programs import DeviceAnswer, FeatureSums
from harness.devices.tensors import DeviceShard


class Summed(NamedTuple):
    """What a piece on the devices digests to.

    Attributes:
        piece: which.
        totals: elements seen by copy.
        sums: what each copy's rows add to its digest; None where they do not tell: some are not
            on these devices, or devices with the same part hold other bits of it.
    """

    piece: Piece
    totals: Counter[int]
    sums: dict[int, Words | None]


def sum_piece(piece: Piece, shape: tuple[int, ...]) -> Summed:
    """Digest what devices hold of a piece; nothing of the tensor, of that shape, is read."""

    def rows_of(shard: DeviceShard, at: _Where) -> _Held:
        run = shard.fetch(at)
        by_row = by_rows(run.T if piece.view.layout.transposed else run)
        return _Held(run, lambda first: feature_sums(by_row, first=first))

    return _summed(piece, shape, rows_of)


def sum_rows(piece: Piece, shape: tuple[int, ...], sums: Mapping[str, DeviceAnswer]) -> Summed:
    """The same, of all rows of the tensor, from what each device said of its features."""

    def rows_of(shard: DeviceShard, at: _Where) -> _Held:
        of_rows = sums[shard.device].words[:, at[piece.view.layout.output_axis]]
        return _Held(of_rows, lambda first: of_rows)

    return _summed(piece, shape, rows_of)


_Where = tuple[slice, ...]


class _Held(NamedTuple):
    """What a device holds of a region: what replicas must have alike, and its rows' sums.

    Those are made for the first word that the region has of each row.
    """

    alike: Bits
    sums: Callable[[int], Words]


def _summed(
    piece: Piece, shape: tuple[int, ...], rows_of: Callable[[DeviceShard, _Where], _Held]
) -> Summed:
    view, name, rows = piece.view, piece.source, piece.rows
    (count, *others), itemsize = shape, ITEMSIZE[view.layout.dtype]
    blank = np.broadcast_to(np.zeros((), np.uint8), (len(rows), *others))
    found: dict[int, _Rows] = {}
    for shard in view.tensor.shards:
        for block, wanted, at, origin in pairs(view.layout, shard, name, blank, rows.start):
            copy = found.setdefault(block.copy, _Rows(rows, others, itemsize))
            copy.add(origin, wanted.size, rows_of(shard, at))
    totals = Counter({copy: of_copy.total for copy, of_copy in found.items()})
    return Summed(piece, totals, {copy: each.digest(count) for copy, each in found.items()})


def question_of(shard: DeviceShard, layout: ParameterLayout) -> FeatureSums | None:
    """What a device is asked of its part of a parameter; None where a cut divides 32 bits.

    Features run along outputs, so that padding has sums of its own: zeros, if it is zero.
    """
    shape = tuple(map(len, shard.index))
    others = [span for axis, span in enumerate(shard.index) if axis != layout.output_axis]
    itemsize = ITEMSIZE[layout.dtype]
    first = math.prod(len(s) for s in others[1:]) * others[0].start * itemsize if others else 0
    if first % 4 or (layout.output_axis and len(shape) != 2):
        return None
    exchanged = shard.held.exchanged if shard.held else ()
    sizes = (shape[0], math.prod(shape[1:]))
    return FeatureSums(sizes, layout.output_axis, first // 4, exchanged)


class _Rows:
    """Rows of a tensor as devices hold them, put together as digests are: region by region."""

    def __init__(self, rows: Span, others: list[int], itemsize: int) -> None:
        self._rows, self._others, self._itemsize = rows, others, itemsize
        self._first: dict[tuple[Span, ...], Bits] = {}
        self._alike = True
        self._sums = np.zeros((LANES, len(rows)), np.uint32)
        self.total = 0

    def add(self, origin: _Where, elements: int, held: _Held) -> None:
        """Add what one device holds of the tensor at ``origin``."""
        self.total += elements
        if any(each.step not in (None, 1) for each in origin):
            self._alike = False  # read instead
            return
        at = tuple(Span(each.start, each.stop) for each in origin)
        if at in self._first:
            self._alike = self._alike and equal_bits(held.alike, self._first[at])
            return
        self._first[at] = held.alike
        ahead = math.prod(self._others[1:]) * at[1].start * self._itemsize if at[1:] else 0
        if ahead % 4 or any(len(s) != n for s, n in zip(at[2:], self._others[1:], strict=True)):
            self._alike = False  # cut within a word: read instead
            return
        self._sums[:, at[0].within(self._rows)] += held.sums(ahead // 4)

    def digest(self, count: int) -> Words | None:
        """What the rows add to the digest; see :class:`Summed`."""
        if not (self._alike and _is_whole(list(self._first), (self._rows, *self._all))):
            return None
        return finished(self._sums, self._rows.start, count)

    @property
    def _all(self) -> tuple[Span, ...]:
        return tuple(Span(0, size) for size in self._others)


def _is_whole(regions: Sequence[tuple[Span, ...]], whole: tuple[Span, ...]) -> bool:
    """Whether regions are all of a box, each element once.

    Those with the same further axes have to follow each other, from the first row to the last.
    """
    columns: dict[tuple[Span, ...], list[Span]] = {}
    for rows, *others in regions:
        columns.setdefault(tuple(others), []).append(rows)
    for spans in columns.values():
        at = whole[0].start
        for span in sorted(spans, key=lambda span: span.start):
            if span.start != at:
                return False
            at = span.stop
        if at != whole[0].stop:
            return False
    size = sum(math.prod(map(len, others)) for others in columns)
    apart = all(
        any(a.overlap(b) is None for a, b in zip(one, other, strict=True))
        for one, other in combinations(columns, 2)
    )
    return apart and size == math.prod(map(len, whole[1:]))


class TensorSums:
    """What a tensor on the devices digests to, as its pieces come; each copy of it."""

    def __init__(self) -> None:
        self._pieces = 0
        self._seen: Counter[int] = Counter()
        self._sums: dict[int, Words] = {}

    def add(self, piece: Summed) -> None:
        """Add a piece; of some copies it may not tell."""
        self._pieces += 1
        for copy, words in piece.sums.items():
            before = self._sums.setdefault(copy, np.zeros(LANES, np.uint32))
            if words is not None:
                self._seen[copy] += 1
                before += words

    @property
    def complete(self) -> bool:
        """Whether the digest of every copy is known, and there is one."""
        return bool(self._sums) and all(self._seen[copy] == self._pieces for copy in self._sums)

    def are(self, known: Words) -> bool:
        """Whether every copy digests to that."""
        return self.complete and all(np.array_equal(found, known) for found in self._sums.values())

    @property
    def as_text(self) -> str:
        """The digest, where all copies have one and the same; else empty."""
        texts = {as_text(words) for words in self._sums.values()} if self.complete else set()
        return texts.pop() if len(texts) == 1 else ""
