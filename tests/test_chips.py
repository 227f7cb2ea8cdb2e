"""Chips are taken by one process at a time; the next waits, and is told for whom."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.chips import locked
from harness.errors import TargetUnavailable

HOLD = """
import sys, time
from harness.chips import locked
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

    monkeypatch.setattr(Path, "unlink", refuse)
    monkeypatch.setattr(Path, "write_text", refuse)
    with (
        locked((1,), timeout=0),
        pytest.raises(TargetUnavailable, match="in use by process of unknown pid"),
        locked((1,), timeout=0.05),
    ):
        pass
    with locked((1,), timeout=0):
        pass
