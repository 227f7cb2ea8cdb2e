"""A loading process that another one forks: the stack it needs is imported there already.

Of an emulated slice every host is a loading process, and importing the stack takes each many
seconds. The new process is no child of whoever wants it, so it is given what a child would have
had from its start through the other one: a socket for requests, a pipe for answers, and a log.
No name in the file system is involved, so nobody else can come to the meeting.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess

import msgspec

_DESCRIPTORS = 3


class Meeting(msgspec.Struct, frozen=True, tag=True):
    """Asks a loading process for a twin, its ends follow; names the directory it makes."""

    scratch: str


class Twin:
    """What :class:`subprocess.Popen` offers, of a process that is no child of this one.

    Args:
        pid: its number; whoever forked it lives and has not asked how it ended.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._ended = os.pidfd_open(pid)

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


def take_over(requests: socket.socket) -> list[int]:
    """The descriptors that come after a :class:`Meeting`, for a twin.

    Raises:
        OSError: whoever asked for it has left.
    """
    _, given, _, _ = socket.recv_fds(requests, 1, _DESCRIPTORS)
    if len(given) != _DESCRIPTORS:
        for descriptor in given:
            os.close(descriptor)
        raise OSError("the meeting ended before anything was handed over")
    return given


def become(given: list[int]) -> None:
    """Be a twin: what was handed over is standard input, output and error."""
    for own, descriptor in enumerate(given):
        os.dup2(descriptor, own)
        os.close(descriptor)
