"""The parent's ends of what it shares with a loading process, and the lines that cross there.

Requests go through a socket, which can carry descriptors; answers come back through a pipe, one
JSON document a line; output goes to a log in memory. None of it has a name in the file system:
nobody else can put a file in its place, and a disk that is full or cannot be written is no matter.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import time
from typing import NamedTuple

from harness.base.secrets import redact

_LOG_TAIL = 20000  # a crash ends with the stacks of all threads
_LONGEST_CREDENTIAL = 1 << 16  # key files are some 3 KiB
_SEND_SECONDS = 60.0
_CHUNK = 1 << 16


class Theirs(NamedTuple):
    """The loading process's ends: its standard input, output and error."""

    requests: int
    answers: int
    log: int


class Connection:
    """The parent's ends.

    Attributes:
        theirs: the other ends; they are closed here once the loading process has them.

    Raises:
        OSError: there is no descriptor or no memory left.
    """

    def __init__(self) -> None:
        with contextlib.ExitStack() as made:  # closed again where the next one fails
            self._requests, requests = map(made.enter_context, socket.socketpair())
            self._requests.settimeout(_SEND_SECONDS)
            self._answers, answers = os.pipe()
            made.callback(os.close, self._answers)
            made.callback(os.close, answers)
            self._log = os.memfd_create("log", os.MFD_CLOEXEC)
            made.callback(os.close, self._log)
            log = os.dup(self._log)
            self.theirs = Theirs(requests.detach(), answers, log)
            made.pop_all()
        self._came = bytearray()
        self._searched = 0  # of what came, no line ends before

    def close_theirs(self) -> None:
        """Leave the other ends to the loading process: its end shows here from now on."""
        for descriptor in self.theirs:
            os.close(descriptor)

    def send(self, line: bytes, given: Theirs | None = None) -> None:
        """Send a line, and descriptors right after it.

        Raises:
            OSError: the loading process has ended, or :meth:`hang_up` was called.
        """
        self._requests.sendall(line)
        if given:
            socket.send_fds(self._requests, [b"."], list(given))

    def receive(self, timeout: float) -> bytes | None:
        """The next line; empty when the loading process has ended, None after ``timeout``."""
        end = time.monotonic() + timeout
        while (newline := self._came.find(b"\n", self._searched)) < 0:
            self._searched = len(self._came)
            if not _is_readable(self._answers, end - time.monotonic()):
                return None
            if not (chunk := os.read(self._answers, _CHUNK)):
                return b""
            self._came += chunk
        line = bytes(self._came[: newline + 1])
        del self._came[: newline + 1]
        self._searched = 0
        return line

    def hang_up(self) -> None:
        """Say that nothing more will come, at which the loading process ends; from any thread."""
        with contextlib.suppress(OSError):
            self._requests.shutdown(socket.SHUT_RDWR)

    def ended(self, timeout: float) -> bool:
        """Whether the other end of the answers is closed within ``timeout`` seconds."""
        end = time.monotonic() + timeout
        while _is_readable(self._answers, end - time.monotonic()):
            if not os.read(self._answers, _CHUNK):
                return True
        return False

    def log_tail(self) -> str:
        """The end of the loading process's output."""
        return tail(self._log)

    def close(self) -> None:
        """Close this side, once."""
        self._requests.close()
        os.close(self._answers)
        os.close(self._log)


def tail(log: int) -> str:
    """The end of what is in a file that is open, without credentials.

    More is read than is given: of a credential that the cut divides, no half is left.
    """
    size = os.fstat(log).st_size
    start = max(0, size - _LOG_TAIL - _LONGEST_CREDENTIAL)
    return redact(os.pread(log, size - start, start).decode(errors="replace"))[-_LOG_TAIL:]


def _is_readable(descriptor: int, seconds: float) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        return bool(selector.select(max(seconds, 0)))
