"""A directory on this machine."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harness.base.bits import Bits, bits_dtype
from harness.base.errors import BadInput
from harness.checkpoint.stores.location import File, Identity, Location

_WEIGHTS = ".safetensors"
#: What vLLM and the streamer open by its name's end, whatever stands there: weights, and the JSON
#: and text of configuration and tokenizer. An opened pipe hangs the load.
_OPENED = (
    ".safetensors", ".json", ".jinja", ".txt", ".model", ".tiktoken", ".py",
    ".bin", ".pt", ".pth", ".ckpt", ".gguf",
)  # fmt: skip
#: Entries of a directory that are looked at: more, and the look alone takes seconds.
_MOST_ENTRIES = 50_000

#: How the hub's cache names a large file and a snapshot (huggingface_hub 2.4,
#: ``file_download.py``).
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # git's of a small file, SHA-256 of a large one
_SNAPSHOT = re.compile(r".*/models--([^/]+)/snapshots/([0-9a-f]{40})", re.S)

#: Nanoseconds within which two writes may leave a file the same times: FAT counts two seconds, the
#: kernel's clock of a file system ticks every few milliseconds.
TICK = 2 * 10**9
_CHUNK = 8 << 20

_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip


#: Opening never waits, whatever took a file's place.
_OPENING = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


class _Descriptor:
    """A descriptor that is closed when nobody has it any more."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


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
        with _readable(self.path):
            found = self.path.stat()
            _require_regular(self.path, found)
            return found.st_size

    def read(self, start: int, stop: int) -> bytes:
        """See :meth:`File.read`."""
        with _opened(self.path) as descriptor, open(descriptor, "rb", closefd=False) as file:
            file.seek(start)
            return file.read(stop - start)

    def bits(
        self, offset: int, dtype: str, shape: tuple[int, ...], within: tuple[int, int] | None = None
    ) -> Bits:
        """The bits, read into memory of their own.

        Mapping the file instead costs less where the page cache has large pages, twice as much
        where it has small ones, and a file that is cut short then ends the process
        (docs/speed.md).
        """
        out = np.empty(shape, bits_dtype(dtype))
        with _opened(self.path) as descriptor:
            _fill(out.reshape(-1).view(np.uint8), descriptor, offset)
        return out

    def stream(
        self, offset: int, nbytes: int, buffer: Bits, within: tuple[int, int] | None = None
    ) -> Iterator[Bits]:
        """See :meth:`File.stream`; a buffer at a time."""
        with _opened(self.path) as descriptor:
            for start in range(0, nbytes, len(buffer)):
                part = buffer[: nbytes - start]
                _fill(part, descriptor, offset + start)
                yield part

    def by_descriptor(self, offset: int, nbytes: int, read: Callable[[int], int]) -> int:
        """See :meth:`File.by_descriptor`; the file stays open, opening takes a core as long."""
        return read(self._descriptor.number)

    @cached_property
    def _descriptor(self) -> _Descriptor:
        with _readable(self.path):
            descriptor = _Descriptor(os.open(self.path, _OPENING))
            _require_regular(self.path, os.fstat(descriptor.number))
            return descriptor

    def known(self) -> Mapping[str, str]:
        """The SHA-256 by which the hub's cache calls a large file, in base64; else nothing."""
        with _readable(self.path):
            name = self.path.resolve().name if self.path.is_symlink() else ""
        found = _SHA256.fullmatch(name)
        return {"SHA256": base64.b64encode(bytes.fromhex(name)).decode()} if found else {}

    def require_checksum(self) -> bool:
        """A file system keeps none."""
        return False


