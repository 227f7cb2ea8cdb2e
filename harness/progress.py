"""Progress of a load: how many bytes came and how many were compared, while it runs.

The process that holds the tensors counts and leaves the figures in a small file; the one the user
watches reads it. Without a terminal nobody reads, and nothing is printed.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
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

_EVERY_SECONDS = 0.2


class Figures(msgspec.Struct, frozen=True):
    """What is being done, and how many of its bytes are done; ``total`` 0 where unknown."""

    phase: str
    done: int
    total: int


class Meter:
    """Counts in the loading process; leaves figures at ``path``, five times a second at most."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._figures = Figures("", 0, 0)
        self._written = 0.0

    def begin(self, phase: str, total: int) -> None:
        """Start a phase of ``total`` bytes."""
        self._figures = Figures(phase, 0, total)
        self._write()

    def advance(self, nbytes: int) -> None:
        """Count ``nbytes`` more."""
        figures = self._figures
        self._figures = Figures(figures.phase, figures.done + nbytes, figures.total)
        if time.monotonic() - self._written >= _EVERY_SECONDS:
            self._write()

    def _write(self) -> None:
        if self._path is None or not self._path.parent.is_dir():
            return
        self._written = time.monotonic()
        partial = self._path.with_suffix(".partial")
        partial.write_bytes(msgspec.json.encode(self._figures))
        partial.replace(self._path)


#: This process's meter; a loading process gets one with a path.
_meter = Meter()


def count_into(path: str) -> None:
    """Leave this process's figures at ``path``; nowhere when it is empty."""
    global _meter
    _meter = Meter(Path(path) if path else None)


def begin(phase: str, total: int) -> None:
    """Start a phase in this process."""
    _meter.begin(phase, total)


def advance(nbytes: int) -> None:
    """Count bytes in this process."""
    _meter.advance(nbytes)


def is_shown(file: TextIO | None) -> bool:
    """Whether progress is of use there: a terminal that can move its cursor."""
    console = Console(file=file)
    return file is not None and console.is_terminal and not console.is_dumb_terminal


@contextmanager
def shown(file: TextIO | None) -> Iterator[str]:
    """Show progress on ``file`` while the body runs; gone when it ends.

    Yields:
        Where the loading process is to leave its figures; empty when nobody would look.
    """
    if not is_shown(file):
        yield ""
        return
    with tempfile.TemporaryDirectory(prefix="harness-progress-") as directory:
        path, ended = Path(directory, "figures"), threading.Event()
        watcher = threading.Thread(target=_watch, args=(path, ended, file), daemon=True)
        watcher.start()
        try:
            yield str(path)
        finally:
            ended.set()
            watcher.join()


def _watch(path: Path, ended: threading.Event, file: TextIO) -> None:
    with Progress(
        TextColumn("{task.description:<8}"), BarColumn(), DownloadColumn(),
        TransferSpeedColumn(), TimeRemainingColumn(),
        console=Console(file=file), transient=True,
    ) as progress:  # fmt: skip
        tasks = {"start": progress.add_task("start", total=None)}
        while not ended.wait(_EVERY_SECONDS):
            if figures := read(path):
                if figures.phase not in tasks:
                    progress.remove_task(tasks.popitem()[1])
                    tasks[figures.phase] = progress.add_task(figures.phase)
                task = tasks[figures.phase]
                progress.update(task, completed=figures.done, total=figures.total or None)


def read(path: Path) -> Figures | None:
    """The figures at ``path``, if any are there yet."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Figures)
    except (OSError, msgspec.DecodeError):
        return None
