"""Keeps the digests of checkpoints between runs, each under what its content is known by.

An entry is a digest file (:mod:`harness.compare.digest_file`) that names itself. Its name is a hash
of the place's :class:`harness.checkpoint.stores.location.Identity`, of the digest's definition and
of how the checkpoint was read, so whatever changes asks for another name, and no path, bucket or
URL stands in the cache. What lies there is looked at before it is believed: it has to be this
user's, in a directory that nobody else may write to, whole, and the entry it was asked for. What is
not is left alone with a line, and made again. Nothing here ends a verification.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from rich.filesize import decimal

from harness.base.errors import BadInput
from harness.base.writing import write
from harness.checkpoint.stores.location import Identity
from harness.compare.digest_file import FORMAT, MOST_BYTES, DigestFile, decoded
from harness.devices.digest import DEFINITION
from harness.families.model_checkpoint import ModelCheckpoint
from harness.load.environment import cache_directory
from harness.report.figures import counted

#: Bytes of all entries together: digests of some hundred checkpoints of 397B.
MOST_OF_ALL = 256 * 2**20
_SUFFIX = ".digests"
_SHOWN = 10
_UNFINISHED = ".harness-"  # as harness.base.writing calls what it has not finished
_LEFT_BEHIND = 3600.0  # seconds after which whoever wrote it is gone
_CAREFULLY = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def place() -> Path:
    """Where entries are: a directory of the harness's cache."""
    return cache_directory() / "digests"


class Entry(NamedTuple):
    """An entry: its file's name, its bytes, when it was written (seconds since 1970)."""

    name: str
    size: int
    written: float


class DigestCache:
    """The entries of this user.

    Args:
        directory: where they are; :func:`place` by default.
        most: bytes of all of them together.

    Attributes:
        notes: why something there was not used, or could not be kept, a line each.
    """

    def __init__(self, directory: Path | None = None, most: int = MOST_OF_ALL) -> None:
        self.directory = directory or place()
        self._most = most
        self.notes: list[str] = []

    def find(self, name: str) -> DigestFile | None:
        """The digests that were kept under a name; None where there are none to be believed."""
        try:
            with self._opened() as directory:
                content = _content(directory, name)
        except FileNotFoundError:
            return None
        except (OSError, _NotOurs) as error:
            return self._left(f"the digests kept in {self.directory} are not used: {_why(error)}")
        path = str(self.directory / name)
        try:
            found = decoded(content, path)
        except BadInput as error:
            return self._left(f"kept digests are not used, and are made again: {error.what}", path)
        if found.identity != name.removesuffix(_SUFFIX):
            return self._left("kept digests are not used: they are another entry's", path)
        return found

    def keep(self, name: str, digests: DigestFile) -> bool:
        """Keep digests under a name, and see that all entries together are not too large.

        Returns:
            Whether they are kept; a note says why not.
        """
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._opened() as directory:
                _remove_what_is_no_file(directory, name)
                content = digests.encoded(name.removesuffix(_SUFFIX))
                write(self.directory / name, content, durable=False)
                self._make_room(directory, name)
        except (OSError, _NotOurs) as error:
            self.notes.append(f"digests are not kept in {self.directory}: {_why(error)}")
            return False
        return True

    def entries(self) -> list[Entry]:
        """All entries, the oldest first; none where the directory is not to be believed."""
        try:
            with self._opened() as directory:
                found = _entries(directory)
        except FileNotFoundError:
            return []
        except (OSError, _NotOurs) as error:
            self.notes.append(f"{self.directory}: {_why(error)}")
            return []
        return [entry for entry in found if entry.name.endswith(_SUFFIX)]

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """The directory, opened; what becomes of its name afterwards is no matter.

        Raises:
            _NotOurs: others may write there.
            OSError: it is a link, or none.
        """
        directory = os.open(self.directory, _CAREFULLY | os.O_DIRECTORY)
        try:
            found = os.fstat(directory)
            if found.st_uid != os.geteuid():
                raise _NotOurs("the directory is another user's")
            if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise _NotOurs("others may write to the directory: chmod go-w")
            yield directory
        finally:
            os.close(directory)

    def _make_room(self, directory: int, but: str) -> None:
        """Remove the oldest entries beyond the bound, and what writers that are gone left.

        Two that do so at once remove the same ones, or one too many: none is missed but as one that
        was never made.
        """
        left, now = self._most, time.time()
        for entry in reversed(_entries(directory)):
            left -= entry.size
            unfinished = entry.name.startswith(_UNFINISHED)
            if entry.name != but and (
                now - entry.written > _LEFT_BEHIND if unfinished else left < 0
            ):
                with suppress(FileNotFoundError):
                    os.unlink(entry.name, dir_fd=directory)

    def _left(self, why: str, where: str = "") -> DigestFile | None:
        self.notes.append(f"{why} ({where})" if where else why)
        return None


