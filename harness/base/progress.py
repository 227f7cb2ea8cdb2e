"""Progress of a load: which phase it is in, how many bytes came and were compared, while it runs.

The process that holds the tensors counts in memory it shares with the one that watches over it,
which passes the figures on and, when the load has ended however it did, the phase it ended in.
Without a terminal nobody looks on, and nothing is printed.
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
_MEMORY = struct.Struct("=16sqq")  # phase, done, total


class Figures(msgspec.Struct, frozen=True, tag=True):
    """What is being done, and how many of its bytes are done; ``total`` 0 where unknown."""

    phase: str
    done: int
    total: int


Watch = Callable[[Figures], None]


class Meter:
    """Counts in ``memory``, which another process may share; in its own where none is given.

    ``watch`` is told of new figures, for work that is done in this process.
    """

    SIZE = _MEMORY.size

    def __init__(self, memory: memoryview | None = None, *, watch: Watch | None = None) -> None:
        self._memory = memory or memoryview(bytearray(self.SIZE))
        self._phase, self._done, self._total = b"", 0, 0
        self._watch, self._told = watch, 0.0

    def begin(self, phase: str, total: int) -> None:
        """Start a phase of ``total`` bytes."""
        self._phase, self._done, self._total = phase.encode(), 0, total
        self._write()

    def advance(self, nbytes: int) -> None:
        """Count ``nbytes`` more."""
        self._done += nbytes
        self._write()

    @property
    def figures(self) -> Figures:
        """What is in the memory, whichever process counted it."""
        phase, done, total = _MEMORY.unpack_from(self._memory)
        return Figures(phase.rstrip(b"\0").decode(errors="replace"), done, total)

    def _write(self) -> None:
        _MEMORY.pack_into(self._memory, 0, self._phase, self._done, self._total)
        if self._watch and time.monotonic() - self._told > EVERY_SECONDS:
            self._told = time.monotonic()
            self._watch(self.figures)


def is_shown(file: TextIO | None) -> bool:
    """Whether progress is of use there: a terminal that can move its cursor."""
    console = Console(file=file)
    return file is not None and console.is_terminal and not console.is_dumb_terminal


@contextmanager
def shown(file: TextIO | None) -> Iterator[Watch | None]:
    """Show progress on ``file`` while the body runs; gone when it ends.

    Yields:
        What takes new figures, from any thread; None when nobody would look.
    """
    if not is_shown(file):
        yield None
        return
    with Progress(
        TextColumn("{task.description:<8}"), BarColumn(), DownloadColumn(),
        TransferSpeedColumn(), TimeRemainingColumn(),
        console=Console(file=file), transient=True,
    ) as progress:  # fmt: skip
        tasks, one_at_a_time = {"start": progress.add_task("start", total=None)}, threading.Lock()

        def watch(figures: Figures) -> None:
            with one_at_a_time:
                if figures.phase not in tasks:
                    progress.remove_task(tasks.popitem()[1])
                    tasks[figures.phase] = progress.add_task(figures.phase)
                task = tasks[figures.phase]
                progress.update(task, completed=figures.done, total=figures.total or None)

        yield watch
