"""Chips are taken by one process at a time; the next waits, and is told for whom."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.base.errors import TargetUnavailable
from harness.load.chips import locked

HOLD = """
import sys, time
from harness.load.chips import locked
with locked([1], timeout=5):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_LOCKS", str(tmp_path / "locks"))
    return tmp_path / "locks"


def test_no_chips_need_no_lock(directory: Path) -> None:
    with locked((), timeout=0):
        assert not directory.exists()


def test_other_chips_are_free() -> None:
    with locked((0, 1), timeout=0), locked((2, 3), timeout=0):
        pass


def test_a_lock_is_free_after_its_block(directory: Path) -> None:
    for _ in range(2):
        with locked((1,), timeout=0):
            assert (directory / "chip-1.pid").read_text() == str(os.getpid())
    assert not (directory / "chip-1.pid").exists()


def test_who_holds_a_chip_is_named_and_its_death_frees_it() -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    with holder:
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(TargetUnavailable, match=f"chip 1 is in use by process {holder.pid}"),
            locked((0, 1), timeout=0.2),
        ):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with locked((0, 1), timeout=5):
            pass


def test_a_failed_take_holds_nothing() -> None:
    with locked((1,), timeout=0):
        with pytest.raises(TargetUnavailable), locked((0, 1), timeout=0.05):
            pass
        with locked((0,), timeout=0):
            pass


def test_a_pid_file_of_another_user_is_no_obstacle(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process was killed; the lock is free, the file is not ours to write or remove."""
    directory.mkdir()
    (directory / "chip-1.pid").write_text("999999999")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("of another user")

    really = os.open

    def refuse_to_write(path: str, flags: int, *given: int, **named: int) -> int:
        if flags & os.O_WRONLY:
            refuse()
        return really(path, flags, *given, **named)

    monkeypatch.setattr(os, "unlink", refuse)
    monkeypatch.setattr(os, "open", refuse_to_write)
    with (
        locked((1,), timeout=0),
        pytest.raises(TargetUnavailable, match="in use by process of unknown pid"),
        locked((1,), timeout=0.05),
    ):
        pass
    with locked((1,), timeout=0):
        pass


def to_a_link(path: Path, elsewhere: Path) -> None:
    path.symlink_to(elsewhere)


def to_a_pipe(path: Path, elsewhere: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("planted", [to_a_link, to_a_pipe])
@pytest.mark.parametrize("name", ["chip-1.lock", "chip-1.pid"])
def test_what_another_user_put_there_is_not_followed(
    name: str, planted: Callable[[Path, Path], None], directory: Path, tmp_path: Path
) -> None:
    """A lock that is none is refused; of a pid file only the name is taken away."""
    (tmp_path / "mine").write_text("as it was")
    directory.mkdir()
    planted(directory / name, tmp_path / "mine")
    if name.endswith(".lock"):
        with pytest.raises(TargetUnavailable, match="cannot be locked"), locked((1,), timeout=1):
            pass
    else:
        with locked((1,), timeout=1):
            assert (directory / name).read_text() == str(os.getpid())
    assert (tmp_path / "mine").read_text() == "as it was"


def test_a_link_in_the_place_of_the_directory_is_not_followed(
    directory: Path, tmp_path: Path
) -> None:
    """Its mode would have been made that of a directory for everybody."""
    private = tmp_path / "private"
    private.mkdir(0o700)
    directory.symlink_to(private)
    with pytest.raises(TargetUnavailable, match="cannot be locked"), locked((1,), timeout=1):
        pass
    assert private.stat().st_mode & 0o777 == 0o700
    assert not list(private.iterdir())


@pytest.mark.parametrize("pid", ["../../etc", "", "9" * 5000, "\0", "\xb2"])
def test_a_pid_file_with_anything_in_it(directory: Path, pid: str) -> None:
    with locked((1,), timeout=0):
        (directory / "chip-1.pid").write_text(pid)
        with (
            pytest.raises(TargetUnavailable, match="in use by process of unknown pid"),
            locked((1,), timeout=0.05),
        ):
            pass


def test_no_descriptor_is_left_open(directory: Path) -> None:
    with locked((0,), timeout=0):
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(TargetUnavailable), locked((0, 1), timeout=0):
            pass
        with locked((1, 2), timeout=0):
            pass
        assert len(os.listdir("/proc/self/fd")) == before
