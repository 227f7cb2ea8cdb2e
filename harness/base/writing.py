"""How files are written: whole or not at all, nowhere else, and not lost where that fails.

All that the project writes for others to find goes through :func:`write`. What stands at a path
decides how:

- An ordinary file, or nothing: its neighbour takes the content and then the file's name. Nobody
  can know the neighbour's name before, and it is made anew, so no link leads the content elsewhere.
- A device, a pipe, a socket, and what ``/dev/stdout`` or ``/dev/fd/N`` names: it is written to.
- A link: what it points to, decided once. A stranger's link in a directory that everybody may
  write to (``/tmp``) is refused, as the kernel does where ``fs.protected_symlinks`` is set.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from harness.base.errors import BadInput, NotWritten

_MOST_LINKS = 40  # as the kernel
READER_SECONDS = 10.0
_DESCRIPTORS = re.compile(r"/proc/(\d+)(?:/task/\d+)?/fd")


def write(
    path: Path,
    content: bytes,
    *,
    durable: bool = True,
    reader_seconds: float = READER_SECONDS,
) -> None:
    """Write a file; it appears when it is complete.

    An existing file keeps its mode, a new one gets the umask's.

    Args:
        path: see the module.
        content: of all of the file.
        durable: it is on the disk when this returns; not worth its time for figures of progress.
        reader_seconds: how late the reader of a named pipe may come.

    Raises:
        OSError: the directory is absent, it or the file is not to be written to, or has no room.
    """
    path = _followed(path)
    there = _stat(path)
    if (number := _own_descriptor(path)) is not None:
        if sys.stdout is not None:
            sys.stdout.flush()  # what was printed before comes before
        _write_to(os.dup(number), content)
    elif there is None or stat.S_ISREG(there.st_mode):
        _replace(path, content, there, durable=durable)
    elif stat.S_ISSOCK(there.st_mode):
        with socket.socket(socket.AF_UNIX) as sending:
            sending.connect(str(path))
            sending.sendall(content)
    else:
        _write_to(_opened(path, reader_seconds), content)


def append(path: Path, content: bytes) -> None:
    """Add to a file that others write to as well; it is made where it is absent.

    Raises:
        OSError: as :func:`write`.
    """
    _write_to(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), content)


def require_writable(path: Path | None) -> None:
    """Try a place for output before anything is made that is to go there; None is no place.

    Raises:
        BadInput: it is a directory or lies in none, or may not be written.
    """
    try:
        if path is not None:
            _try(path)
    except FileNotFoundError as error:
        raise BadInput(
            "no directory for the report",
            where=str(path),
            expected="a path in a directory that exists",
            hint=f"mkdir -p {path and path.parent}",
        ) from error
    except OSError as error:
        raise BadInput(
            f"the report cannot be written: {error.strerror}",
            where=str(path),
            expected="a path where this user may write a file",
            hint="another path",
        ) from error


def require_writable_directory(path: Path) -> None:
    """Try a directory that is to be made, or filled; nothing of it stays.

    Raises:
        BadInput: it is no directory, or nothing may be made there.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".harness-", dir=_nearest(path)):
            pass
    except OSError as error:
        raise BadInput(
            f"the output directory cannot be written: {error.strerror}",
            where=str(path),
            expected="a directory this user may write to, or a path where one can be made",
            hint="another directory",
        ) from error


def _nearest(path: Path) -> Path:
    """``path``, or the directory above it that is there."""
    for place in [path, *path.absolute().parents]:
        with contextlib.suppress(FileNotFoundError):
            place.lstat()
            return place
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def deliver(path: Path, content: bytes) -> None:
    """Write a file that took long to come about: where that fails, it is kept elsewhere.

    Raises:
        NotWritten: it is not where it should be, and says where it is.
    """
    try:
        write(path, content)
    except OSError as error:
        raise not_written(str(path), error, {path.name: content}) from error


def not_written(where: str, error: OSError, files: Mapping[str, bytes]) -> NotWritten:
    """The error for ``files``, by name, that could not be written; they are kept elsewhere."""
    kept = keep(files)
    return NotWritten(
        f"the output could not be written: {error.strerror or error}",
        where=where,
        expected="room there, and a place that stays as it was when the command began",
        hint=f"take it from {kept}: all of it is there"
        if kept
        else "again, with room: no "
        f"directory for temporary files takes it, either ({tempfile.gettempdir()}, /dev/shm)",
    )


