"""Parameters in pieces: rows of a tensor, read and compared with all that devices hold of them.

So tensors of any size are compared on all cores, and of a device with memory of its own no more is
read back at a time than a piece a core. No bits leave a piece: of what is unequal its counts do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from harness.base.bits import Bits
from harness.base.scanning import scan, unequal
from harness.compare.equality import all_equal
from harness.compare.parameter_view import Fault, ParameterView, pairs
from harness.devices.expert_layout import Span
from harness.devices.parameter_layout import ParameterLayout
from harness.families.model_checkpoint import ModelCheckpoint


class PieceSize(NamedTuple):
    """How much of a tensor a piece is: about so many bytes, in a multiple of so many rows.

    Cores share a cache of some of them; tiles of the compiled comparison are as high.
    """

    nbytes: int = 4 << 20
    rows: int = 256

    @property
    def of_sums(self) -> PieceSize:
        """The size of pieces that are only added up: nothing is read beside them."""
        return self._replace(nbytes=8 * self.nbytes)


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


class Departure(NamedTuple):
    """How a run departs, without its bits.

    Attributes:
        device: that holds it.
        copy: of which copy of the tensor.
        at: its first unequal element, in the tensor.
        reference: what that must be.
        held: what it is.
        unequal: how many elements are.
        alike: elements that are ``held``, too, equal or not.
    """

    device: str
    copy: int
    at: tuple[int, ...]
    reference: int
    held: int
    unequal: int
    alike: int


class Judged(NamedTuple):
    """What a piece showed: elements compared by copy, and the runs that depart."""

    piece: Piece
    totals: Counter[int]
    unequal: list[Departure]


def pieces_of(
    view: ParameterView, checkpoint: ModelCheckpoint, size: PieceSize = USUAL, source: str = ""
) -> Iterator[Piece]:
    """The pieces of a parameter, or of one tensor of it: in the order of its rows."""
    for name in [source] if source else dict.fromkeys(view.sources):
        entry = checkpoint.entries[name]
        count = entry.shape[0]
        fitting = size.nbytes * count // max(entry.nbytes, 1)
        cut = view.layout.source_axis == 0  # experts' biases are small, and whole
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
    runs = []
    for shard in view.tensor.shards:
        for block, wanted, at, origin in pairs(view.layout, shard, name, reference, rows.start):
            judged.totals[block.copy] += wanted.size
            runs.append(Run(shard.device, block.copy, wanted, shard.fetch(at), origin))
    if not all_equal((run.got, run.wanted) for run in runs):
        departures = (departure_of(run, transposed=view.layout.transposed) for run in runs)
        judged.unequal.extend(filter(None, departures))
    return judged


def departure_of(run: Run, *, transposed: bool) -> Departure | None:
    """How a run departs; None where it does not."""
    departs = unequal(run.wanted, run.got)
    if departs is None:
        return None
    first = departs.first
    in_tensor = first[::-1] if transposed else first
    at = tuple(s.start + i * (s.step or 1) for i, s in zip(in_tensor, run.origin, strict=True))
    held = int(run.got[first])
    alike = scan(lambda part: part == held, run.got)
    assert alike, "the first unequal element is one"
    return Departure(
        run.device, run.copy, at, int(run.wanted[first]), held, departs.count, alike.count
    )


def note_fault(faults: dict[tuple[str, int], Fault], piece: Piece, found: Departure) -> None:
    """Add an unequal run of rows to the fault of its tensor, or of its copy of it."""
    key = piece.source, found.copy
    fault = faults.setdefault(
        key, Fault(piece.view, *key, found.at, found.reference, found.held, found.device)
    )
    fault.count += found.unequal
    fault.alike += found.alike if found.held == fault.device else 0
    fault.devices.add(found.device)
