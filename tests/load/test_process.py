"""A load that raises, crashes or hangs is an outcome; the next one runs as if nothing happened."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from harness.load.overlay import Overlay
from harness.load.process import LoadProcess, LoadProcessError
from harness.load.target import Target


@pytest.fixture(scope="module")
def load_process(target: Target) -> Iterator[LoadProcess]:
    """A process that imports no stack: these jobs need none."""
    with LoadProcess(target, preload=False) as process:
        yield process


def run(process: LoadProcess, job: str, argument: bytes = b"", timeout: float = 60) -> bytes:
    return process.run(f"tests.support.idle_jobs:{job}", argument, process.target, timeout=timeout)


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


def test_a_job_has_the_environment_of_its_own_target_alone(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of that which the process, or the one it was forked from, was started for."""
    monkeypatch.setenv("OF_BOTH", "the session's")
    first = replace(
        target, environment=target.environment | {"OF_ONE": "1", "OF_BOTH": "the target's"}
    )

    def seen(process: LoadProcess, asked: Target) -> tuple[str | None, str | None]:
        found = json.loads(
            process.run("tests.support.idle_jobs:environment", b"", asked, timeout=60)
        )
        return found.get("OF_ONE"), found.get("OF_BOTH")

    with LoadProcess(first, preload=False) as one, LoadProcess(target, preload=False) as twin:
        assert seen(one, first) == ("1", "the target's")
        assert seen(one, target) == (None, "the session's")
        twin.start_from(one)
        assert seen(twin, target) == (None, "the session's")


@pytest.mark.slow
def test_a_hang_is_ended_in_time(load_process: LoadProcess) -> None:
    with pytest.raises(LoadProcessError, match="did not end within 2 s") as raised:
        run(load_process, "hang", timeout=2)
    assert "hanging" in raised.value.details
    assert run(load_process, "echo", b"on") == b"on"


def test_a_load_that_is_cancelled_before_it_began_does_not_begin(load_process: LoadProcess) -> None:
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(LoadProcessError, match="cancelled before it began"):
        load_process.run(
            "tests.support.jobs:hang", b"", load_process.target, timeout=60, cancelled=cancelled
        )
    assert run(load_process, "echo", b"on") == b"on"


def test_a_load_that_is_cancelled_ends(load_process: LoadProcess) -> None:
    threading.Timer(1.0, load_process.cancel).start()
    started = time.monotonic()
    with pytest.raises(LoadProcessError, match="the loading process ended"):
        run(load_process, "hang")
    assert time.monotonic() - started < 30
    assert run(load_process, "echo", b"on") == b"on"


def test_a_cancel_that_comes_late_harms_no_other_load(load_process: LoadProcess) -> None:
    assert run(load_process, "echo", b"1") == b"1"
    load_process.cancel()
    load_process.cancel()
    assert run(load_process, "echo", b"2") == b"2"


def test_a_cancel_between_start_and_request(
    load_process: LoadProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request finds its pipe closed by another thread."""
    encode = msgspec.json.encode

    def cancelling(request: object) -> bytes:
        load_process.cancel()
        return encode(request)

    with monkeypatch.context() as planted:
        planted.setattr(msgspec.json, "encode", cancelling)
        with pytest.raises(LoadProcessError, match="the load was cancelled"):
            run(load_process, "echo")
    assert run(load_process, "echo", b"on") == b"on"


@pytest.mark.slow
def test_a_process_that_never_started_is_not_started_again(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "vllm"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('laid over')\n")
    with LoadProcess(target, Overlay({"vllm": package})) as process:
        with pytest.raises(LoadProcessError) as raised:
            run(process, "echo")
        assert raised.value.what == "the loading process ended"
        monkeypatch.setattr(subprocess, "Popen", None)
        for _ in range(2):
            with pytest.raises(LoadProcessError, match="ended, at its first start") as raised:
                run(process, "echo")
            assert "laid over" in raised.value.details
