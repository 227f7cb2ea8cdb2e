"""A directory on this machine."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

import numpy as np

from harness.dtypes import Bits, bits_dtype
from harness.errors import BadInput
from harness.places.place import File, Place


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
        except (FileNotFoundError, NotADirectoryError) as error:
            raise _no_directory(path) from error
        except OSError as error:
            raise _unreadable(path, error) from error

    def __str__(self) -> str:
        return self._shown

    def where(self, name: str) -> str:
        """The file's path."""
        return str(self.path / name)


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
