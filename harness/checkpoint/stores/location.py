"""What every place offers: names of files, and bits of them by ranges."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from harness.base.bits import Bits


class File(ABC):
    """One file of a checkpoint.

    Attributes:
        name: relative to the place, as an index names it.
        size: bytes.
    """

    name: str
    size: int

    @abstractmethod
    def __str__(self) -> str:
        """The full path or URL."""

    @abstractmethod
    def read(self, start: int, stop: int) -> bytes:
        """Bytes ``start`` to ``stop``, fewer where the file ends before.

        Raises:
            BadInput: it cannot be read.
        """

    @abstractmethod
    def bits(
        self, offset: int, dtype: str, shape: tuple[int, ...], within: tuple[int, int] | None = None
    ) -> Bits:
        """An array's raw bits, from byte ``offset`` on; nothing else of the file need be read.

        Args:
            offset: bytes from the file's start.
            dtype: the safetensors name of the element type.
            shape: the array's.
            within: where in the file the tensor begins and ends, if the array is a piece of one
                that is read whole: what lies around it may be read along.

        Raises:
            BadInput: it cannot be read.
        """

    def stream(
        self, offset: int, nbytes: int, buffer: Bits, within: tuple[int, int] | None = None
    ) -> Iterator[Bits]:
        """Bytes from ``offset`` on, in order: as many at a time as the buffer has, or all at once.

        Args:
            offset: bytes from the file's start.
            nbytes: how many.
            buffer: uint8, which the bytes may be read into; what was yielded then goes with the
                next.
            within: see :meth:`bits`.

        Raises:
            BadInput: they cannot be read.
        """
        if nbytes:
            yield self.bits(offset, "U8", (nbytes,), within)

    def by_descriptor(self, offset: int, nbytes: int, read: Callable[[int], int]) -> int:
        """Have compiled code read bytes from ``offset`` on, by the descriptor it is given.

        Args:
            offset: bytes from the file's start.
            nbytes: how many are to be read.
            read: reads them, and says how much it could.

        Returns:
            What ``read`` did; 0 where there is no descriptor.

        Raises:
            BadInput: the file cannot be opened.
        """
        return 0

    def known(self) -> Mapping[str, str]:
        """What its place knows of its content without reading it: checksums, a tag of its version.

        Raises:
            BadInput: the place could not be asked.
        """
        return {}

    @abstractmethod
    def require_checksum(self) -> bool:
        """Read the whole file and compare it with the checksums its place keeps.

        Returns:
            Whether there was any to compare with.

        Raises:
            BadInput: one differs.
        """


class Identity(NamedTuple):
    """What a place's content is known by, without a look at it: the same facts, the same bytes.

    Attributes:
        by: what kind of facts they are, in words.
        facts: which may hold names of buckets and paths.
        settled: whether content that changes from now on gets other facts. A file that was written
            to a moment ago may be written to again within one tick of its file system's clock.
    """

    by: str
    facts: tuple[str, ...]
    settled: bool = True


class Location(ABC):
    """Where a checkpoint's files lie.

    Attributes:
        model: what vLLM is given as the model's path.
        files: the files by name, those beside ``config.json`` only: the streamer, too, looks at
            no folder below.
    """

    model: str
    files: Mapping[str, File]

    @abstractmethod
    def __str__(self) -> str:
        """The place as the user named it."""

    @property
    def revision(self) -> str:
        """``org/name@commit`` where it is a snapshot of the hub's, else empty."""
        return ""

    def identity(self, *, hashed: bool = False) -> Identity | None:
        """What the content of its files is known by; None where nothing tells.

        Args:
            hashed: read all of it, and go by hashes, where the place keeps no versions.

        Raises:
            BadInput: it cannot be read.
        """
        return None

    def where(self, name: str) -> str:
        """The full path or URL that a file ``name`` has, or would have."""
        return f"{self}/{name}"

    def require_unchanged(self) -> None:
        """Look whether what was loaded is what was found here first.

        A store has nothing to look at: it is asked for the versions that were listed, and refuses.

        Raises:
            BadInput: a file is gone, was replaced or was written to since the place was opened.
        """
        return
