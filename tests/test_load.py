"""A load that raises, crashes or hangs is an outcome; the next one runs as if nothing happened."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.load import LoadProcess, LoadProcessError
from harness.target import Target


@pytest.fixture(scope="module")
def load_process(target: Target) -> Iterator[LoadProcess]:
    """A process that imports no stack: these jobs need none."""
    with LoadProcess(target, preload=False) as process:
        yield process


def run(process: LoadProcess, job: str, argument: bytes = b"", timeout: float = 60) -> bytes:
    return process.run(f"tests.idle_jobs:{job}", argument, timeout=timeout)


def test_the_result_comes_back(load_process: LoadProcess) -> None:
    assert run(load_process, "echo", b"\x00\xff") == b"\x00\xff"


def test_every_job_has_a_process_of_its_own(load_process: LoadProcess) -> None:
    assert run(load_process, "pid") != run(load_process, "pid")


def test_temporary_files_are_removed(load_process: LoadProcess) -> None:
    assert not Path(run(load_process, "leave_a_temporary_file").decode()).exists()


def test_an_exception_comes_back_with_its_traceback(load_process: LoadProcess) -> None:
    with pytest.raises(LoadProcessError, match="raised an error") as raised:
        run(load_process, "fail")
    assert "ValueError: as planted" in raised.value.details
    assert run(load_process, "echo", b"on") == b"on"


def test_a_crash_is_named_by_its_signal(load_process: LoadProcess) -> None:
    with pytest.raises(LoadProcessError, match="ended with signal SIGSEGV") as raised:
        run(load_process, "crash")
    assert "about to crash" in raised.value.details
    assert run(load_process, "echo", b"on") == b"on"


def test_a_hang_is_ended_in_time(load_process: LoadProcess) -> None:
    with pytest.raises(LoadProcessError, match="did not end within 2 s") as raised:
        run(load_process, "hang", timeout=2)
    assert "hanging" in raised.value.details
    assert run(load_process, "echo", b"on") == b"on"
