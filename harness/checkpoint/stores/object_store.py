"""An object store: ranges of objects, read when they are asked for, through a bounded cache.

What S3 and GCS have in common. A bucket's client lists objects and reads ranges; everything else
is here: names, arrays, the cache, and the checksums the store keeps. No store is trusted: whatever
its client raises becomes :class:`BadInput` (:mod:`harness.checkpoint.stores.trouble`), whatever it
lists is looked at, and no answer takes longer or more memory than what was asked for.
"""

from __future__ import annotations

import base64
import hashlib
import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np

from harness.base.bits import ITEMSIZE, Bits, bits_dtype
from harness.base.errors import BadInput
from harness.checkpoint.stores.location import File, Identity, Location
from harness.checkpoint.stores.range_cache import RangeCache
from harness.checkpoint.stores.trouble import LIMITS

#: What one request takes of a tensor that is read whole, in pieces: a piece alone is a few MiB.
BLOCK_BYTES = 32 * 2**20
_CHUNK = 8 * 2**20


@dataclass(frozen=True)
class StoredObject:
    """One object: its bytes, the tag of its version, its checksums by algorithm, in base64."""

    size: int
    version: str
    checksums: Mapping[str, str] = field(default_factory=dict)


class Bucket(ABC):
    """A bucket's client. Every call ends within a bounded time.

    Attributes:
        endpoint: the URL that it asks, for telling stores apart.
    """

    endpoint: str = ""

    @abstractmethod
    def list(self, prefix: str) -> dict[str, StoredObject]:
        """The objects right under ``prefix``, by their name without it."""

    @abstractmethod
    def read(self, key: str, version: str, start: int, stop: int) -> bytes:
        """Bytes ``start`` to ``stop`` of that version of an object.

        Raises:
            BadInput: it cannot be read, or is another version by now.
        """

    @abstractmethod
    def checksums(self, key: str) -> Mapping[str, str]:
        """The checksums of a whole object, by algorithm, in base64."""


def listed(
    url: str,
    prefix: str,
    objects: Iterable[tuple[object, object, object]],
    most: int = LIMITS.most_objects,
) -> dict[str, StoredObject]:
    """What a store lists, by name: those right under ``prefix``, however many it gave.

    Args:
        url: of the prefix, for messages.
        prefix: empty, or ending in a slash.
        objects: key, size and version of each.
        most: how many there may be.

    Raises:
        BadInput: one lacks its name, size or version, without which nothing tells that it changed
            while it was read; it is none of what was asked for; or there is no end to them.
    """
    found: dict[str, StoredObject] = {}
    for number, (key, size, version) in enumerate(objects):
        if number >= most:
            raise _no_listing(url, f"the store lists more than {most} objects")
        if not (isinstance(key, str) and key):
            raise _no_listing(url, "the store lists an object without a name")
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise _no_listing(url, f"the store lists {key!r:.200} without a size")
        if not (isinstance(version, str) and version):
            raise _no_listing(url, f"the store lists {key!r:.200} without a version")
        if not key.startswith(prefix):
            raise _no_listing(url, f"the store lists {key!r:.200}, which is not under the prefix")
        name = key.removeprefix(prefix)
        if name and "/" not in name:
            found[name] = StoredObject(size, version)
    return found


def _no_listing(url: str, what: str) -> BadInput:
    return BadInput(
        what,
        where=url,
        expected="a listing with the name, the size, and the ETag or generation of each object",
        hint="another endpoint: this one does not list as S3 and GCS do; or copy the checkpoint "
        "to a directory and verify that",
    )


