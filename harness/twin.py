"""A loading process that another one forks: the stack it needs is imported there already.

Of an emulated slice every host is a loading process, and importing the stack takes each many
seconds. The new process is no child of whoever wants it, so the two meet at a socket, where it is
given what a child would have had from its start: a pipe for requests, one for answers, and a log.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec

_SECONDS = 30.0  # for a twin to connect
_PEER = struct.Struct("3i")  # pid, uid and gid: struct ucred of unix(7)


class Meeting(msgspec.Struct, frozen=True, tag=True):
    """Asks a loading process for a twin, and names the directory it is to have."""

    scratch: str

    @property
    def place(self) -> str:
        """The socket at which the twin is waited for."""
        return f"{self.scratch}/meeting"


class Twin:
    """What :class:`subprocess.Popen` offers, of a process that is no child of this one.

    Args:
        connection: from the process, which waits there.
        log: what its output goes to.
    """

    def __init__(self, connection: socket.socket, log: BinaryIO) -> None:
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        self.pid: int = _PEER.unpack(peer)[0]
        requests, self.stdin = _pipe("wb")
        answers, self.stdout = _pipe("rb")
        with requests, answers:
            given = [requests.fileno(), answers.fileno(), log.fileno()]
            socket.send_fds(connection, [b"."], given)
        self._ended = os.pidfd_open(self.pid)

    def wait(self, timeout: float | None = None) -> None:
        """Wait for its end, once.

        Raises:
            subprocess.TimeoutExpired: it did not end within ``timeout`` seconds.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(self._ended, selectors.EVENT_READ)
            if not selector.select(timeout):
                raise subprocess.TimeoutExpired("a loading process", timeout or 0)
        os.close(self._ended)

    def kill(self) -> None:
        """End it at once."""
        signal.pidfd_send_signal(self._ended, signal.SIGKILL)


def meet(scratch: Path, invite: Callable[[Meeting], None]) -> Twin:
    """Wait for the twin that ``invite`` asks for; ``scratch`` is the directory it is to have.

    Raises:
        OSError: it did not come, or there is no place to meet: a socket's path has 107 bytes.
    """
    meeting = Meeting(str(scratch))
    Path(meeting.place).unlink(missing_ok=True)  # that of a twin which was killed
    with socket.socket(socket.AF_UNIX) as listening, (scratch / "log").open("wb") as log:
        listening.bind(meeting.place)
        listening.listen(1)
        listening.settimeout(_SECONDS)
        invite(meeting)
        with listening.accept()[0] as connection:
            return Twin(connection, log)


def _pipe(mode: Literal["rb", "wb"]) -> tuple[BinaryIO, BinaryIO]:
    """The other end of a pipe, and the end that is opened with ``mode``."""
    reading, writing = os.pipe()
    if mode == "wb":
        return os.fdopen(reading, "rb"), os.fdopen(writing, mode)
    return os.fdopen(writing, "wb"), os.fdopen(reading, mode)


def arrive(meeting: Meeting) -> None:
    """Be a twin: take its pipes and its log for standard input, output and error.

    Raises:
        OSError: nobody waits there, or whoever did has left.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(meeting.place)
        _, given, _, _ = socket.recv_fds(connection, 1, 3)
    if len(given) != 3:
        raise OSError("the meeting ended before anything was handed over")
    for own, descriptor in enumerate(given):
        os.dup2(descriptor, own)
        os.close(descriptor)
