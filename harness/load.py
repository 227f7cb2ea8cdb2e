"""The parent's side of a load: starts the loading process, sends it jobs, bounds their time.

The parent imports no part of the stack. A load that raises, crashes, hangs or is killed is an
outcome with a log, never the end of the session.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from harness.child import Answer, Request
from harness.overlay import Overlay
from harness.target import Target

_LOG_TAIL = 4000
_START_SECONDS = 300.0


class LoadProcessError(Exception):
    """A loading process gave no result.

    Attributes:
        what: how it ended, in words.
        details: its traceback, or the end of its log.
    """

    def __init__(self, what: str, details: str) -> None:
        super().__init__(what)
        self.what = what
        self.details = details


class LoadProcess:
    """A process with the stack imported, for one target; forks a process for every job.

    Args:
        target: its environment is the process's.
        overlay: packages to import instead of the installed ones.
    """

    def __init__(self, target: Target, overlay: Overlay | None = None) -> None:
        self.target = target
        self.overlay = overlay or Overlay()
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch = Path(tempfile.mkdtemp(prefix="harness-load-"))
        self._jobs = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def run(self, job: str, argument: bytes, *, timeout: float) -> bytes:
        """Run ``module:function`` on ``argument`` in a fresh process and return its result.

        Args:
            job: the function takes bytes and returns bytes.
            argument: its argument.
            timeout: seconds until the process is ended.

        Raises:
            LoadProcessError: the job raised, crashed, or did not end in time.
        """
        process = self._started()
        with self._directory() as directory:
            request = msgspec.json.encode(Request(job, argument, str(directory)))
            assert process.stdin is not None
            process.stdin.write(request + b"\n")
            process.stdin.flush()
            status = self._answer(timeout, directory)
            result, error = directory / "result", directory / "error"
            if status == 0:
                return result.read_bytes()
            if error.exists():
                raise LoadProcessError("the load raised an error", error.read_text())
            how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
            raise LoadProcessError(f"the load's process ended with {how}", _log_tail(directory))

    def close(self) -> None:
        """End the process and remove its files."""
        self._end()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _end(self) -> None:
        """End the process; the next job starts another."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        self._process = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            with (self._scratch / "log").open("wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "harness.child"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=self._environment(),
                )
            self._answer(_START_SECONDS, self._scratch)
        return self._process

    def _environment(self) -> dict[str, str]:
        first = self.overlay.link_into(self._scratch / "overlay")
        path = [str(first), *(entry or os.getcwd() for entry in sys.path)]
        return os.environ | self.target.environment | {"PYTHONPATH": os.pathsep.join(path)}

    @contextmanager
    def _directory(self) -> Iterator[Path]:
        self._jobs += 1
        directory = self._scratch / str(self._jobs)
        directory.mkdir()
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _answer(self, timeout: float, directory: Path) -> int:
        """Wait for the process's next line; what does not come in time is ended."""
        assert self._process is not None
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(timeout):
                self._end_job(directory)
                tail = _log_tail(directory)
                self._end()
                raise LoadProcessError(f"the load did not end within {timeout:g} s", tail)
        line = self._process.stdout.readline()
        if not line:
            tail = _log_tail(self._scratch)
            self._end()
            raise LoadProcessError("the loading process ended", tail)
        return msgspec.json.decode(line, type=Answer).status

    def _end_job(self, directory: Path) -> None:
        with contextlib.suppress(OSError, ValueError):
            os.killpg(int((directory / "pid").read_text()), signal.SIGKILL)
            time.sleep(0.1)


def _log_tail(directory: Path) -> str:
    log = directory / "log"
    return log.read_text(errors="replace")[-_LOG_TAIL:] if log.exists() else ""