class Directory(Location):
    """A directory.

    Args:
        path: where it is.
        shown: as the user named it.

    Raises:
        BadInput: there is none, it cannot be listed, or what stands under the name of a file that
            the load opens is none: a folder, a pipe, a device, a link that leads nowhere.
    """

    def __init__(self, path: Path, shown: str = "") -> None:
        self.path = path
        self._shown = shown or str(path)
        try:
            self.model = str(path.resolve())
            names = _names_in(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise _no_directory(path) from error
        except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL in the path
            raise _unreadable(path, error) from error
        self.files = {name: LocalFile(path / name) for name in names if _is_file(path / name)}
        self._looked = time.time_ns()
        with _readable(path):
            self._found = {name: _identity(path / name) for name in self.files if _counts(name)}

    def __str__(self) -> str:
        return self._shown

    @property
    def revision(self) -> str:
        """See :attr:`Location.revision`; by the path, in the hub's cache."""
        found = _SNAPSHOT.fullmatch(self.model)
        return f"{found[1].replace('--', '/', 1)}@{found[2]}" if found else ""

    def identity(self, *, hashed: bool = False) -> Identity | None:
        """See :meth:`Location.identity`.

        A snapshot of the hub's goes by its commit and by the names of its blobs, which are hashes.
        Any other file goes by its path, inode, size, and times, of which nobody can set the one
        when it was last changed (``ctime``).
        """
        rows, newest, commit = [], 0, self.revision
        for name, found in self._found.items():
            blob = _blob(self.path / name) if commit else ""
            if blob:
                rows.append((name, f"{found.size} {blob}"))
                continue
            newest = max(newest, found.modified, found.changed)
            told = found.inode, found.size, found.modified, found.changed
            rows.append((name, f"{self.model} {told}"))
        by = "its commit on the hub" if commit and not newest else "its files' sizes and times"
        settled = newest + TICK < self._looked
        if hashed:
            with ThreadPoolExecutor(os.cpu_count()) as threads:
                sums = threads.map(_sha256, (self.path / name for name in self._found))
                rows = [*zip(self._found, sums, strict=True)]
            by, commit = "SHA-256 of its files", ""
        return Identity(by, (commit, *(f"{name} {told}" for name, told in rows)), settled)

    def where(self, name: str) -> str:
        """The file's path."""
        return str(self.path / name)

    def require_unchanged(self) -> None:
        """See :meth:`Location.require_unchanged`."""
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


def _blob(path: Path) -> str:
    """The hash by which the hub's cache calls what a link of a snapshot leads to; else nothing."""
    with _readable(path):
        to = path.resolve() if path.is_symlink() else None
    inside = to is not None and to.parent == path.parent.parent.parent.resolve() / "blobs"
    return to.name if to is not None and inside and _HASH.fullmatch(to.name) else ""


def _sha256(path: Path) -> str:
    found, start = hashlib.sha256(), 0
    with _opened(path) as descriptor:
        while content := os.pread(descriptor, _CHUNK, start):
            found.update(content)
            start += len(content)
    return found.hexdigest()


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


def _names_in(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        names = [entry.name for entry, _ in zip(entries, range(_MOST_ENTRIES + 1), strict=False)]
    if len(names) > _MOST_ENTRIES:
        raise BadInput(
            f"more than {_MOST_ENTRIES} entries",
            where=str(path),
            expected="the files of one checkpoint",
            hint="the path of a downloaded model",
        )
    return sorted(names)


def _is_file(path: Path) -> bool:
    """Whether a regular file stands there, or a link to one, as in the hub's cache.

    Raises:
        BadInput: none does, and by its name the load would open it.
    """
    opened = path.name.endswith(_OPENED)
    try:
        found = path.stat()
    except OSError as error:
        if not opened:
            return False
        raise _not_a_file(path, "a link that leads nowhere", error.strerror) from error
    if opened:
        _require_regular(path, found)
    return stat.S_ISREG(found.st_mode)


def _require_regular(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise _not_a_file(path, _KINDS.get(stat.S_IFMT(found.st_mode), "no file"))


def _fill(buffer: Bits, descriptor: int, offset: int) -> None:
    """Read as many bytes as the buffer has."""
    left = buffer.data
    while left:
        if not (count := os.preadv(descriptor, [left], offset)):
            raise OSError(f"the file ends {len(left)} bytes too early")
        left, offset = left[count:], offset + count


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A descriptor of a regular file."""
    with _readable(path):
        descriptor = os.open(path, _OPENING)
        try:
            _require_regular(path, os.fstat(descriptor))
            yield descriptor
        finally:
            os.close(descriptor)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unreadable(path, error) from error


def _not_a_file(path: Path, kind: str, detail: str | None = None) -> BadInput:
    return BadInput(
        f"{path.name} is {kind}" + (f": {detail}" if detail else ""),
        where=str(path),
        expected="a file or a link to one: the loader under test opens everything with such a name",
        hint="finish the download, or move this elsewhere",
    )


def _no_directory(path: Path) -> BadInput:
    return BadInput(
        "not a directory" if os.path.lexists(path) else "no such directory",
        where=str(path),
        expected="a directory with config.json and safetensors files",
        hint="the path of a downloaded model, or harness checkpoint FAMILY OUT to write one",
    )


def _unreadable(path: Path, error: Exception) -> BadInput:
    return BadInput(
        f"cannot be read: {getattr(error, 'strerror', None) or error}",
        where=str(path),
        expected="a file or directory this user may read",
        hint="look at its permissions and at the disk",
    )
