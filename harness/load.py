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
from threading import Event
from types import TracebackType
from typing import Self

import msgspec

from harness.child import Answer, Request
from harness.chips import locked
from harness.overlay import Overlay
from harness.places.opening import store_environment
from harness.target import Target
from harness.twin import Meeting, Twin, meet

_LOG_TAIL = 20000  # a crash ends with the stacks of all threads
_START_SECONDS = 300.0
_GRACE_SECONDS = 30.0  # for the loading process to end a late load, before it is ended itself
_CLOSE_SECONDS = 10.0


class LoadProcessError(Exception):
    """A loading process gave no result.

    Attributes:
        what: how it ended, in words.
        details: its traceback, or the end of its log.
        late: whether its time was over; what it did by then is not known.
    """

    def __init__(self, what: str, details: str, *, late: bool = False) -> None:
        super().__init__(what)
        self.add_note(details)
        self.what = what
        self.details = details
        self.late = late


class LoadProcess:
    """A process with the stack imported; forks a process for every job.

    One serves all targets of a name: what sets them apart, the number of devices and how experts
    are spread, is read from the environment when a forked process first touches a device.

    Args:
        target: its stack is imported, and every job's target has its name.
        overlay: packages to import instead of the installed ones.
        preload: whether the stack is imported once, before the first job, or by each job.

    Attributes:
        scratch: a directory that goes with the process, whatever ends it.
    """

    def __init__(
        self, target: Target, overlay: Overlay | None = None, *, preload: bool = True
    ) -> None:
        self.target = target
        self._preload = target.name if preload else ""
        self.overlay = overlay or Overlay()
        self._process: subprocess.Popen[bytes] | Twin | None = None
        self._origin: subprocess.Popen[bytes] | Twin | None = None  # what it was forked from
        self.scratch = Path(tempfile.mkdtemp(prefix="harness-load-"))
        self._jobs = 0
        self._answered = False
        self._failed_start: tuple[str, str] | None = None

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
        self,
        job: str,
        argument: bytes,
        target: Target,
        *,
        timeout: float,
        cancelled: Event | None = None,
    ) -> bytes:
        """Run ``module:function`` on ``argument`` in a fresh process and return its result.

        Args:
            job: the function takes bytes and returns bytes.
            argument: its argument.
            target: whose environment the job has and whose chips are locked while it runs.
            timeout: seconds until the process is asked for its stacks and ended.
            cancelled: the job is not to begin once it is set; :meth:`cancel` ends one that has.

        Raises:
            LoadProcessError: the job raised, crashed, was cancelled, or did not end in time; or
                the stack could not be imported, which is tried once.
            TargetUnavailable: the target's chips did not become free in time.
            HarnessError: the job refused.
        """
        assert target.name == self.target.name
        with locked(target.chips, timeout=timeout), self._directory() as directory:
            environment = store_environment() | target.environment
            request = Request(job, argument, str(directory), timeout, environment)
            return _result(self._ask(request, cancelled or Event()), directory, timeout)

    def cancel(self) -> None:
        """Have a job end that another thread waits for: it gets a :class:`LoadProcessError`.

        For one that has not begun yet, set the event it was given first.
        """
        if process := self._process:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()

    def close(self) -> None:
        """End the process, and a job that still runs, and remove its files."""
        self._end()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _end(self) -> None:
        """Close the process's input, at which it ends by itself; the next job starts another."""
        process, self._process, self._origin = self._process, None, None
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

    def _require_started(self) -> None:
        """Start the process if there is none.

        Raises:
            LoadProcessError: it does not start; if it never did, it is not tried again: what
                cannot be imported once is not importable the next time, and each time costs.
        """
        if self._failed_start:
            raise LoadProcessError(*self._failed_start)
        if not self._is_running:
            self._end()  # a job was cancelled that had ended already
            self._start()

    @property
    def _is_running(self) -> bool:
        """Whether requests can be sent; it may have ended by itself."""
        return bool(self._process and self._process.stdin and not self._process.stdin.closed)

    def _start(self) -> None:
        self.scratch.mkdir(exist_ok=True)
        with (self.scratch / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "harness.child", self.scratch, self._preload],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._environment(),
            )
        try:
            with self._ending():
                self._answer(_START_SECONDS)
        except LoadProcessError as error:
            if not self._answered:
                what = f"{error.what}, at its first start; it is not started again"
                self._failed_start = what, error.details
            raise
        self._answered = True

    def start_from(self, first: LoadProcess) -> None:
        """Be a fork of ``first`` as it runs now; where that fails, a job starts this anew."""
        assert (first.target.name, first.overlay) == (self.target.name, self.overlay)
        if self._is_running and self._origin in (None, first._process):
            return
        self._end()
        self.scratch.mkdir(exist_ok=True)
        with contextlib.suppress(LoadProcessError, OSError), self._ending():
            self._process = first.twin(self.scratch)
            self._origin = first._process
            self._answer(_START_SECONDS)
        self._failed_start = first._failed_start

    def twin(self, scratch: Path) -> Twin:
        """A process like this one, with nothing to do yet and ``scratch`` as its directory.

        Raises:
            LoadProcessError: this process cannot be started, or has ended.
            OSError: the two did not meet.
        """
        self._require_started()
        return meet(scratch, self._invite)

    def _invite(self, meeting: Meeting) -> None:
        with self._ending():
            self._write(meeting)
            self._answer(_START_SECONDS)

    def _environment(self) -> dict[str, str]:
        first = self.overlay.link_into(self.scratch / "overlay")
        path = [str(first), *(entry or os.getcwd() for entry in sys.path)]
        return os.environ | self.target.environment | {"PYTHONPATH": os.pathsep.join(path)}

    @contextmanager
    def _directory(self) -> Iterator[Path]:
        self._require_started()
        self._jobs += 1
        directory = self.scratch / str(self._jobs)
        directory.mkdir()
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _ask(self, request: Request, cancelled: Event) -> Answer:
        """Send a request and wait for its answer; an interrupted wait ends the process."""
        with self._ending():
            if cancelled.is_set():
                raise LoadProcessError("the load was cancelled before it began", "")
            self._write(request)
            return self._answer(request.timeout + _GRACE_SECONDS)

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """End the process if the body fails: an answer nobody took would be the next job's."""
        try:
            yield
        except BaseException:
            self._end()
            raise

    def _write(self, asked: Request | Meeting) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(msgspec.json.encode(asked) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it ended: the answer will say so
        except ValueError as error:  # closed, by cancel in another thread
            raise LoadProcessError("the load was cancelled", "") from error

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
            tail = _log_tail(self.scratch)
            self._end()
            raise LoadProcessError(f"the loading process {how}", tail)
        return msgspec.json.decode(line, type=Answer)


def _result(answer: Answer, directory: Path, timeout: float) -> bytes:
    """What a job left in its directory: its result, or the error that is raised here."""
    result, refusal, error = (directory / name for name in ("result", "refusal", "error"))
    if answer.late:
        what = f"the load did not end within {timeout:g} s"
        raise LoadProcessError(what, _log_tail(directory), late=True)
    if answer.status == 0:
        return result.read_bytes()
    if refusal.exists():
        raise pickle.loads(refusal.read_bytes())
    if error.exists():
        raise LoadProcessError("the load raised an error", error.read_text())
    how = _how(answer.status)
    raise LoadProcessError(f"the load's process ended with {how}", _log_tail(directory))


def _how(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"


def _log_tail(directory: Path) -> str:
    log = directory / "log"
    return log.read_text(errors="replace")[-_LOG_TAIL:] if log.exists() else ""
