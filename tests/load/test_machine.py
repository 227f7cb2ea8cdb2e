"""A machine that is full, read-only or tight: a clear verdict in bounded time, nothing left."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.base.errors import InternalError, TargetUnavailable
from harness.load.engine import is_of_a_lock
from harness.load.process import LoadProcess, LoadProcessError
from harness.load.target import Target

pytestmark = pytest.mark.alone

IDLE = "tests.support.idle_jobs:"


def run(process: LoadProcess, job: str) -> bytes:
    return process.run(IDLE + job, b"on", process.target, timeout=60)


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB, for temporary files."""
    place = tmp_path / "tiny"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=10", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("file systems of its own: this user cannot mount any")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("optimize", ["1", "2"])
def test_the_stack_is_loaded_with_its_asserts(
    optimize: str, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are its checks; without one the hook of the canary would look away."""
    monkeypatch.setenv("PYTHONOPTIMIZE", optimize)
    with LoadProcess(target, preload=False) as process:
        assert run(process, "is_asserting") == b"True"


def test_a_process_that_may_open_too_few_files_is_not_started(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    with (
        LoadProcess(target, preload=False) as process,
        pytest.raises(TargetUnavailable, match="no more than 64 files may be open at once"),
    ):
        run(process, "echo")


def test_a_soft_limit_is_raised_for_the_load(target: Target) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(100, limits[1]), limits[1]))
    try:
        with LoadProcess(target, preload=False) as process:
            assert int(run(process, "limit_of_files")) == min(limits[1], 65536)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.fixture
def all_descriptors() -> Iterator[list[int]]:
    """Every descriptor this process may have: close one, and one is free."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    taken = [os.open(os.devnull, os.O_RDONLY)]
    with contextlib.suppress(OSError):
        while True:
            taken.append(os.dup(taken[0]))
    yield taken
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    for descriptor in taken:
        os.close(descriptor)


def test_no_descriptor_left(target: Target, all_descriptors: list[int]) -> None:
    """Whichever step wants the one too many: the error is the machine's, and it passes."""
    refused = 0
    with LoadProcess(target, preload=False) as process:
        while all_descriptors:
            try:
                assert run(process, "echo") == b"on"
            except TargetUnavailable as error:
                assert "Too many open files" in error.what  # noqa: PT017
                os.close(all_descriptors.pop())
                refused += 1
            else:
                break
    assert refused > 3


def test_temporary_files_where_nothing_can_be_made(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory was there when Python looked for one."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with (
        LoadProcess(target, preload=False) as process,
        pytest.raises(TargetUnavailable, match="no directory for temporary files: Not a directory"),
    ):
        run(process, "echo")


def test_no_directory_for_temporary_files_at_all(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(TargetUnavailable, match="No usable temporary directory"):
        LoadProcess(target, preload=False)


def test_a_full_disk_for_temporary_files(
    target: Target, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a job returns, what it prints and what it raises need no room there."""
    monkeypatch.setattr(tempfile, "tempdir", str(tiny))
    with LoadProcess(target, preload=False) as process:
        assert run(process, "echo") == b"on"
        with pytest.raises(LoadProcessError, match="raised an error") as raised:
            run(process, "fill_the_disk")
        assert "No space left on device" in raised.value.details
        assert run(process, "echo") == b"on"
        (tiny / "fill").write_bytes(bytes(1 << 15))
        with pytest.raises(OSError, match="No space left"):
            (tiny / "more").write_bytes(bytes(1 << 16))
        assert run(process, "echo") == b"on"
    assert sorted(path.name for path in tiny.iterdir()) == ["fill", "more"]


def test_no_room_for_the_directory_of_a_job(
    target: Target, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tiny))
    with LoadProcess(target, preload=False) as process:
        assert run(process, "echo") == b"on"
        number = 0
        while True:
            try:
                (tiny / str(number)).mkdir()
            except OSError:
                break
            number += 1
        with pytest.raises(TargetUnavailable, match="No space left on device"):
            run(process, "echo")
        (tiny / "0").rmdir()
        assert run(process, "echo") == b"on"


def test_a_log_without_end_is_kept_in_bounds(target: Target) -> None:
    with LoadProcess(target, preload=False) as process:
        with pytest.raises(LoadProcessError, match="SIGSEGV") as raised:
            run(process, "print_without_end")
        assert "the last line" in raised.value.details
        assert int(raised.value.details.split("bytes: ")[1].split()[0]) < 100 << 20


def test_a_job_that_is_not_in_the_table_is_not_imported(target: Target, tmp_path: Path) -> None:
    with (
        LoadProcess(target, preload=False) as process,
        pytest.raises(InternalError, match="KeyError: 'os:getcwd'"),
    ):
        process.run("os:getcwd", b"", target, timeout=60)


def test_a_full_disk_is_not_taken_for_full_shared_memory() -> None:
    """Of which `tests/on_stack/test_tight_machine.py` has a real one."""
    with pytest.raises(OSError, match="No space left") as raised:
        Path("/dev/full").write_text("a")
    assert not is_of_a_lock(raised.value)