class StoreFile(File):
    """An object under a store's prefix."""

    def __init__(self, store: Store, name: str, stored: StoredObject) -> None:
        self.name = name
        self.size = stored.size
        self._store = store
        self._version = stored.version

    def __str__(self) -> str:
        return self._store.where(self.name)

    def read(self, start: int, stop: int) -> bytes:
        """See :meth:`File.read`."""
        stop = min(stop, self.size)
        if start >= stop:
            return b""
        return self._store.cache.get((self.name, start, stop), lambda: self._fetch(start, stop))

    def bits(
        self, offset: int, dtype: str, shape: tuple[int, ...], within: tuple[int, int] | None = None
    ) -> Bits:
        """A read-only array of the range; a request, unless the cache has it.

        With ``within``, a request takes a whole block, for the neighbours that are read next.
        """
        stop = offset + math.prod(shape) * ITEMSIZE[dtype]
        content = self._from_blocks(offset, stop, *within) if within else self.read(offset, stop)
        return np.frombuffer(content, dtype=bits_dtype(dtype)).reshape(shape)

    def _from_blocks(self, start: int, stop: int, first: int, last: int) -> bytes | memoryview:
        """Bytes ``start`` to ``stop``, cut out of the blocks of ``first`` to ``last``."""
        if start >= stop:
            return b""
        size = self._store.block_bytes
        begin = first + (start - first) // size * size
        parts = [
            memoryview(self.read(at, min(at + size, last)))[max(start - at, 0) : stop - at]
            for at in range(begin, stop, size)
        ]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    @property
    def version(self) -> str:
        """The tag of its version."""
        return self._version

    def known(self) -> Mapping[str, str]:
        """The object's version, as the store tags it, and the checksums the store keeps."""
        return {"version": self._version, **self._store.bucket.checksums(self._key)}

    def require_checksum(self) -> bool:
        """Read the whole object, past the cache, and compare it with the store's checksums."""
        wanted = {
            algorithm: value
            for algorithm, value in self._store.bucket.checksums(self._key).items()
            if algorithm in _DIGESTS
        }
        for algorithm, found in digests(self._chunks(), wanted).items():
            if found != wanted[algorithm]:
                raise BadInput(
                    f"the object's {algorithm} is {found}",
                    where=str(self),
                    expected=f"{wanted[algorithm]}, as the store keeps it",
                    hint="the object was damaged after its upload: upload it again",
                )
        return bool(wanted)

    @property
    def _key(self) -> str:
        return self._store.prefix + self.name

    def _chunks(self) -> Iterator[bytes]:
        for start in range(0, self.size, _CHUNK):
            yield self._fetch(start, min(start + _CHUNK, self.size))

    def _fetch(self, start: int, stop: int) -> bytes:
        content = self._store.bucket.read(self._key, self._version, start, stop)
        if len(content) != stop - start:
            raise BadInput(
                f"the store gave {len(content)} bytes of range {start}-{stop}",
                where=str(self),
                expected=f"{stop - start} bytes",
                hint="try again; the object or the connection is broken",
            )
        return content


class Store(Location):
    """The objects under a prefix of a bucket.

    Args:
        url: ``scheme://bucket/prefix``, as vLLM is given it.
        bucket: the bucket's client.
        prefix: empty, or ending in a slash.
        block_bytes: what one request takes of a tensor that is read in pieces.

    Raises:
        BadInput: the bucket cannot be read, or holds nothing under the prefix.
    """

    def __init__(
        self, url: str, bucket: Bucket, prefix: str, block_bytes: int = BLOCK_BYTES
    ) -> None:
        self.model = url
        self.bucket = bucket
        self.prefix = prefix
        self.block_bytes = block_bytes
        self.cache = RangeCache()
        objects = bucket.list(prefix)
        self.files: dict[str, StoreFile] = {
            name: StoreFile(self, name, objects[name]) for name in sorted(objects)
        }
        if not self.files:
            raise BadInput(
                "no objects under this prefix",
                where=url,
                expected="config.json and safetensors files right under it",
                hint="list the bucket with its own command line; prefixes are case-sensitive",
            )

    def __str__(self) -> str:
        return self.model

    def identity(self, *, hashed: bool = False) -> Identity | None:
        """See :meth:`Location.identity`: versions, of this bucket of this store."""
        objects = (f"{name} {file.size} {file.version}" for name, file in self.files.items())
        return Identity(
            "its objects' versions", (_host(self.bucket.endpoint), self.model, *objects)
        )


def _host(url: str) -> str:
    """Which store answers at a URL, without what may be a credential in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


class _Crc32:
    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


def _crc32c() -> object:
    import google_crc32c  # comes with google-cloud-storage

    return google_crc32c.Checksum()


#: S3 calls them CRC32, CRC32C, SHA1 and SHA256 (``ChecksumCRC32`` and so on, AWS SDK), GCS
#: ``md5Hash`` and ``crc32c`` (objects resource); all base64 of big-endian bytes.
_DIGESTS: Mapping[str, Callable[[], object]] = {
    "MD5": lambda: hashlib.md5(usedforsecurity=False),
    "CRC32": _Crc32,
    "CRC32C": _crc32c,
    "SHA1": lambda: hashlib.sha1(usedforsecurity=False),
    "SHA256": hashlib.sha256,
}


def digests(chunks: Iterator[bytes], algorithms: Mapping[str, str]) -> dict[str, str]:
    """The digests of a stream by each of ``algorithms``, in base64; unknown ones left out."""
    running = {name: _DIGESTS[name]() for name in algorithms if name in _DIGESTS}
    for chunk in chunks if running else ():
        for digest in running.values():
            digest.update(chunk)  # type: ignore[attr-defined]
    return {
        name: base64.b64encode(digest.digest()).decode()  # type: ignore[attr-defined]
        for name, digest in running.items()
    }
