"""Files of a directory: what is read is the file, and one that changed meanwhile is named."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from harness.base.bits import Bits
from harness.base.errors import BadInput
from harness.checkpoint.stores.directory import Directory, LocalFile

SIZE = 1 << 16


@pytest.fixture
def file(tmp_path: Path) -> LocalFile:
    """Random bytes."""
    (tmp_path / "f").write_bytes(np.random.default_rng(1).bytes(SIZE))
    return LocalFile(tmp_path / "f")


def held(file: LocalFile, start: int, stop: int) -> Bits:
    return file.bits(start, "U8", (stop - start,))


@pytest.mark.parametrize("start", [0, 8, 4088, 4096, SIZE - 8])
@pytest.mark.parametrize("size", [0, 8, 4096, SIZE])
def test_what_is_read_is_the_file(file: LocalFile, start: int, size: int) -> None:
    stop = min(start + size, SIZE)
    assert held(file, start, stop).tobytes() == file.path.read_bytes()[start:stop]


def test_at_any_offset_and_in_any_shape(file: LocalFile) -> None:
    raw = file.path.read_bytes()
    for offset in (16, 18, 21):
        bits = file.bits(offset, "BF16", (3, 5))
        assert bits.shape == (3, 5)
        assert bits.flags.aligned
        assert bits.tobytes() == raw[offset : offset + 30]


def test_a_system_that_reads_less_than_was_asked_for(
    file: LocalFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux reads no more than 2 GiB at once."""
    read = os.preadv

    def at_most_1000(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        return read(descriptor, [buffers[0][:1000]], offset)

    monkeypatch.setattr(os, "preadv", at_most_1000)
    assert held(file, 8, SIZE).tobytes() == file.path.read_bytes()[8:]


def test_no_descriptor_is_left_open(file: LocalFile) -> None:
    before = len(os.listdir("/proc/self/fd"))
    held(file, 0, SIZE)
    with pytest.raises(BadInput):
        held(file, 0, SIZE + 1)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("lost", [SIZE, 100])
def test_a_file_that_was_cut_short_is_named(file: LocalFile, lost: int) -> None:
    held(file, SIZE - 4096, SIZE)
    os.truncate(file.path, SIZE - lost)
    with pytest.raises(BadInput, match=f"the file ends {min(lost, 4096)} bytes too early"):
        held(file, SIZE - 4096, SIZE)


def test_a_file_that_is_gone_is_named(file: LocalFile) -> None:
    file.path.unlink()
    with pytest.raises(BadInput, match="No such file"):
        held(file, 0, 8)


def deleted(path: Path) -> None:
    path.unlink()


def cut_short(path: Path) -> None:
    os.truncate(path, SIZE // 2)


def replaced(path: Path) -> None:
    """By its like, of the same size and time."""
    other = path.with_suffix(".other")
    shutil.copy2(path, other)
    other.replace(path)


def written_to(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"x")


def written_to_in_secret(path: Path) -> None:
    """The time of its last change is set back."""
    written_to(path)
    os.utime(path, ns=(0, 0))


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def given_another_target(path: Path) -> None:
    """As in the hub's cache, where files are links."""
    target = path.with_name("blob")
    shutil.copy2(path, target)
    path.unlink()
    path.symlink_to(target)


CHANGES: dict[Callable[[Path], None], str] = {
    deleted: "No such file", cut_short: f"had {SIZE} bytes and has {SIZE // 2}",
    written_to_in_secret: "it was written to",
    replaced: "another file has its name", written_to: "it was written to",
    a_folder: "it is no file any more", given_another_target: "another file has its name",
}  # fmt: skip


@pytest.mark.parametrize("name", ["model-1.safetensors", "config.json"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_file_that_changed_is_named(
    change: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(bytes(SIZE))
    os.utime(tmp_path / name, ns=(0, 0))
    place = Directory(tmp_path)
    place.require_unchanged()
    change(tmp_path / name)
    with pytest.raises(BadInput, match=CHANGES[change]) as raised:
        place.require_unchanged()
    assert raised.value.where == str(tmp_path / name)


def test_what_is_no_part_of_a_checkpoint_may_change(tmp_path: Path) -> None:
    (tmp_path / "load.log").touch()
    place = Directory(tmp_path)
    (tmp_path / "load.log").write_text("a line")
    (tmp_path / "report.json").touch()
    place.require_unchanged()
    (tmp_path / "new.safetensors").touch()
    with pytest.raises(BadInput, match="it was not there before"):
        place.require_unchanged()
