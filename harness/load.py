"""The parent's side of a load: starts the loading process, sends it jobs, bounds their time.

The parent imports no part of the stack. A load that raises, crashes, hangs or is killed is an
outcome with a log, never the end of the session.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from harness.child import Answer, Request
from harness.chips import locked
from harness.overlay import Overlay
from harness.places.opening import store_environment
from harness.target import Target

_LOG_TAIL = 20000  # a crash ends with the stacks of all threads
_START_SECONDS = 300.0
_GRACE_SECONDS = 30.0  # for the loading process to end a late load, before it is ended itself
_CLOSE_SECONDS = 10.0


class LoadProcessError(Exception):
    """A loading process gave no result.

    Attributes:
        what: how it ended, in words.
        details: its traceback, or the end of its log.
    """

    def __init__(self, what: str, details: str) -> None:
        super().__init__(what)
        self.add_note(details)
        self.what = what
        self.details = details


class LoadProcess:
    """A process with the stack imported; forks a process for every job.

    One serves all targets of a name: what sets them apart, the number of devices and how experts
    are spread, is read from the environment when a forked process first touches a device.

    Args:
        target: the jobs' target, unless they name another; its stack is imported.
        overlay: packages to import instead of the installed ones.
        preload: whether the stack is imported once, before the first job, or by each job.
    """

    def __init__(
        self, target: Target, overlay: Overlay | None = None, *, preload: bool = True
    ) -> None:
        self.target = target
        self._preload = target.name if preload else ""
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

    def run(
        self, job: str, argument: bytes, *, timeout: float, target: Target | None = None
    ) -> bytes:
        """Run ``module:function`` on ``argument`` in a fresh process and return its result.

        Args:
            job: the function takes bytes and returns bytes.
            argument: its argument.
            timeout: seconds until the process is asked for its stacks and ended.
            target: whose environment the job has and whose chips are locked while it runs.

        Raises:
            LoadProcessError: the job raised, crashed, or did not end in time.
            TargetUnavailable: the target's chips did not become free in time.
            HarnessError: the job refused.
        """
        target = target or self.target
        assert target.name == self.target.name
        with locked(target.chips, timeout=timeout), self._directory() as directory:
            environment = store_environment() | target.environment
            request = Request(job, argument, str(directory), timeout, environment)
            answer = self._ask(request)
            result, refusal, error = (directory / n for n in ("result", "refusal", "error"))
            if answer.late:
                raise LoadProcessError(
                    f"the load did not end within {timeout:g} s", _log_tail(directory)
                )
            if answer.status == 0:
                return result.read_bytes()
            if refusal.exists():
                raise pickle.loads(refusal.read_bytes())
            if error.exists():
                raise LoadProcessError("the load raised an error", error.read_text())
            raise LoadProcessError(
                f"the load's process ended with {_how(answer.status)}", _log_tail(directory)
            )

    def cancel(self) -> None:
        """Have a job end that another thread waits for: it gets a :class:`LoadProcessError`."""
        if self._process is not None:
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()

    def close(self) -> None:
        """End the process, and a job that still runs, and remove its files."""
        self._end()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _end(self) -> None:
        """Close the process's input, at which it ends by itself; the next job starts another."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._scratch.mkdir(exist_ok=True)
            with (self._scratch / "log").open("wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "harness.child", self._scratch, self._preload],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=self._environment(),
                )
            self._answer(_START_SECONDS)
        return self._process

    def _environment(self) -> dict[str, str]:
        first = self.overlay.link_into(self._scratch / "overlay")
        path = [str(first), *(entry or os.getcwd() for entry in sys.path)]
        return os.environ | self.target.environment | {"PYTHONPATH": os.pathsep.join(path)}

    @contextmanager
    def _directory(self) -> Iterator[Path]:
        self._started()
        self._jobs += 1
        directory = self._scratch / str(self._jobs)
        directory.mkdir()
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _ask(self, request: Request) -> Answer:
        """Send a request and wait for its answer; an interrupted wait ends the process."""
        process = self._started()
        assert process.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # it ended: the answer will say so
                process.stdin.write(msgspec.json.encode(request) + b"\n")
                process.stdin.flush()
            return self._answer(request.timeout + _GRACE_SECONDS)
        except BaseException:
            self._end()
            raise

    def _answer(self, timeout: float) -> Answer:
        """Wait for the process's next line."""
        assert self._process is not None
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            ready = selector.select(timeout)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            how = "ended" if ready else f"gave no answer within {timeout:g} s"
            tail = _log_tail(self._scratch)
            self._end()
            raise LoadProcessError(f"the loading process {how}", tail)
        return msgspec.json.decode(line, type=Answer)


class LoadProcesses:
    """The loading processes of a session, started when asked for.

    One for each name of a target and each host that this machine plays.

    Args:
        overlay: packages to import instead of the installed ones.
    """

    def __init__(self, overlay: Overlay | None = None) -> None:
        self.overlay = overlay or Overlay()
        self._processes: dict[tuple[str, int], LoadProcess] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def of(self, target: Target) -> LoadProcess:
        """The process for ``target`` and its host."""
        key = (target.name, target.host)
        if key not in self._processes:
            self._processes[key] = LoadProcess(target, self.overlay)
        return self._processes[key]

    def close(self) -> None:
        """End all of them."""
        while self._processes:
            self._processes.popitem()[1].close()


def _how(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"


def _log_tail(directory: Path) -> str:
    log = directory / "log"
    return log.read_text(errors="replace")[-_LOG_TAIL:] if log.exists() else ""