class _NotOurs(Exception):
    """Somebody else decides on what lies there."""


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _content(directory: int, name: str) -> bytes:
    """An entry, read once: what is checked is what is used.

    Raises:
        _NotOurs: it is no file of this user's, or too large.
    """
    descriptor = os.open(name, _CAREFULLY, dir_fd=directory)
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise _NotOurs(f"{name} is no file of this user's")
        if found.st_size > MOST_BYTES:
            raise _NotOurs(f"{name} has {found.st_size} bytes")
        return file.read(MOST_BYTES)


def _remove_what_is_no_file(directory: int, name: str) -> None:
    """A link or a pipe in an entry's place would be written to."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=directory)


def _entries(directory: int) -> list[Entry]:
    found = []
    with os.scandir(directory) as names:
        for entry in names:
            with suppress(FileNotFoundError):  # removed meanwhile
                told = entry.stat(follow_symlinks=False)
                ours = entry.name.endswith(_SUFFIX) or entry.name.startswith(_UNFINISHED)
                if ours and stat.S_ISREG(told.st_mode):
                    found.append(Entry(entry.name, told.st_size, told.st_mtime))
    return sorted(found, key=lambda entry: entry.written)


class Keeping:
    """What a run does with the digests kept of one checkpoint.

    Args:
        checkpoint: it verifies, or digests.
        families: files that describe families.
        hashed: go by the files' hashes where their place keeps no versions; reads all of them.

    Attributes:
        plain: the name of the entry by the place's plain identity.
    """

    def __init__(
        self,
        checkpoint: ModelCheckpoint,
        families: Sequence[str | os.PathLike[str]] = (),
        *,
        hashed: bool = False,
    ) -> None:
        self._cache = DigestCache()
        self._identity = checkpoint.location.identity(hashed=hashed)
        self.plain = entry_name(checkpoint, families)
        self._name = entry_name(checkpoint, families, self._identity) if hashed else self.plain

    def found(self, does: Callable[[DigestFile], None]) -> DigestFile | None:
        """The kept digests, if there are any that do.

        Args:
            does: raises :class:`BadInput` where they are not of this checkpoint after all.
        """
        digests = self._cache.find(self._name) if self._name else None
        if digests is not None:
            try:
                does(digests)
            except BadInput as error:
                self._cache.notes.append(f"kept digests are not used: {error.what}")
                return None
        return digests

    def keep(self, digests: DigestFile) -> None:
        """Keep digests of the files as they were when the checkpoint was opened.

        They must not have changed since; whoever made the digests has looked.
        """
        if self._identity is None or not self._name:
            return
        if not self._identity.settled:
            self._cache.notes.append(
                "digests are not kept: a file was written less than two seconds before it was "
                "opened, and might be written again without a trace"
            )
        elif self._cache.keep(self._name, digests):
            self._cache.notes.append(
                f"digests kept by {self._identity.by}: the next run reads no weights"
            )

    @property
    def said(self) -> str:
        """What became of them, in words; empty where nothing did."""
        return "; ".join(self._cache.notes)


def entry_name(
    checkpoint: ModelCheckpoint,
    families: Iterable[str | os.PathLike[str]] = (),
    identity: Identity | None = None,
) -> str:
    """The name of a checkpoint's entry: another one if anything that digests follow from differs.

    That is its content, by the identity; which of its matrices are experts', and how they are
    turned, by its family and the storage of its parts, or by the file that describes the family;
    and the definition of the digest, which changes whenever a digest does.

    Args:
        checkpoint: whose digests they are.
        families: files that describe families.
        identity: of its place, that of the files which were opened; its plain one by default.

    Returns:
        A file's name; empty where nothing tells the content of such a place.
    """
    identity = identity or checkpoint.location.identity()
    if identity is None:
        return ""
    facts = {
        "format": FORMAT,
        "definition": DEFINITION,
        "harness": version("moe-load-harness"),
        "family": checkpoint.family.name,
        "storages": [[n.part, n.storage] for n in checkpoint.namings],
        "described": [hashlib.sha256(Path(f).read_bytes()).hexdigest() for f in families],
        "by": identity.by,
        "facts": identity.facts,
    }
    text = json.dumps(facts, sort_keys=True).encode()
    return hashlib.sha256(text).hexdigest() + _SUFFIX


def kept_lines() -> list[str]:
    """What is kept, in words: how much, then the newest entries, each with its size and age."""
    cache = DigestCache()
    entries = cache.entries()
    size = sum(entry.size for entry in entries)
    lines = [f"{counted(len(entries), 'checkpoint')} kept, {decimal(size)}: {cache.directory}"]
    for entry in entries[: -_SHOWN - 1 : -1]:
        if (found := cache.find(entry.name)) is not None:
            of = found.revision or found.contents.family
            days = max(time.time() - entry.written, 0) / 86_400
            lines.append(f"  {entry.name[:12]} of {of}, {decimal(entry.size)}, {days:.1f} days old")
    return lines + cache.notes
