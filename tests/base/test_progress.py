"""Progress: counted where the tensors are, shown where a terminal is, nowhere else."""

from __future__ import annotations

import io
import mmap
import os
import pty
import re
import select
import signal
import termios
import threading
import time
import timeit

import pytest

from harness.base.progress import Figures, LogLines, Meter, line_of, shown
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
    meter.begin("stream", 100, 5)
    meter.advance(30)
    meter.advance(12)
    assert watcher.figures == Figures("stream", 42, 100, 2, 5)
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
    assert seen == ([Figures("stream", 1, 3, 1)] if watched else [])


def test_nobody_looks_on() -> None:
    with shown(None) as watch:
        assert watch is None


GB = 1_000_000_000


class Clock:
    """Seconds, as a test has them pass."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("figures", "seconds", "line"),
    [
        (Figures("", 0, 0), 0.0, "90 s: start, 0 bytes"),
        (Figures("stream", 0, 10 * GB), 5.0, "90 s: stream, 0 bytes of 10.0 GB"),
        (Figures("stream", 2 * GB, 10 * GB, 34, 400), 80.0,
         "90 s: stream, 34 of 400 tensors, 2.0 GB of 10.0 GB, 25.0 MB/s, 320 s left"),
        (Figures("stream", 10 * GB, 10 * GB, 400, 400), 80.0,
         "90 s: stream, 400 of 400 tensors, 10.0 GB of 10.0 GB, 125.0 MB/s, "
         "all streamed, the stack is still loading"),
        (Figures("stream", 11 * GB, 10 * GB), 80.0,  # a draft model's config may come twice
         "90 s: stream, 11.0 GB of 10.0 GB, 137.5 MB/s, all streamed, the stack is still loading"),
        (Figures("compare", GB, 4 * GB, 96), 10.0,
         "90 s: compare, 96 matrices, 1.0 GB of 4.0 GB, 100.0 MB/s, 30 s left"),
        (Figures("digest", GB, 0), 10.0, "90 s: digest, 1.0 GB, 100.0 MB/s"),
    ],
)  # fmt: skip
def test_a_line(figures: Figures, seconds: float, line: str) -> None:
    assert line_of(figures, seconds, 90.0) == line


def test_lines_come_at_intervals_that_grow() -> None:
    """An hour of figures five times a second: nine lines, the first after half a minute."""
    log, clock = io.StringIO(), Clock()
    lines = LogLines(log, clock)
    for tick in range(5 * 3600):
        clock.now = 1000.0 + tick / 5
        lines(Figures("stream", tick * 1000, 20_000_000, tick, 20_000))
    times = [int(line.split(" s:")[0]) for line in log.getvalue().splitlines()]
    assert times == [30, 90, 210, 450, 930, 1530, 2130, 2730, 3330]


def test_a_phase_is_timed_by_itself() -> None:
    """What came before it says nothing of its speed."""
    log, clock = io.StringIO(), Clock()
    lines = LogLines(log, clock)
    lines(Figures("stream", GB, GB))
    clock.now += 100
    lines(Figures("compare", 0, GB))
    clock.now += 60
    lines(Figures("compare", 600_000_000, GB))
    assert log.getvalue().splitlines()[-1].endswith("600.0 MB of 1.0 GB, 10.0 MB/s, 40 s left")


def test_a_load_of_seconds_leaves_no_line() -> None:
    log = io.StringIO()
    with shown(log) as watch:
        assert watch is not None
        watch(Figures("stream", 1, 2))
    assert log.getvalue() == ""


@pytest.mark.parametrize("how", ["closed", "full"])
def test_a_log_that_cannot_be_written_ends_no_load(how: str) -> None:
    class Full(io.StringIO):
        writes = 0

        def write(self, text: str) -> int:
            self.writes += 1
            if self.closed:
                return super().write(text)
            raise OSError("No space left on device")

    log, clock = Full(), Clock()
    if how == "closed":
        log.close()
    lines = LogLines(log, clock)
    for _ in range(5):
        clock.now += 1000
        lines(Figures("stream", 1, 2))
    assert log.writes == 1


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with shown(terminal) as watch:
        assert isinstance(watch, LogLines)
    assert terminal.getvalue() == ""


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
            watch(Figures(phase, 1_000_000, 2_000_000, 7, 12))
            drawn_by(terminal, phase, "1.0/2.0 MB", "7 of 12")


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
    """One line, written again and again, no wider than the terminal, and gone in the end."""
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    primary, secondary = pty.openpty()
    termios.tcsetwinsize(secondary, (24, 100))
    seen = b""
    with os.fdopen(secondary, "w") as file:
        with shown(file) as watch:
            assert watch is not None
            for step in range(1, 6):
                watch(Figures("stream", step * GB, 10 * GB, step * 40, 400))
                time.sleep(0.25)
        file.flush()
        while select.select([primary], [], [], 0.5)[0]:
            seen += os.read(primary, 65536)
    os.close(primary)
    plain = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", seen).decode()
    drawn = [line.strip() for line in re.split(r"[\r\n]+", plain) if "stream" in line]
    assert len(drawn) >= 3
    assert re.search(r"stream +\S+ 5.0/10.0 GB 200 of 400 tensors .*/s \d+:\d\d", drawn[-1]), drawn
    assert max(map(len, drawn)) <= 100
    assert seen.rstrip().endswith(b"\x1b[2K")  # the line is erased


@pytest.mark.alone
def test_counting_costs_a_load_nothing() -> None:
    """Less than 20 us a tensor, a thousandth of what the stack takes for one of the smallest."""
    meter = Meter(memoryview(mmap.mmap(-1, Meter.SIZE)))
    meter.begin("stream", 1 << 40, 100_000)
    fastest = min(timeit.repeat(lambda: meter.advance(4096), number=20_000, repeat=5)) / 20_000
    assert fastest < 20e-6
