"""Locks on TPU chips: one process at a time may open a chip, and the next should wait, not crash.

libtpu refuses a chip that another process has open, with an error that names neither the chip nor
a way out. Whoever loads takes a lock file per chip first, in ascending order, so that a load that
needs all chips waits for those that need one, and runs alone. The operating system drops a lock
with the process that held it, however that ended.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from harness.errors import TargetUnavailable


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
        TargetUnavailable: another process holds one of them; it is named by its pid.
    """
    with ExitStack() as held:
        for chip in sorted(chips):
            _take(held, chip, timeout)
        yield


def _take(held: ExitStack, chip: int, timeout: float) -> None:
    directory = lock_directory()
    directory.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(PermissionError):  # another user made it, and gave this mode
        directory.chmod(0o1777)
    lock, owner = directory / f"chip-{chip}.lock", directory / f"chip-{chip}.pid"
    try:
        held.enter_context(FileLock(lock, timeout=timeout, mode=0o666))
    except Timeout as error:
        raise TargetUnavailable(
            f"TPU chip {chip} is in use by process {_read(owner)}",
            where=str(lock),
            expected=f"the chip to be free within {timeout:g} s",
            hint="wait for that process or end it; HARNESS_LOCKS names another place for locks",
        ) from error
    held.callback(_remove, owner)
    _remove(owner)
    with contextlib.suppress(PermissionError):
        owner.write_text(str(os.getpid()))


def _remove(owner: Path) -> None:
    """Remove a pid file, unless another user's process was killed and left it: it stays theirs."""
    with contextlib.suppress(PermissionError):
        owner.unlink(missing_ok=True)


def _read(owner: Path) -> str:
    """The pid of the process that says it holds a lock, if there is such a process."""
    try:
        pid = owner.read_text()
        return pid if Path("/proc", pid).is_dir() else "of unknown pid"
    except OSError:
        return "of unknown pid"
