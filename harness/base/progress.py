"""Progress of a load: its phase, the tensors and bytes that came and were compared, while it runs.

The process that holds the tensors counts in memory it shares with the one that watches over it,
which passes the figures on and, when the load has ended however it did, the phase it ended in.
A terminal shows them as one line that is written again and again; a log gets a line now and then,
at intervals that grow, so that a load of hours leaves a page of them.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

import msgspec
from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

#: The phase in which the stack under test runs, and the one in which nothing of it does any more.
STREAM, COMPARE = "stream", "compare"
#: How often figures are passed on.
EVERY_SECONDS = 0.2
#: A log's first line comes after so many seconds, each further one after twice as many as the one
#: before, and none later than the last of these: a load of a minute has one, one of an hour nine.
FIRST_LINE, LONGEST = 30.0, 600.0
_MEMORY = struct.Struct("=16sqqqq")  # phase, done, total, pieces, of


class Figures(msgspec.Struct, frozen=True, tag=True):
    """What is being done, and how much of it is done; totals are 0 where unknown.

    Attributes:
        phase: what is being done.
        done: bytes.
        total: bytes that there are.
        pieces: tensors that were streamed, or matrices that were compared.
        of: how many there are.
    """

    phase: str
    done: int
    total: int
    pieces: int = 0
    of: int = 0

    @property
    def counted(self) -> str:
        """The pieces in words, ``34 of 400 tensors``; empty before the first."""
        if not self.pieces:
            return ""
        noun = "tensors" if self.phase == STREAM else "matrices"
        return f"{self.pieces} of {self.of} {noun}" if self.of else f"{self.pieces} {noun}"


Watch = Callable[[Figures], None]


class Meter:
    """Counts in ``memory``, which another process may share; in its own where none is given.

    ``watch`` is told of new figures, for work that is done in this process.
    """

    SIZE = _MEMORY.size

    def __init__(self, memory: memoryview | None = None, *, watch: Watch | None = None) -> None:
        self._memory = memory or memoryview(bytearray(self.SIZE))
        self._phase, self._done, self._total, self._pieces, self._of = b"", 0, 0, 0, 0
        self._watch, self._told = watch, 0.0

    def begin(self, phase: str, total: int, pieces: int = 0) -> None:
        """Start a phase of ``total`` bytes in so many pieces; 0 for a number that is not known."""
        self._phase, self._done, self._total = phase.encode(), 0, total
        self._pieces, self._of = 0, pieces
        self._write()

    def advance(self, nbytes: int) -> None:
        """Count a piece of ``nbytes`` more."""
        self._done += nbytes
        self._pieces += 1
        self._write()

    @property
    def figures(self) -> Figures:
        """What is in the memory, whichever process counted it."""
        phase, *numbers = _MEMORY.unpack_from(self._memory)
        return Figures(phase.rstrip(b"\0").decode(errors="replace"), *numbers)

    def _write(self) -> None:
        _MEMORY.pack_into(
            self._memory, 0, self._phase, self._done, self._total, self._pieces, self._of
        )
        if self._watch and time.monotonic() - self._told > EVERY_SECONDS:
            self._told = time.monotonic()
            self._watch(self.figures)


@contextmanager
def shown(file: TextIO | None) -> Iterator[Watch | None]:
    """Show progress on ``file`` while the body runs.

    A terminal that can move its cursor has one line, which is gone when the body ends; anything
    else gets plain lines, none of them before :data:`FIRST_LINE`.

    Yields:
        What takes new figures, from any thread; None when there is no file.
    """
    if file is None:
        yield None
    elif _is_live(file):
        with _bar(file) as watch:
            yield watch
    else:
        yield LogLines(file)


def _is_live(file: TextIO) -> bool:
    console = Console(file=file)
    return console.is_terminal and not console.is_dumb_terminal


@contextmanager
def _bar(file: TextIO) -> Iterator[Watch]:
    with Progress(
        TextColumn("{task.description:<8}"), BarColumn(20), DownloadColumn(),
        TextColumn("{task.fields[counted]}"), TransferSpeedColumn(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        console=Console(file=file), transient=True,
    ) as progress:  # fmt: skip
        started = progress.add_task("start", total=None, counted="")
        tasks, one_at_a_time = {"start": started}, threading.Lock()

        def watch(figures: Figures) -> None:
            with one_at_a_time:
                if figures.phase not in tasks:
                    progress.remove_task(tasks.popitem()[1])
                    tasks[figures.phase] = progress.add_task(figures.phase, counted="")
                progress.update(
                    tasks[figures.phase], completed=figures.done, total=figures.total or None,
                    counted=figures.counted,
                )  # fmt: skip

        yield watch


class LogLines:
    """Figures as plain lines in a log, at intervals that grow; it is told of new ones.

    Args:
        file: the log. One that cannot be written to any more ends the lines, not the load.
        clock: seconds.
    """

    def __init__(self, file: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._clock = file, clock
        self._began = clock()
        self._phase, self._phase_began = "", self._began
        self._interval = FIRST_LINE
        self._next = self._began + FIRST_LINE
        self._one_at_a_time = threading.Lock()

    def __call__(self, figures: Figures) -> None:
        """Write a line if it is time for one."""
        with self._one_at_a_time:
            now = self._clock()
            if figures.phase != self._phase:
                self._phase, self._phase_began = figures.phase, now
            if now < self._next:
                return
            self._interval = min(2 * self._interval, LONGEST)
            self._next = now + self._interval
            line = line_of(figures, now - self._phase_began, now - self._began)
            try:
                self._file.write(f"{line}\n")
                self._file.flush()
            except (OSError, ValueError):  # ValueError: it is closed
                self._next = float("inf")


def line_of(figures: Figures, seconds: float, since: float) -> str:
    """Figures as a line: ``90 s: stream, 34 of 400 tensors, 1.2 GB of 10 GB, 13 MB/s, 676 s left``.

    Args:
        figures: to be told.
        seconds: that the phase has taken so far.
        since: the load began.
    """
    told = decimal(figures.done) + (f" of {decimal(figures.total)}" if figures.total else "")
    speed = figures.done / seconds if seconds > 0 else 0.0
    words = [figures.phase or "start", figures.counted, told]
    if speed:
        words.append(f"{decimal(int(speed))}/s")
    if speed and figures.total:
        left = (figures.total - figures.done) / speed
        words.append(f"{left:.0f} s left" if left > 0 else _ALL_CAME.get(figures.phase, "done"))
    return f"{since:.0f} s: {', '.join(filter(None, words))}"


#: What is being waited for when all bytes of a phase came.
_ALL_CAME = {STREAM: "all streamed, the stack is still loading"}
