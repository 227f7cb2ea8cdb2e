"""The ranges of a store read last; threads that ask for the same one share its request."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from threading import Lock

Range = tuple[str, int, int]

#: Bytes of ranges one store keeps. A layer's experts are read one after the other, gate and up of
#: a transposed expert share a range; a few blocks of a large tensor are wanted by several threads.
CACHE_BYTES = 256 * 2**20


class RangeCache:
    """The ranges read last, up to ``limit`` bytes; a larger one is not kept.

    A range counts from when it is asked for, so no two threads read the same one. The lock is held
    for the books alone, never while a range is read.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self._limit = limit
        self._ranges: OrderedDict[Range, Future[bytes]] = OrderedDict()
        self._lock = Lock()
        self.nbytes = 0

    @property
    def kept(self) -> tuple[Range, ...]:
        """The ranges it holds, the one that was asked for longest ago first."""
        with self._lock:
            return tuple(self._ranges)

    def get(self, key: Range, read: Callable[[], bytes]) -> bytes:
        """What is kept for ``key``, or what ``read`` gives; whoever waits for it gets its error."""
        with self._lock:
            kept = self._ranges.get(key)
            if kept is None:
                asked = self._keep(key)
            else:
                self._ranges.move_to_end(key)
        if kept is not None:
            return kept.result()
        try:
            content = read()
        except BaseException as error:
            self._forget(key, asked)
            asked.set_exception(error)
            raise
        asked.set_result(content)
        return content

    def _keep(self, key: Range) -> Future[bytes]:
        asked: Future[bytes] = Future()
        if _length(key) <= self._limit:
            self._ranges[key] = asked
            self.nbytes += _length(key)
        while self.nbytes > self._limit:
            self.nbytes -= _length(self._ranges.popitem(last=False)[0])
        return asked

    def _forget(self, key: Range, asked: Future[bytes]) -> None:
        """What could not be read is asked for again next time."""
        with self._lock:
            if self._ranges.get(key) is asked:
                del self._ranges[key]
                self.nbytes -= _length(key)


def _length(key: Range) -> int:
    return key[2] - key[1]
