"""Windows on files: their bytes where the page cache holds them, a stretch of a file at a time."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness.dtypes import Bits

_STRETCH = 32 << 20  # bytes of a file that are mapped at once, unless more is asked for
_PAGE = 2 << 20  # windows begin at multiples of it, so that large pages are mapped whole
_POPULATE_READ = 22  # of Linux's mman-common.h since 5.14
#: Unlike ``mmap.madvise`` it lets other threads of Python run while a disk is read.
_madvise = ctypes.CDLL(None, use_errno=True).madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class _Window(NamedTuple):
    owner: object
    start: int
    stop: int
    mapped: mmap.mmap
    address: int


class _Recent(threading.local):
    """A thread's windows, the last used last.

    Two: of an expert gate and up may lie in one file, down in another.
    """

    def __init__(self) -> None:
        self.windows: deque[_Window] = deque(maxlen=2)


_recent = _Recent()


def seen(owner: object, path: Path, start: int, kind: np.dtype[Any], count: int) -> Bits:
    """Elements of a file, read into the page cache, as a view that must not be written to.

    The thread keeps its last two windows, and what is seen keeps its own: so much of the file
    counts as the process's memory, and can be taken back by the system at any time. A file that
    is cut short after that ends the process that looks.

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
    for window in _recent.windows:
        if window.owner is owner and window.start <= start < stop <= window.stop:
            _recent.windows.remove(window)
            break
    else:
        window = _opened(owner, path, start, stop)
    _recent.windows.append(window)
    if window.mapped.size() < stop:
        raise ValueError(f"the file has {window.mapped.size()} bytes, {stop} are wanted")
    _populate(window, start, stop)
    return np.frombuffer(window.mapped, kind, count, start - window.start)


def _opened(owner: object, path: Path, start: int, stop: int) -> _Window:
    with path.open("rb", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        first = start // _PAGE * _PAGE
        last = max(stop, min(first + _STRETCH, size))
        mapped = mmap.mmap(file.fileno(), last - first, prot=mmap.PROT_READ, offset=first)
    address = np.frombuffer(mapped, np.uint8).ctypes.data
    return _Window(owner, first, last, mapped, address)


def _populate(window: _Window, start: int, stop: int) -> None:
    """Read pages and map them; what cannot be read is an error here, and a signal when touched."""
    first = (start - window.start) // mmap.PAGESIZE * mmap.PAGESIZE
    if _madvise(window.address + first, stop - window.start - first, _POPULATE_READ):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
