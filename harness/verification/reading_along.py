"""Reads and digests the reference while the load runs, in a process of its own.

The rule of the choice, :func:`threads_along`: devices have memory of their own, so that digests are
compared; the load streams the very files, whole, from a directory, so that reading them again finds
them in the page cache; and there are cores to spare. Anywhere else the reference is read after the
load, by all cores.

The load is not to notice. The process runs when a core has nothing else to do (``SCHED_IDLE``), has
an interpreter of its own, whose lock the load does not wait for, and reads of a file what the page
cache holds already: nothing is fetched from a disk for it. When the load has ended it gives what it
has digested by then; whatever that is not, the comparison reads as ever. It ends with the process
that started it, however that ends.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np

from harness.base.bits import Bits
from harness.base.errors import HarnessError, InternalError, SentError
from harness.checkpoint.stores.directory import Directory, LocalFile
from harness.compare.authority import WEIGHTS, DigestedWeights, Weights, What
from harness.compare.digesting import Work, work_of
from harness.devices.digest import Words, warm_up
from harness.families.experts import ExpertKey
from harness.families.family import Storage
from harness.families.known_families import bring
from harness.families.model_checkpoint import ModelCheckpoint
from harness.load.guard import die_with_parent


@dataclass
class AlongRule:
    """When the reference is read along with a load, and how.

    Attributes:
        least_cores: with fewer a load keeps them busy: of two it has 1.8 (docs/speed.md).
        threads: that read along. A core digests 5 GB/s or more, a load streams 0.3.
        idle: whether it runs only when a core has nothing else to do.
        end_seconds: for a process that was told to end: a turn takes a tenth of that.
    """

    least_cores: int = 8
    threads: int = 2
    idle: bool = True
    end_seconds: float = 2.0


#: The rule of this process.
RULE = AlongRule()
_TURN = 64  # pieces of work that are looked for in the page cache at a time
_WAIT_SECONDS = 0.1  # until the page cache is asked again


class Along(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is asked for.

    ``parent`` is the process it ends with; ``idle`` says that all others go first.
    """

    checkpoint: str
    storage: Storage | None
    families: tuple[str, ...]
    threads: int
    parent: int
    idle: bool = True


class FoundAlong(msgspec.Struct, kw_only=True):
    """What it has found: words of digests as bytes; or why it could not go on."""

    experts: Sequence[tuple[ExpertKey, str, bytes]] = ()
    tensors: Sequence[tuple[str, str, bytes]] = ()
    error: SentError | None = None

    def authority(self) -> Weights:
        """The weights, with what is known of them.

        Raises:
            HarnessError: that with which the reading ended.
        """
        if self.error:
            raise self.error.error()
        known: dict[tuple[What, str], Words] = {}
        for found in (self.experts, self.tensors):
            known |= {(what, dtype): np.frombuffer(w, "<u4") for what, dtype, w in found}
        return DigestedWeights(known)


def threads_along(
    checkpoint: ModelCheckpoint,
    *,
    by_digests: bool,
    whole: bool,
    read: bool,
    cores: int | None = None,
) -> int:
    """How many threads read along with a load; 0 where the reference is read after it.

    Args:
        checkpoint: what is loaded.
        by_digests: whether devices are asked for digests of what they hold.
        whole: whether all of the checkpoint is loaded, and every bit compared, on one host.
        read: whether the reference's weights are to be read, and are those that are loaded.
        cores: those that this process may use.
    """
    cores = len(os.sched_getaffinity(0)) if cores is None else cores
    here = isinstance(checkpoint.location, Directory)
    able = by_digests and whole and read and here and checkpoint.format is None
    return RULE.threads if able and cores >= RULE.least_cores else 0


class ReadingAlong:
    """The process, as whoever started it has it.

    Raises:
        OSError: it could not be started.
    """

    def __init__(self, asked: Along) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "harness.verification.reading_along"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stdin
        self._process.stdin.write(msgspec.json.encode(asked) + b"\n")
        self._process.stdin.flush()

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.poll() is not None

    def authority(self) -> Weights:
        """End it; the weights, with what it knows of them.

        That is nothing where it was killed, or has no core to say it: then all cores are busy.

        Raises:
            HarnessError: a file could not be read.
        """
        try:
            answer, _ = self._process.communicate(timeout=RULE.end_seconds)
            return msgspec.msgpack.decode(answer, type=FoundAlong).authority()
        except (subprocess.TimeoutExpired, msgspec.MsgspecError, OSError):
            return WEIGHTS
        finally:
            self.close()

    def close(self) -> None:
        """End it, whatever it is at."""
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(RULE.end_seconds)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()


