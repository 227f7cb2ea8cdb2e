"""Parameters in pieces: rows of a tensor, read and compared with all that devices hold of them.

So tensors of any size are compared on all cores. Of devices with memory of their own a shard is
read back whole, so there a piece is a whole tensor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from harness.base.bits import Bits
from harness.base.scanning import unequal
from harness.compare.equality import all_equal, equal_bits
from harness.compare.parameter_view import Fault, ParameterView, pairs
from harness.devices.expert_layout import Span
from harness.devices.parameter_layout import ParameterLayout
from harness.devices.tensors import DeviceShard
from harness.families.model import ModelCheckpoint


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

    placed: ParameterView
    source: str
    rows: Span


class Run(NamedTuple):
    """Rows of a tensor on one device: of which copy, what they must be and are, and where."""

    device: str
    copy: int
    wanted: Bits
    got: Bits
    origin: tuple[slice, ...]


class Judged(NamedTuple):
    """What a piece showed: elements compared by copy, and the runs that depart."""

    piece: Piece
    totals: Counter[int]
    unequal: list[Run]


def is_in_host_memory(placed: ParameterView) -> bool:
    """Whether every shard of a parameter is."""
    return all(shard.in_host_memory for shard in placed.tensor.shards)


def pieces_of(
    placed: ParameterView, checkpoint: ModelCheckpoint, size: PieceSize = USUAL
) -> Iterator[Piece]:
    """The pieces of a parameter: tensor by tensor, in the order of its rows."""
    cut = is_in_host_memory(placed)
    for name in dict.fromkeys(placed.sources):
        entry = checkpoint.entries[name]
        count = entry.shape[0]
        fitting = size.nbytes * count // max(entry.nbytes, 1)
        height = max(fitting // size.rows * size.rows, size.rows) if cut else count
        for first in range(0, count, height):
            yield Piece(placed, name, Span(first, min(first + height, count)))


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
    placed, name, rows = piece.placed, piece.source, piece.rows
    bits = checkpoint.bits(name, (rows.as_slice(),))
    reference = expected(bits, checkpoint.entries[name].dtype, placed.layout)
    judged = Judged(piece, Counter(), [])
    shards = placed.tensor.shards
    if is_in_host_memory(placed):
        _judge_shards(judged, shards, reference)
    else:
        for shard in shards:  # what a device gave back is dropped before the next
            _judge_shards(judged, (shard,), reference)
    return judged


def _judge_shards(judged: Judged, shards: Sequence[DeviceShard], reference: Bits) -> None:
    placed, name, rows = judged.piece.placed, judged.piece.source, judged.piece.rows
    runs = []
    for shard in shards:
        held = shard.fetch(...)
        for block, wanted, at, origin in pairs(placed.layout, shard, name, reference, rows.start):
            judged.totals[block.copy] += wanted.size
            runs.append(Run(shard.device, block.copy, wanted, held[at], origin))
    if not all_equal((run.got, run.wanted) for run in runs):
        judged.unequal.extend(run for run in runs if not equal_bits(run.got, run.wanted))


def note_fault(faults: dict[tuple[str, int], Fault], piece: Piece, run: Run) -> None:
    """Add an unequal run of rows to the fault of its tensor, or of its copy of it."""
    placed = piece.placed
    departs = unequal(run.wanted, run.got)
    if departs is None:
        return
    first = departs.first
    in_tensor = first[::-1] if placed.layout.transposed else first
    at = tuple(i + o for i, o in zip(in_tensor, (s.start for s in run.origin), strict=True))
    bits = int(run.wanted[first]), int(run.got[first])
    key = piece.source, run.copy
    fault = faults.setdefault(key, Fault(placed, *key, at, *bits, run.device))
    fault.count += departs.count
    fault.devices.add(run.device)
