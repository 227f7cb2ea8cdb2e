"""Progress: counted where the tensors are, shown where a terminal is, nowhere else."""

from __future__ import annotations

import io
import os
import pty
import threading
import time
from pathlib import Path

import pytest

from harness import progress
from harness.progress import Figures, Meter, count_into, is_shown, read, shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    return Terminal()


def test_figures_are_left_and_read(tmp_path: Path) -> None:
    meter = Meter(tmp_path / "figures")
    meter.begin("stream", 100)
    assert read(tmp_path / "figures") == Figures("stream", 0, 100)
    meter._written -= 1  # the last look was a second ago
    meter.advance(30)
    assert read(tmp_path / "figures") == Figures("stream", 30, 100)


def test_figures_are_not_written_with_every_tensor(tmp_path: Path) -> None:
    meter = Meter(tmp_path / "figures")
    meter.begin("stream", 100)
    for _ in range(50):
        meter.advance(1)
    left = read(tmp_path / "figures")
    assert left is not None
    assert left.done < 50


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"phase": 1}'])
def test_no_figures_yet(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "figures").write_bytes(content)
    assert read(tmp_path / "figures") is None


def test_nobody_looks_any_more(tmp_path: Path) -> None:
    """The directory is gone with the process that looked; the load goes on."""
    Meter(tmp_path / "gone" / "figures").begin("stream", 1)
    Meter(None).begin("stream", 1)


def test_this_process_counts_where_it_is_told(tmp_path: Path) -> None:
    count_into(str(tmp_path / "figures"))
    try:
        progress.begin("compare", 8)
        assert read(tmp_path / "figures") == Figures("compare", 0, 8)
    finally:
        count_into("")
    progress.begin("stream", 9)
    assert read(tmp_path / "figures") == Figures("compare", 0, 8)


def test_quiet_without_a_terminal() -> None:
    log = io.StringIO()
    with shown(log) as path:
        assert path == ""
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
    with shown(terminal) as path:
        meter = Meter(Path(path))
        for phase in ("stream", "compare"):
            meter.begin(phase, 2_000_000)
            meter._written = 0.0
            meter.advance(1_000_000)
            drawn_by(terminal, phase, "1.0/2.0 MB")
    assert not Path(path).parent.exists()


def test_a_terminal_is_left_as_it_was(terminal: Terminal) -> None:
    """An error inside goes on, and the watching thread has ended."""

    def fails() -> None:
        with shown(terminal):
            raise OSError("the load broke")

    with pytest.raises(OSError, match="the load broke"):
        fails()
    shown_again, hidden = (terminal.getvalue().rfind(f"\x1b[?25{end}") for end in "hl")
    assert shown_again > hidden >= 0
    assert not any("_watch" in thread.name for thread in threading.enumerate())


def test_a_real_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    primary, secondary = pty.openpty()
    with os.fdopen(secondary, "w") as file:
        assert is_shown(file)
    os.close(primary)
