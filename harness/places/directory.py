"""A directory on this machine."""

from __future__ import annotations

import os
import stat
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harness.dtypes import Bits, bits_dtype
from harness.errors import BadInput
from harness.places.place import File, Place

_WEIGHTS = ".safetensors"


class LocalFile(File):
    """A file of a directory; ``path`` may be a link, as in the hub's cache."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name

    def __str__(self) -> str:
        return str(self.path)

    @cached_property
    def size(self) -> int:  # type: ignore[override]  # looked up when it is wanted
        """Bytes."""
        try:
            return self.path.stat().st_size
        except OSError as error:
            raise _unreadable(self.path, error) from error

    def read(self, start: int, stop: int) -> bytes:
        """See :meth:`File.read`."""
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                return file.read(stop - start)
        except OSError as error:
            raise _unreadable(self.path, error) from error

    def bits(
        self, offset: int, dtype: str, shape: tuple[int, ...], within: tuple[int, int] | None = None
    ) -> Bits:
        """The bits, read into memory of their own.

        Mapping the file instead costs less where the page cache has large pages, twice as much
        where it has small ones, and a file that is cut short then ends the process
        (docs/speed.md).
        """
        out = np.empty(shape, bits_dtype(dtype))
        try:
            self._read_into(out.reshape(-1).view(np.uint8).data, offset)
        except OSError as error:
            raise _unreadable(self.path, error) from error
        return out

    def _read_into(self, left: memoryview, offset: int) -> None:
        file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while left:
                if not (count := os.preadv(file, [left], offset)):
                    raise OSError(f"the file ends {len(left)} bytes too early")
                left, offset = left[count:], offset + count
        finally:
            os.close(file)

    def require_checksum(self) -> bool:
        """A file system keeps none."""
        return False


class Directory(Place):
    """A directory.

    Args:
        path: where it is.
        shown: as the user named it.

    Raises:
        BadInput: there is none, or it cannot be listed.
    """

    def __init__(self, path: Path, shown: str = "") -> None:
        self.path = path
        self._shown = shown or str(path)
        try:
            self.model = str(path.resolve())
            self.files = {entry.name: LocalFile(entry) for entry in sorted(path.iterdir())
                          if entry.is_file()}  # fmt: skip
            self._found = {name: _identity(path / name) for name in self.files if _counts(name)}
        except (FileNotFoundError, NotADirectoryError) as error:
            raise _no_directory(path) from error
        except OSError as error:
            raise _unreadable(path, error) from error

    def __str__(self) -> str:
        return self._shown

    def where(self, name: str) -> str:
        """The file's path."""
        return str(self.path / name)

    def require_unchanged(self) -> None:
        """See :meth:`Place.require_unchanged`."""
        for name, found in self._found.items():
            try:
                now = _identity(self.path / name)
            except OSError as error:
                raise _changed(self.where(name), error.strerror or str(error)) from error
            if now != found:
                raise _changed(self.where(name), _difference(found, now))
        came = {entry.name for entry in self.path.iterdir()} - set(self.files)
        for name in sorted(came):
            if name.endswith(_WEIGHTS):  # which the streamer may have taken, too
                raise _changed(self.where(name), "it was not there before")


class _Identity(NamedTuple):
    """What tells a file from another one, and from itself before it was written to."""

    kind: int
    device: int
    inode: int  # a new file may get that of one that was deleted
    size: int
    modified: int  # nanoseconds; a copy may be given those of another file
    changed: int  # nanoseconds; nobody sets these


def _identity(path: Path) -> _Identity:
    found = path.stat()  # of what a link leads to
    return _Identity(
        stat.S_IFMT(found.st_mode), found.st_dev, found.st_ino, found.st_size,
        found.st_mtime_ns, found.st_ctime_ns,
    )  # fmt: skip


def _counts(name: str) -> bool:
    """Whether it is weights or a description of them; a log may lie and grow beside them."""
    return name.endswith((_WEIGHTS, ".json"))


def _difference(found: _Identity, now: _Identity) -> str:
    if now.kind != found.kind:
        return "it is no file any more"
    if (now.device, now.inode) != (found.device, found.inode):
        return "another file has its name"
    if now.size != found.size:
        return f"it had {found.size} bytes and has {now.size}"
    return "it was written to"


def _changed(path: str, how: str) -> BadInput:
    return BadInput(
        f"the file changed while it was loaded: {how}",
        where=path,
        expected="files that stay as they are until all is compared",
        hint="load again when whatever writes there has ended",
    )


def _no_directory(path: Path) -> BadInput:
    return BadInput(
        "not a directory" if path.exists() else "no such directory",
        where=str(path),
        expected="a directory with config.json and safetensors files",
        hint="the path of a downloaded model, or harness checkpoint FAMILY OUT to write one",
    )


def _unreadable(path: Path, error: OSError) -> BadInput:
    return BadInput(
        f"cannot be read: {error.strerror or error}",
        where=str(path),
        expected="a file or directory this user may read",
        hint="look at its permissions and at the disk",
    )
