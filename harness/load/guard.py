"""Ends a loading process, all it started and its files when whoever started it is gone.

``python -I -S guard.py PARENT SCRATCH COMMAND…`` stands between the two from before there is
anything to leave behind. It imports next to nothing, so it is there within milliseconds and
answers at once, while the loading process may import a stack for a minute and hear nothing.

It makes the scratch directory, says so, and starts the command when it is told to. What the
command leaves running when it ends or is killed becomes the guard's child, since the guard is a
subreaper (prctl(2)): nothing gets away by losing its parent. Loading processes share the guard's
process group; loads have their own, by which the guard tells them from a twin that is to live on.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterable

_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36  # sys/prctl.h
#: Asks the guard to end the command, but not the twins that were forked from it.
END_COMMAND = signal.SIGUSR1
#: Asks it to end everything.
END_ALL = signal.SIGTERM
_EVERY_SECONDS = 0.01


def die_with_parent(parent: int) -> None:
    """Have this process killed when the thread that made it ends; at once if ``parent`` has."""
    ctypes.CDLL(None).prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def main(parent: int, scratch: str, command: list[str]) -> None:
    """Make ``scratch``, run ``command``, and see to the end of both.

    Standard input gives one byte when the command may start, and is the command's from then on.
    Standard output receives one line: the error number of what prevented the scratch directory,
    or 0; it is the command's, too, and shows its end when its files are gone.

    Args:
        parent: the process that started this one.
        scratch: a path that must not exist yet.
        command: what to run, with this process's environment.
    """
    wake = _wake_on(END_COMMAND, END_ALL, signal.SIGCHLD)
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(ignored, signal.SIG_IGN)  # those are the parent's to act on
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with contextlib.suppress(ProcessLookupError):
        parent_ended = os.pidfd_open(parent)
        if os.getppid() == parent and _made(scratch):
            try:
                _guard(parent_ended, wake, command)
            finally:
                _end_all()
                shutil.rmtree(scratch, ignore_errors=True)


def _made(scratch: str) -> bool:
    """Make the directory, private and new, and say how that went."""
    error = 0
    try:
        os.mkdir(scratch, 0o700)
    except OSError as raised:
        error = raised.errno or 0
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps({"type": "Scratch", "error": error}).encode() + b"\n")
    return not error


def _guard(parent_ended: int, wake: int, command: list[str]) -> None:
    """Wait for the byte, run the command; return when all is over, or is to be."""
    if wake in _ready(parent_ended, 0, wake) or not os.read(0, 1):
        return
    command_pid = _started(command)
    running = True
    while parent_ended not in _ready(parent_ended, wake):
        asked = os.read(wake, 512)
        if END_ALL in asked:
            return
        if running and END_COMMAND in asked:
            os.kill(command_pid, signal.SIGKILL)
        ended, left = _reaped()
        running = running and command_pid not in ended
        if not left:
            return
        if not running:
            _kill(pid for pid, parent, group in _processes()
                  if parent == os.getpid() and group != os.getpgrp())  # fmt: skip
            os.dup2(2, 1)  # twins live on; the command and its loads have ended


def _started(command: list[str]) -> int:
    guard, pid = os.getpid(), os.fork()
    if pid == 0:
        die_with_parent(guard)
        for ignored in (signal.SIGHUP, signal.SIGQUIT):
            signal.signal(ignored, signal.SIG_DFL)
        os.execv(command[0], command)
    os.close(0)  # what the command is sent, and that it hears nothing more, is between the two
    return pid


def _wake_on(*numbers: int) -> int:
    """A descriptor from which the numbers of these signals can be read as they come."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in numbers:
        signal.signal(number, lambda *_: None)
    return reading


def _ready(*descriptors: int) -> list[int]:
    return select.select(descriptors, [], [])[0]


def _reaped() -> tuple[set[int], bool]:
    """The children that have ended since the last look, and whether any is left."""
    ended = set()
    try:
        while pid := os.waitpid(-1, os.WNOHANG)[0]:
            ended.add(pid)
    except ChildProcessError:
        return ended, False
    return ended, True


def _end_all() -> None:
    """Kill all that came of the command, however far from it, until there is none."""
    while _reaped()[1]:
        parents = {pid: parent for pid, parent, _ in _processes()}
        _kill(pid for pid in parents if _is_of(os.getpid(), pid, parents))
        time.sleep(_EVERY_SECONDS)


def _is_of(ancestor: int, pid: int, parents: dict[int, int]) -> bool:
    while pid := parents.get(pid, 0):
        if pid == ancestor:
            return True
    return False


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _processes() -> list[tuple[int, int, int]]:
    """Every process of the machine: its number, its parent's and its group's (proc(5))."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                _, parent, group, *_ = file.read().rpartition(b")")[2].split()
                found.append((int(name), int(parent), int(group)))
    return found


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
