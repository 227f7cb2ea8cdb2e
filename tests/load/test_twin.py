"""A loading process that another one forks serves, fails and ends as if it had been started."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from harness.load.connection import Connection
from harness.load.process import LoadProcess, LoadProcessError
from harness.load.target import Target
from tests.support.waiting import gone, wait_for

pytestmark = pytest.mark.alone

ROOT = Path(__file__).parents[2]
Pair = tuple[LoadProcess, LoadProcess]

PARENT = """
import time
from harness.load.process import LoadProcess
from harness.load.targets.registry import target_named
from tests.support import registered
one, other = (LoadProcess(target_named("emulated"), preload=False) for _ in range(2))
other.start_from(one)
print(one.pid, other.pid, one.scratch, other.scratch, flush=True)
time.sleep(600)
"""


@pytest.fixture
def pair(target: Target) -> Iterator[Pair]:
    """A process and its twin."""
    with LoadProcess(target, preload=False) as one, LoadProcess(target, preload=False) as other:
        other.start_from(one)
        yield one, other


def echo(process: LoadProcess) -> bytes:
    return process.run("tests.support.idle_jobs:echo", b"on", process.target, timeout=60)


def process_of(load_process: LoadProcess) -> psutil.Process:
    assert load_process.pid is not None
    return psutil.Process(load_process.pid)


def wait_until_gone(*processes: psutil.Process) -> None:
    """A twin that ended is not reaped before the process that forked it ends."""
    wait_for(lambda: gone(processes), 60)


def test_a_twin_is_forked_and_both_serve(pair: Pair) -> None:
    one, other = pair
    assert process_of(other).parent() == process_of(one)
    assert [echo(each) for each in (other, one, other)] == [b"on"] * 3


def test_a_process_that_runs_gets_no_twin(pair: Pair) -> None:
    one, other = pair
    before = process_of(other)
    other.start_from(one)
    assert process_of(other) == before


def test_a_load_of_a_twin_is_ended_in_time(pair: Pair) -> None:
    with pytest.raises(LoadProcessError, match="did not end within 1 s"):
        pair[1].run("tests.support.idle_jobs:hang", b"", pair[1].target, timeout=1)
    assert echo(pair[1]) == b"on"


def test_each_ends_alone(pair: Pair) -> None:
    """The end of one shows at once, though the other was forked from it and lives."""
    one, other = pair
    process_of(one).kill()
    with pytest.raises(LoadProcessError, match="the loading process ended"):
        echo(one)
    assert echo(other) == b"on"
    process_of(other).kill()
    with pytest.raises(LoadProcessError, match="the loading process ended"):
        echo(other)
    assert (echo(one), echo(other)) == (b"on", b"on")


def test_a_twin_goes_with_its_files(target: Target) -> None:
    with LoadProcess(target, preload=False) as one:
        with LoadProcess(target, preload=False) as other:
            other.start_from(one)
            process, scratch = process_of(other), other.scratch
        wait_until_gone(process)
        assert not scratch.exists()
        assert echo(one) == b"on"


def test_a_cancelled_twin_is_forked_anew(pair: Pair) -> None:
    one, other = pair
    before = process_of(other)
    other.cancel()
    wait_until_gone(before)
    other.start_from(one)
    assert process_of(other).parent() == process_of(one)
    assert echo(other) == b"on"


def test_a_deep_directory_is_no_hindrance(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket's path would have a hundred characters at most; the two need none."""
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with LoadProcess(target, preload=False) as one, LoadProcess(target, preload=False) as other:
        other.start_from(one)
        assert process_of(other).parent() == process_of(one)
        assert echo(other) == b"on"


def test_a_twins_directory_is_its_own_and_nobody_elses(pair: Pair) -> None:
    one, other = pair
    assert stat.S_IMODE(other.scratch.stat().st_mode) == 0o700
    assert other.scratch.parent == one.scratch
    assert not [path for path in one.scratch.rglob("*") if path.is_socket()]


def test_where_a_twin_finds_its_directory_made_a_process_is_started(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pair
    other.close()
    with monkeypatch.context() as planted:
        planted.setattr("secrets.token_hex", lambda _: "known")
        (one.scratch / "twin-known").mkdir()
        other.start_from(one)
    assert echo(other) == b"on"
    assert process_of(other).parent() != process_of(one)
    assert echo(one) == b"on"


def test_a_twin_whose_parents_parent_is_killed_ends() -> None:
    command = [sys.executable, "-c", PARENT]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        try:
            first, second, *scratch = parent.stdout.readline().split()
            processes = [psutil.Process(int(pid)) for pid in (first, second)]
        finally:
            parent.kill()
    wait_until_gone(*processes)
    assert not any(Path(path).exists() for path in scratch)


def test_a_twin_that_was_killed_is_forked_anew(pair: Pair) -> None:
    """What it left where it was met is no hindrance."""
    one, other = pair
    process_of(other).kill()
    with pytest.raises(LoadProcessError, match="the loading process ended"):
        echo(other)
    other.start_from(one)
    assert process_of(other).parent() == process_of(one)


def test_a_twin_of_a_process_that_is_gone_is_replaced(pair: Pair) -> None:
    """What its imports need lay in that process's directory, and went with it."""
    one, other = pair
    before = process_of(other)
    one.close()
    other.start_from(one)
    wait_until_gone(before)
    assert process_of(other).parent() == process_of(one)
    assert echo(other) == b"on"


@pytest.mark.parametrize("at", ["harness.load.process.Connection", "os.pidfd_open"])
def test_a_meeting_that_is_broken_off(pair: Pair, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody comes of it: the one it was asked of serves on, alone; the other is started."""
    one, other = pair
    other.close()

    def broken_off(*_: object) -> None:
        raise OSError("too many open files")

    with monkeypatch.context() as planted:
        planted.setattr(at, broken_off)
        other.start_from(one)
    assert [echo(one) for _ in range(3)] == [b"on"] * 3
    wait_until_gone(*process_of(one).children(recursive=True))
    assert echo(other) == b"on"
    assert process_of(other).parent() != process_of(one)


def test_an_interrupt_while_a_twin_is_asked_for(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer must not be the next job's."""
    one, other = pair
    other.close()
    before = process_of(one)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as planted:
        planted.setattr(Connection, "receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            other.start_from(one)
    wait_until_gone(before)
    assert [echo(each) for each in (one, other, one)] == [b"on"] * 3
