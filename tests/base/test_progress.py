"""Progress: counted where the tensors are, shown where a terminal is, nowhere else."""

from __future__ import annotations

import io
import mmap
import os
import pty
import signal
import threading
import time

import pytest

from harness.base.progress import Figures, Meter, is_shown, shown
from harness.load.process import LoadProcess
from harness.load.target import Target


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    return Terminal()


def test_figures_are_counted_and_seen() -> None:
    memory = memoryview(bytearray(Meter.SIZE))
    meter, watcher = Meter(memory), Meter(memory)
    assert watcher.figures == Figures("", 0, 0)
    meter.begin("stream", 100)
    meter.advance(30)
    meter.advance(12)
    assert watcher.figures == Figures("stream", 42, 100)
    meter.begin("compare", 1 << 50)
    assert watcher.figures == Figures("compare", 0, 1 << 50)


def test_another_process_sees_them() -> None:
    """Also those of one that is killed at once."""
    memory = memoryview(mmap.mmap(-1, Meter.SIZE))
    if (pid := os.fork()) == 0:
        Meter(memory).begin("compare", 8)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert Meter(memory).figures == Figures("compare", 0, 8)


@pytest.mark.slow
@pytest.mark.parametrize("watched", [True, False])
def test_a_load_that_is_watched_tells_how_far_it_is(target: Target, watched: bool) -> None:
    seen: list[Figures] = []
    with LoadProcess(target, preload=False) as process:
        job, watch = "tests.support.idle_jobs:count", seen.append if watched else None
        assert process.run(job, b"1", target, timeout=60, watch=watch) == b"1"
    assert seen == ([Figures("stream", 1, 3)] if watched else [])


def test_quiet_without_a_terminal() -> None:
    log = io.StringIO()
    with shown(log) as watch:
        assert watch is None
    assert log.getvalue() == ""
    assert not is_shown(None)


def test_quiet_on_a_terminal_that_cannot_move_its_cursor(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_shown(terminal)
    monkeypatch.setenv("TERM", "dumb")
    assert not is_shown(terminal)


def drawn_by(terminal: Terminal, *texts: str) -> None:
    """Wait until the threads that look and draw have come to it."""
    end = time.monotonic() + 60
    while not all(text in terminal.getvalue() for text in texts):
        assert time.monotonic() < end, terminal.getvalue()
        time.sleep(0.02)


def test_a_terminal_shows_each_phase(terminal: Terminal) -> None:
    with shown(terminal) as watch:
        assert watch is not None
        for phase in ("stream", "compare"):
            watch(Figures(phase, 0, 2_000_000))
            watch(Figures(phase, 1_000_000, 2_000_000))
            drawn_by(terminal, phase, "1.0/2.0 MB")


def test_a_terminal_is_left_as_it_was(terminal: Terminal) -> None:
    """An error inside goes on, and the thread that draws ends."""

    def fails() -> None:
        with shown(terminal):
            raise OSError("the load broke")

    with pytest.raises(OSError, match="the load broke"):
        fails()
    shown_again, hidden = (terminal.getvalue().rfind(f"\x1b[?25{end}") for end in "hl")
    assert shown_again > hidden >= 0
    drawing = [thread for thread in threading.enumerate() if "_RefreshThread" in str(thread)]
    for thread in drawing:  # it has been told, and is not waited for
        thread.join(60)
        assert not thread.is_alive()


def test_a_real_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    primary, secondary = pty.openpty()
    with os.fdopen(secondary, "w") as file:
        assert is_shown(file)
    os.close(primary)
