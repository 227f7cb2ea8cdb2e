"""What a store's ranges cost: requests, memory, and nothing lost between threads."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness.base.errors import BadInput
from harness.checkpoint.safetensors_file import TensorEntry
from harness.checkpoint.stores.object_store import BLOCK_BYTES, Bucket, Store, StoredObject
from harness.checkpoint.stores.range_cache import RangeCache

MIB = 2**20


def test_the_cache_is_bounded() -> None:
    cache, reads = RangeCache(limit=10), []

    def read(name: str, size: int) -> None:
        cache.get((name, 0, size), lambda: reads.append(name) or bytes(size))  # type: ignore[func-returns-value]

    for name, size in [("a", 4), ("b", 4), ("a", 4), ("c", 4), ("b", 4), ("d", 11), ("b", 4)]:
        read(name, size)
        assert cache.nbytes <= 10
    assert reads == ["a", "b", "c", "b", "d"]


def test_threads_share_a_small_cache() -> None:
    """Each gets what it asked for, and the books are right when all have ended."""
    cache = RangeCache(limit=64)

    def ask(seed: int) -> None:
        chosen = random.Random(seed)
        for _ in range(3000):
            name, size = str(chosen.randrange(9)), chosen.randrange(1, 40)
            assert cache.get((name, 0, size), lambda n=name, s=size: n.encode() * s) == (  # type: ignore[misc]
                name.encode() * size
            )

    with ThreadPoolExecutor(8) as threads:
        for ended in [threads.submit(ask, seed) for seed in range(8)]:
            ended.result()
    assert cache.nbytes == sum(stop - start for _, start, stop in cache.kept) <= 64


def test_a_range_that_is_being_read_is_not_read_again() -> None:
    cache, reads, go_on = RangeCache(), [], threading.Event()

    def read() -> bytes:
        reads.append(1)
        assert go_on.wait(60)
        return b"ab"

    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(cache.get, ("x", 0, 2), read) for _ in range(8)]
        go_on.set()
        assert {one.result() for one in asked} == {b"ab"}
    assert reads == [1]


def test_what_could_not_be_read_is_asked_for_again() -> None:
    cache = RangeCache()

    def fail() -> bytes:
        raise BadInput("no such object", where="s3://b/x", expected="one", hint="look")

    with pytest.raises(BadInput, match="no such object"):
        cache.get(("x", 0, 2), fail)
    assert cache.nbytes == 0
    assert cache.get(("x", 0, 2), lambda: b"ab") == b"ab"


class Counting(Bucket):
    """A bucket of one object, whose byte ``n`` is ``n % 251`` where it is small, else zeros."""

    def __init__(self, size: int) -> None:
        self.content = bytes(n % 251 for n in range(size)) if size <= MIB else b""
        self.size = size
        self.asked: list[tuple[int, int]] = []

    def list(self, prefix: str) -> dict[str, StoredObject]:
        return {"x": StoredObject(self.size, "1")}

    def read(self, key: str, version: str, start: int, stop: int) -> bytes:
        self.asked.append((start, stop))
        return self.content[start:stop] if self.content else bytes(stop - start)

    def checksums(self, key: str) -> Mapping[str, str]:
        return {}


def entry(
    bucket: Bucket, shape: tuple[int, ...], offset: int, block_bytes: int = BLOCK_BYTES
) -> TensorEntry:
    store = Store("s3://b", bucket, "", block_bytes)
    return TensorEntry("t", "BF16", shape, store.files["x"], offset)


def test_what_an_embedding_costs() -> None:
    """622 MB, read in pieces of 4 MiB by threads: a request for each 32 MiB, each byte once."""
    bucket = Counting(151_936 * 4096 + 500)
    embedding = entry(bucket, (151_936, 2048), 200)
    starts = range(0, 151_936, 1024)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda at: embedding.bits((slice(at, at + 1024),)).shape, starts))
    assert len(bucket.asked) == len(set(bucket.asked)) == 19
    assert sum(stop - start for start, stop in bucket.asked) == embedding.nbytes


def test_pieces_are_cut_out_of_blocks() -> None:
    """A piece within a block, one over a border, one over three blocks, the last and none."""
    bucket = Counting(1000)
    tensor = entry(bucket, (20, 3), 7, block_bytes=32)
    whole = tensor.bits()
    for start, stop in [(0, 4), (4, 8), (1, 17), (19, 20), (5, 5), (20, 25)]:
        assert (tensor.bits((slice(start, stop),)) == whole[start:stop]).all()
    assert bucket.asked[1:] == [(7, 39), (39, 71), (71, 103), (103, 127)]


def test_an_expert_alone_is_read_alone() -> None:
    bucket = Counting(64 * MIB)
    entry(bucket, (8, 1024, 1024), 10).bits((3,))
    assert bucket.asked == [(10 + 6 * MIB, 10 + 8 * MIB)]
