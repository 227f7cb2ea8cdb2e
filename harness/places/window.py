"""Windows on files: their bytes where the page cache holds them, a stretch of a file at a time."""

from __future__ import annotations

import mmap
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness.dtypes import Bits

_STRETCH = 32 << 20  # bytes of a file that a thread has mapped at least
_PAGE = 2 << 20  # where files lie in large pages these are mapped whole
_POPULATE_READ = 22  # of Linux's mman-common.h since 5.14; unlike a touch it fails with an error


class _Window(NamedTuple):
    owner: object
    start: int
    stop: int
    bytes: mmap.mmap


class _Last(threading.local):
    window: _Window | None = None


_last = _Last()


def seen(owner: object, path: Path, start: int, kind: np.dtype[Any], count: int) -> Bits:
    """Elements of a file that are in memory now, as a view that must not be written to.

    The thread keeps the window until it wants another, and what is seen keeps its own: so much of
    the file counts as the process's memory, and can be taken back by the system at any time.

    Args:
        owner: whose windows these are; a file that was opened anew gets new ones.
        path: the file.
        start: the first byte.
        kind: dtype of the elements.
        count: how many.

    Raises:
        OSError: they cannot be read, or files like this not be mapped.
        ValueError: the file is shorter, or they would lie across words of 64 bits.
    """
    stop = start + count * kind.itemsize
    if start % 8:
        raise ValueError("compiled kernels take aligned words only")
    window = _last.window
    if (
        window is None
        or window.owner is not owner
        or not window.start <= start < stop <= window.stop
    ):
        _last.window = window = _opened(owner, path, start, stop)
    if stop - start <= _STRETCH:
        first = (start - window.start) // mmap.PAGESIZE * mmap.PAGESIZE
        window.bytes.madvise(_POPULATE_READ, first, stop - window.start - first)
    return np.frombuffer(window.bytes, kind, count, start - window.start)


def _opened(owner: object, path: Path, start: int, stop: int) -> _Window:
    with path.open("rb", buffering=0) as file:
        size = file.seek(0, 2)
        first = start // _PAGE * _PAGE
        last = max(stop, min(first + _STRETCH, size))
        mapped = mmap.mmap(file.fileno(), last - first, prot=mmap.PROT_READ, offset=first)
    return _Window(owner, first, last, mapped)
