"""Windows on files: what is seen is the file, nothing is lost where mapping is not to be had."""

from __future__ import annotations

import errno
import mmap
from pathlib import Path

import numpy as np
import pytest

from harness.errors import BadInput
from harness.places import window
from harness.places.directory import LocalFile

SIZE = 1 << 20


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalFile:
    """A MiB of random bytes, seen through windows of 64 KiB."""
    monkeypatch.setattr(window, "_STRETCH", 64 << 10)
    monkeypatch.setattr(window, "_PAGE", mmap.PAGESIZE)
    (tmp_path / "f").write_bytes(np.random.default_rng(1).bytes(SIZE))
    return LocalFile(tmp_path / "f")


def held(file: LocalFile, start: int, stop: int) -> bytes:
    return file.bits(start, "U8", (stop - start,)).tobytes()


def mappings(file: LocalFile) -> int:
    return Path("/proc/self/maps").read_text().count(str(file.path))


@pytest.mark.parametrize("start", [0, 8, 4088, 4096, 65528, 65536, 524288, SIZE - 8])
@pytest.mark.parametrize("size", [8, 4096, 65536, 65544, 200_000])
def test_what_is_seen_is_the_file(file: LocalFile, start: int, size: int) -> None:
    stop = min(start + size, SIZE)
    assert held(file, start, stop) == file.path.read_bytes()[start:stop]


def test_at_any_offset_and_in_any_shape(file: LocalFile) -> None:
    """Kernels take aligned words only, so an odd offset is copied."""
    raw = file.path.read_bytes()
    for offset in (16, 18, 21):
        bits = file.bits(offset, "BF16", (3, 5))
        assert bits.shape == (3, 5)
        assert bits.flags.aligned
        assert bits.tobytes() == raw[offset : offset + 30]


def test_what_is_seen_cannot_be_written_to(file: LocalFile) -> None:
    with pytest.raises(ValueError, match="read-only"):
        file.bits(0, "U8", (8,))[0] = 1


def test_a_thread_has_two_windows(file: LocalFile) -> None:
    """So much of a file is the process's memory, however much of it was read."""
    for start in range(0, SIZE, 4096):
        held(file, start, start + 4096)
    assert mappings(file) == 2
    kept = file.bits(0, "U8", (8,))
    for start in (SIZE // 2, SIZE - 8):
        held(file, start, start + 8)
    assert mappings(file) == 3
    assert kept.tobytes() == file.path.read_bytes()[:8]


def test_two_files_in_turn_are_mapped_once(
    file: LocalFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an expert gate and up may lie in one file, down in another."""
    other = LocalFile(file.path.with_name("other"))
    other.path.write_bytes(bytes(SIZE))
    opened: list[Path] = []
    opening = window._opened

    def noting(owner: object, path: Path, start: int, stop: int) -> window._Window:
        opened.append(path)
        return opening(owner, path, start, stop)

    monkeypatch.setattr(window, "_opened", noting)
    for start in range(0, 64 << 10, 4096):
        assert held(file, start, start + 8) == file.path.read_bytes()[start : start + 8]
        assert held(other, start, start + 8) == bytes(8)
    assert opened == [file.path, other.path]
    for start in (1, 2, 3):  # gate and up have twice the bytes
        held(file, start * (64 << 10), start * (64 << 10) + 8)
        held(other, 0, 8)
    assert opened == [file.path, other.path, *3 * [file.path]]


def test_a_file_that_was_opened_anew_is_looked_at_anew(file: LocalFile) -> None:
    held(file, 0, 8)
    other = file.path.with_name("other")
    other.write_bytes(bytes(SIZE))
    other.replace(file.path)
    assert held(LocalFile(file.path), 0, 8) == bytes(8)


@pytest.mark.parametrize("wanted", [(0, 4096), (SIZE - 4096, SIZE)])
def test_a_file_that_was_cut_short_is_named(file: LocalFile, wanted: tuple[int, int]) -> None:
    """Also within a window that is open: touching what is gone would end the process."""
    held(file, *wanted)
    file.path.write_bytes(b"")
    with pytest.raises(BadInput, match="the file ends 4096 bytes too early"):
        held(file, *wanted)


def test_a_file_that_lost_its_last_bytes_is_named(file: LocalFile) -> None:
    """Within a page there is no signal: what was cut off reads as zeros."""
    held(file, SIZE - 4096, SIZE)
    with file.path.open("r+b") as opened:
        opened.truncate(SIZE - 100)
    with pytest.raises(BadInput, match="the file ends 100 bytes too early"):
        held(file, SIZE - 4096, SIZE)


@pytest.mark.parametrize("lacking", ["mmap", "madvise"])
def test_where_files_cannot_be_mapped_they_are_read(
    file: LocalFile, lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network file systems map nothing; kernels before 5.14 know no MADV_POPULATE_READ."""

    def no_device(*args: object, **options: object) -> object:
        raise OSError(errno.ENODEV, "No such device")

    if lacking == "mmap":
        monkeypatch.setattr(mmap, "mmap", no_device)
    else:
        monkeypatch.setattr(window, "_POPULATE_READ", 4711)
    bits = file.bits(64, "U8", (4096,))
    assert bits.tobytes() == file.path.read_bytes()[64:4160]
    assert bits.flags.writeable  # a copy
