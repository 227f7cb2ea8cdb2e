"""Locks on TPU chips: one process at a time may open a chip, and the next should wait, not crash.

libtpu refuses a chip that another process has open, with an error that names neither the chip nor
a way out. Whoever loads takes a lock file per chip first, in ascending order, so that a load that
needs all chips waits for those that need one, and runs alone. The operating system drops a lock
with the process that held it, however that ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from harness.base.errors import TargetUnavailable

_EVERY_SECONDS = 0.05
_LONGEST_PID = 20
#: A name here can be another user's: no link is followed, and nothing but a file is waited for.
_CAREFULLY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def lock_directory() -> Path:
    """Where the lock files are; ``HARNESS_LOCKS`` overrides the place.

    One place for all users of a machine: chips are the machine's, not a user's.
    """
    return Path(os.environ.get("HARNESS_LOCKS") or Path(tempfile.gettempdir(), "moe-load-harness"))


@contextmanager
def locked(chips: Sequence[int], *, timeout: float) -> Iterator[None]:
    """Hold the locks of ``chips``.

    Args:
        chips: the host's chip numbers; none needs no lock.
        timeout: seconds to wait for each.

    Raises:
        TargetUnavailable: another process holds one of them, and is named by its pid; or there is
            no place for locks, or what is there is no such place.
    """
    with ExitStack() as held:
        if chips:
            with _refused():
                directory = _opened_directory()
            held.callback(os.close, directory)
        for chip in sorted(chips):
            with _refused():
                _take(held, directory, chip, timeout)
        yield


@contextmanager
def _refused() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TargetUnavailable(
            f"TPU chips cannot be locked: {error.strerror or error}",
            where=str(Path(lock_directory(), error.filename or "")),
            expected="a private directory for locks that holds plain files, not links",
            hint="look at who made its files; HARNESS_LOCKS names another place for locks",
        ) from error


def _opened_directory() -> int:
    """The directory of locks, opened: what becomes of its name afterwards is no matter."""
    path = lock_directory()
    path.mkdir(parents=True, exist_ok=True)
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _CAREFULLY)
    with contextlib.suppress(PermissionError):  # another user made it, and gave this mode
        os.fchmod(directory, 0o1777)
    return directory


def _take(held: ExitStack, directory: int, chip: int, timeout: float) -> None:
    lock, owner = f"chip-{chip}.lock", f"chip-{chip}.pid"
    descriptor = _opened(directory, lock)
    held.callback(os.close, descriptor)  # which lets go of the lock
    if not _is_taken(descriptor, timeout):
        raise TargetUnavailable(
            f"TPU chip {chip} is in use by process {_read(directory, owner)}",
            where=str(lock_directory() / lock),
            expected=f"the chip to be free within {timeout:g} s",
            hint="wait for that process or end it; HARNESS_LOCKS names another place for locks",
        )
    held.callback(_remove, directory, owner)
    _remove(directory, owner)
    with contextlib.suppress(PermissionError, FileExistsError):
        _write(directory, owner, str(os.getpid()))


def _opened(directory: int, lock: str) -> int:
    """A lock file, whoever made it: to lock it takes no right to write.

    Raises:
        OSError: it is a link, or no file.
    """
    try:
        descriptor = os.open(lock, os.O_RDONLY | _CAREFULLY, dir_fd=directory)
    except FileNotFoundError:
        made = os.O_RDONLY | os.O_CREAT | _CAREFULLY
        descriptor = os.open(lock, made, 0o666, dir_fd=directory)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(None, "not a file", lock)
    return descriptor


def _is_taken(descriptor: int, timeout: float) -> bool:
    """Whether the lock became this process's within ``timeout`` seconds."""
    end = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(min(_EVERY_SECONDS, max(end - time.monotonic(), 0)))
        else:
            return True


def _write(directory: int, owner: str, pid: str) -> None:
    """Write a pid file that is not there yet."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _CAREFULLY
    with os.fdopen(os.open(owner, flags, 0o644, dir_fd=directory), "w") as file:
        file.write(pid)


def _remove(directory: int, owner: str) -> None:
    """Remove a pid file, unless another user's process was killed and left it: it stays theirs."""
    with contextlib.suppress(PermissionError, FileNotFoundError):
        os.unlink(owner, dir_fd=directory)


def _read(directory: int, owner: str) -> str:
    """The pid of the process that says it holds a lock, if there is such a process."""
    with contextlib.suppress(OSError):
        with os.fdopen(os.open(owner, os.O_RDONLY | _CAREFULLY, dir_fd=directory), "rb") as file:
            pid = file.read(_LONGEST_PID).decode("ascii", "replace")
        if pid.isdecimal() and Path("/proc", pid).is_dir():
            return pid
    return "of unknown pid"
