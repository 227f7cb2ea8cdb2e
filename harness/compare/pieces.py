"""Parameters in pieces: rows of a tensor, read and compared with all that devices hold of them.

So tensors of any size are compared on all cores. Of devices with memory of their own a shard is
read back whole, so there a piece is a whole tensor.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np

from harness.base.bits import ITEMSIZE, Bits
from harness.base.scanning import unequal
from harness.compare.equality import all_equal, equal_bits
from harness.compare.parameter_view import Fault, ParameterView, pairs
from harness.devices.digest import LANES, Words, by_rows, feature_sums, finished
from harness.devices.expert_layout import Span
from harness.devices.parameter_layout import ParameterLayout
from harness.devices.tensors import DeviceShard
from harness.families.model_checkpoint import ModelCheckpoint


class PieceSize(NamedTuple):
    """How much of a tensor a piece is: about so many bytes, in a multiple of so many rows.

    Cores share a cache of some of them; tiles of the compiled comparison are as high.
    """

    nbytes: int = 4 << 20
    rows: int = 256


USUAL = PieceSize()


@dataclass(frozen=True)
class Piece:
    """Rows of one tensor of a parameter."""

    view: ParameterView
    source: str
    rows: Span


class Run(NamedTuple):
    """Rows of a tensor on one device: of which copy, what they must be and are, and where."""

    device: str
    copy: int
    wanted: Bits
    got: Bits
    origin: tuple[slice, ...]


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


class Judged(NamedTuple):
    """What a piece showed: elements compared by copy, and the runs that depart."""

    piece: Piece
    totals: Counter[int]
    unequal: list[Run]


def is_in_host_memory(view: ParameterView) -> bool:
    """Whether every shard of a parameter is."""
    return all(shard.in_host_memory for shard in view.tensor.shards)


def pieces_of(
    view: ParameterView,
    checkpoint: ModelCheckpoint,
    size: PieceSize = USUAL,
    sources: Sequence[str] = (),
) -> Iterator[Piece]:
    """The pieces of a parameter, or of these tensors of it: one by one, in the order of rows."""
    cut = is_in_host_memory(view)
    for name in dict.fromkeys(sources or view.sources):
        entry = checkpoint.entries[name]
        count = entry.shape[0]
        fitting = size.nbytes * count // max(entry.nbytes, 1)
        height = max(fitting // size.rows * size.rows, size.rows) if cut else count
        for first in range(0, count, height):
            yield Piece(view, name, Span(first, min(first + height, count)))


def judge_piece(
    piece: Piece,
    checkpoint: ModelCheckpoint,
    expected: Callable[[Bits, str, ParameterLayout], Bits],
) -> Judged:
    """Read a piece and compare it with every shard and copy.

    Args:
        piece: which.
        checkpoint: the reference.
        expected: what becomes of reference bits, of a dtype, on the way to the device.
    """
    view, name, rows = piece.view, piece.source, piece.rows
    bits = checkpoint.bits(name, (rows.as_slice(),))
    reference = expected(bits, checkpoint.entries[name].dtype, view.layout)
    judged = Judged(piece, Counter(), [])
    shards = view.tensor.shards
    if is_in_host_memory(view):
        _judge_shards(judged, shards, reference)
    else:
        for shard in shards:  # what a device gave back is dropped before the next
            _judge_shards(judged, (shard,), reference)
    return judged


def _judge_shards(judged: Judged, shards: Sequence[DeviceShard], reference: Bits) -> None:
    view, name, rows = judged.piece.view, judged.piece.source, judged.piece.rows
    runs = []
    for shard in shards:
        held = shard.fetch(...)
        for block, wanted, at, origin in pairs(view.layout, shard, name, reference, rows.start):
            judged.totals[block.copy] += wanted.size
            runs.append(Run(shard.device, block.copy, wanted, held[at], origin))
    if not all_equal((run.got, run.wanted) for run in runs):
        judged.unequal.extend(run for run in runs if not equal_bits(run.got, run.wanted))


def note_fault(faults: dict[tuple[str, int], Fault], piece: Piece, run: Run) -> None:
    """Add an unequal run of rows to the fault of its tensor, or of its copy of it."""
    view = piece.view
    departs = unequal(run.wanted, run.got)
    if departs is None:
        return
    first = departs.first
    in_tensor = first[::-1] if view.layout.transposed else first
    at = tuple(i + o for i, o in zip(in_tensor, (s.start for s in run.origin), strict=True))
    bits = int(run.wanted[first]), int(run.got[first])
    key = piece.source, run.copy
    fault = faults.setdefault(key, Fault(view, *key, at, *bits, run.device))
    fault.count += departs.count
    fault.devices.add(run.device)


def sum_piece(piece: Piece, shape: tuple[int, ...]) -> Summed:
    """Digest what devices hold of a piece; nothing of the tensor, of that shape, is read."""
    view, name, rows = piece.view, piece.source, piece.rows
    (count, *others), itemsize = shape, ITEMSIZE[view.layout.dtype]
    blank = np.broadcast_to(np.zeros((), np.uint8), (len(rows), *others))
    found: dict[int, _Rows] = {}
    for shard in view.tensor.shards:
        held = shard.fetch(...)
        for block, _, at, origin in pairs(view.layout, shard, name, blank, rows.start):
            run = held[at].T if view.layout.transposed else held[at]
            found.setdefault(block.copy, _Rows(rows, others, itemsize)).add(origin, run)
    totals = Counter({copy: of_copy.total for copy, of_copy in found.items()})
    return Summed(piece, totals, {copy: each.digest(count) for copy, each in found.items()})


class _Rows:
    """Rows of a tensor as devices hold them, put together as digests are: region by region."""

    def __init__(self, rows: Span, others: list[int], itemsize: int) -> None:
        self._rows, self._others, self._itemsize = rows, others, itemsize
        self._first: dict[tuple[Span, ...], Bits] = {}
        self._alike = True
        self._sums = np.zeros((LANES, len(rows)), np.uint32)
        self.total = 0

    def add(self, origin: tuple[slice, ...], run: Bits) -> None:
        """Add what one device holds of the tensor at ``origin``."""
        self.total += run.size
        at = tuple(Span(each.start, each.stop) for each in origin)
        if at in self._first:
            self._alike = self._alike and equal_bits(run, self._first[at])
            return
        self._first[at] = run
        ahead = math.prod(self._others[1:]) * at[1].start * self._itemsize if at[1:] else 0
        if ahead % 4 or any(len(s) != n for s, n in zip(at[2:], self._others[1:], strict=True)):
            self._alike = False  # cut within a word: read instead
            return
        self._sums[:, at[0].within(self._rows)] += feature_sums(by_rows(run), first=ahead // 4)

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