def read_along(
    work: Iterable[Work],
    ended: threading.Event,
    threads: int,
    is_there: Callable[[Work], bool],
) -> FoundAlong:
    """Digest what is there, until all is done or the load has ended.

    Args:
        work: what there is to be digested.
        ended: set when the load has.
        threads: how many read.
        is_there: whether reading something costs no more than memory.
    """
    sums: dict[tuple[What, str], Words] = {}
    left: dict[What, int] = {}
    pending = deque(work)
    try:
        with ThreadPoolExecutor(threads) as pool:
            while pending and not ended.is_set():
                looked_at = [pending.popleft() for _ in range(min(_TURN, len(pending)))]
                turn = [each for each in looked_at if is_there(each)]
                pending.extend(each for each in looked_at if each not in turn)
                for each, found in zip(turn, pool.map(_run, turn), strict=True):
                    for what in {what for what, *_ in found}:
                        left[what] = left.get(what, each.pieces) - 1
                    for what, dtype, words in found:
                        sums[what, dtype] = sums.get((what, dtype), np.uint32(0)) + words
                if not turn:
                    ended.wait(_WAIT_SECONDS)
    except HarnessError as error:
        return FoundAlong(error=SentError.of(error))
    whole = [(w, t, words.astype("<u4").tobytes()) for (w, t), words in sums.items() if not left[w]]
    return FoundAlong(
        experts=[(w, t, words) for w, t, words in whole if isinstance(w, ExpertKey)],
        tensors=[(w, t, words) for w, t, words in whole if isinstance(w, str)],
    )


def _run(work: Work) -> list[tuple[What, str, Words]]:
    return work.run()


class PageCache:
    """What of local files the kernel has in memory (``mincore``); asking reads nothing."""

    def __init__(self) -> None:
        self._mapped: dict[LocalFile, _Mapped] = {}
        self._mincore = ctypes.CDLL(None).mincore

    def has(self, work: Work) -> bool:
        """Whether it has all of some work's bytes."""
        return all(
            self.has_bytes(entry.file, entry.offset + first, nbytes)
            for entry, first, nbytes in work.extents
            if isinstance(entry.file, LocalFile)
        )

    def has_bytes(self, file: LocalFile, offset: int, nbytes: int) -> bool:
        """Whether it has bytes of a file; of one that cannot be mapped, reading will tell."""
        try:
            mapped = self._mapped.get(file) or self._mapped.setdefault(file, _mapped(file))
        except (OSError, ValueError):
            return True
        first = offset // mmap.PAGESIZE * mmap.PAGESIZE
        pages = np.zeros(-(-(offset + nbytes - first) // mmap.PAGESIZE), np.uint8)
        failed = self._mincore(
            ctypes.c_void_p(mapped.address + first), ctypes.c_size_t(offset + nbytes - first),
            ctypes.c_void_p(pages.ctypes.data),
        )  # fmt: skip
        return bool(failed) or bool((pages & 1).all())


class _Mapped(NamedTuple):
    """A file's place in this process's memory; nothing there is ever touched."""

    address: int
    bytes: Bits


def _mapped(file: LocalFile) -> _Mapped:
    with open(file.path, "rb") as opened:
        held = np.frombuffer(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    return _Mapped(held.ctypes.data, held)


def _lines_end(ended: threading.Event) -> None:
    """Wait for the end of standard input."""
    while os.read(0, 1):
        pass
    ended.set()


def _answers() -> Iterator[FoundAlong]:
    """What was asked on standard input, answered."""
    asked = msgspec.json.decode(sys.stdin.buffer.readline(), type=Along)
    die_with_parent(asked.parent)
    if asked.idle:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    ended = threading.Event()
    threading.Thread(target=_lines_end, args=(ended,), daemon=True).start()
    try:
        bring(asked.families)
        warm_up()
        checkpoint = ModelCheckpoint(asked.checkpoint, asked.storage)
        yield read_along(work_of(checkpoint), ended, asked.threads, PageCache().has)
    except HarnessError as error:
        yield FoundAlong(error=SentError.of(error))
    except Exception as error:
        yield FoundAlong(error=SentError.of(InternalError.of(error)))


def main() -> None:
    """Answer, and end: what was printed meanwhile goes to standard error."""
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        for known in _answers():
            answers.write(msgspec.msgpack.encode(known))


if __name__ == "__main__":
    main()
    sys.stderr.flush()
    os._exit(0)  # the thread that waits for the end of standard input may still do