def keep(files: Mapping[str, bytes]) -> Path | None:
    """Keep ``files``, by name, in a new private directory for temporary files.

    Returns:
        The file, or the directory of several; None where there is no room for them.
    """
    for place in (tempfile.gettempdir(), "/dev/shm"):
        with contextlib.suppress(OSError):
            directory = Path(tempfile.mkdtemp(prefix="harness-kept-", dir=place))
            for name, content in files.items():
                write(directory / name, content)
            return directory / next(iter(files)) if len(files) == 1 else directory
    return None


def indented(content: Any) -> bytes:
    """``content``, which msgspec can encode, as indented JSON in UTF-8 with a last newline."""
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"


def _followed(path: Path) -> Path:
    """``path``, or what it links to, which may be absent.

    Raises:
        PermissionError: a stranger made the link, where everybody may.
        OSError: the links go round in a circle.
    """
    for _ in range(_MOST_LINKS):
        if _is_of_descriptors(path.parent) or not path.is_symlink():
            return path
        link, directory = path.lstat(), path.parent.stat()
        shared = directory.st_mode & stat.S_ISVTX and directory.st_mode & stat.S_IWOTH
        if shared and link.st_uid not in (os.geteuid(), directory.st_uid):
            raise PermissionError(errno.EACCES, "another user made this link", str(path))
        path = path.parent / path.readlink()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def _is_of_descriptors(directory: Path) -> bool:
    return bool(_DESCRIPTORS.fullmatch(str(directory.resolve())))


def _own_descriptor(path: Path) -> int | None:
    """The number of a descriptor of this process; opened anew, it would begin at its start."""
    found = _DESCRIPTORS.fullmatch(str(path.parent.resolve()))
    own = found and found[1] == str(os.getpid()) and path.name.isdecimal()
    return int(path.name) if own else None


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _replace(
    path: Path, content: bytes, there: os.stat_result | None, *, durable: bool = True
) -> None:
    neighbour = _neighbour(path, there)
    try:
        _write_to(neighbour[0], content, durable=durable)
        os.replace(neighbour[1], path)
    except BaseException as error:
        neighbour[1].unlink(missing_ok=True)
        if not (isinstance(error, OSError) and error.errno == errno.EBUSY):
            raise
        # Something is mounted on the file, as a container's single file is: nothing replaces it.
        _write_to(os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW), content, durable=durable)


def _neighbour(path: Path, there: os.stat_result | None) -> tuple[int, Path]:
    """A new empty file beside ``path``, with the owner and mode it has or would get, and open."""
    neighbour = path.with_name(f".harness-{secrets.token_hex(16)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    opened = os.open(neighbour, flags, 0o600 if there else 0o666)
    if there:
        with contextlib.suppress(PermissionError):  # not ours to give away
            os.fchown(opened, there.st_uid, there.st_gid)
        os.fchmod(opened, stat.S_IMODE(there.st_mode) & 0o777)
    return opened, neighbour


def _opened(path: Path, reader_seconds: float) -> int:
    """A device or a pipe, open for writing; waits a while for a pipe's reader."""
    deadline = time.monotonic() + reader_seconds
    while True:
        try:
            opened = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
            break
        except OSError as error:
            if error.errno != errno.ENXIO or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    os.set_blocking(opened, True)
    return opened


def _write_to(opened: int, content: bytes, *, durable: bool = False) -> None:
    """Write all of ``content`` to a descriptor, and close it."""
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(opened, left) :]
        if durable:
            os.fsync(opened)
    finally:
        os.close(opened)


def _try(path: Path) -> None:
    """Whether :func:`write` could write there, as far as that shows before.

    Raises:
        OSError: it could not.
    """
    path = _followed(path)
    if (number := _own_descriptor(path)) is not None:
        if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise PermissionError(errno.EACCES, "it is open for reading alone", str(path))
        return
    there = _stat(path)
    if there and stat.S_ISDIR(there.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if there and not (os.access(path, os.W_OK) and _may_be_replaced(path, there)):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    if there is None or stat.S_ISREG(there.st_mode):
        opened, neighbour = _neighbour(path, there)
        os.close(opened)
        neighbour.unlink()


def _may_be_replaced(path: Path, there: os.stat_result) -> bool:
    """Whether the rules of a directory for everybody (``/tmp``) let this user replace a file."""
    directory = path.parent.stat()
    may = (0, there.st_uid, directory.st_uid)
    ordinary_and_sticky = stat.S_ISREG(there.st_mode) and directory.st_mode & stat.S_ISVTX
    return not ordinary_and_sticky or os.geteuid() in may
