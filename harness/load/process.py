"""The parent's side of a load: starts the loading process, sends it jobs, bounds their time.

The parent imports no part of the stack. A load that raises, crashes, hangs or is killed is an
outcome with a log, never the end of the session.
"""

from __future__ import annotations

import contextlib
import copy
import os
import resource
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import NamedTuple, Self, TypeVar

import msgspec

from harness.base.errors import HarnessError, InternalError, SentError, TargetUnavailable, no_room
from harness.base.progress import Figures, Watch
from harness.checkpoint.stores.opening import store_environment
from harness.load import guard
from harness.load.child import JOBS, Answer, JobRaised, Ready, Request, Returned, Scratch
from harness.load.chips import locked
from harness.load.connection import Connection
from harness.load.overlay import Overlay
from harness.load.target import Target
from harness.load.twin import Meeting, Twin

#: The phase of a loading process that has not said yet that it is ready.
IMPORT = "import"
_START_SECONDS = 300.0
_GUARD_SECONDS = 60.0  # for the guard to start, which takes milliseconds on an idle machine
_GRACE_SECONDS = 30.0  # for the loading process to end a late load, before it is ended itself
_CLOSE_SECONDS = 10.0
_DESCRIPTORS = 256  # the stack and one load have some 150 open
#: What would change what the stack under test does: its checks are ``assert`` statements.
_NOT_PASSED_ON = ("PYTHONOPTIMIZE", "PYTHONINSPECT")

_OVERLAY = "overlay"
Message = Answer | Figures | Ready | Scratch | SentError
Expected = TypeVar("Expected", Answer, Ready, Scratch)


class LoadProcessError(Exception):
    """A loading process gave no result.

    Attributes:
        what: how it ended, in words.
        details: its traceback, or the end of its log.
        late: whether its time was over; what it did by then is not known.
        phase: what had begun: :data:`IMPORT`, or what the job said last; empty for nothing.
    """

    def __init__(self, what: str, details: str, *, late: bool = False, phase: str = "") -> None:
        super().__init__(what)
        self.add_note(details)
        self.what = what
        self.details = details
        self.late = late
        self.phase = phase


class _Closable(ABC):
    """What is closed when the block it is used in ends."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """End all that it started."""


class _Guard(NamedTuple):
    """A guard, and the directory that goes with it."""

    process: subprocess.Popen[bytes]
    scratch: Path

    def has_ended(self) -> bool:
        """Whether it has; what one that was killed could not remove is removed here."""
        if self.process.poll():
            shutil.rmtree(self.scratch, ignore_errors=True)  # which follows no link
        return self.process.returncode is not None

    def end(self) -> None:
        """End it with all it guards; it removes what they leave."""
        self.process.send_signal(guard.END_ALL)
        try:
            self.process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.has_ended()


class LoadProcess(_Closable):
    """A process with the stack imported; forks a process for every job.

    One serves all targets of a name: what sets them apart, the number of devices and how experts
    are spread, is read from the environment when a forked process first touches a device.

    Args:
        target: its stack is imported, and every job's target has its name.
        overlay: packages to import instead of the installed ones.
        preload: whether the stack is imported once, before the first job, or by each job.

    Attributes:
        scratch: the directory of the process that runs, or of the next; it goes with the process,
            whatever ends that, and no two have the same.
    """

    def __init__(
        self, target: Target, overlay: Overlay | None = None, *, preload: bool = True
    ) -> None:
        self.target = self._started_for = target
        self._preload = target.name if preload else ""
        self.overlay = overlay or Overlay()
        self.scratch = _unused()
        self._connection: Connection | None = None
        self._process: subprocess.Popen[bytes] | Twin | None = None  # its guard, or a twin itself
        self._guards: list[_Guard] = []  # that of this process, and those that twins live under
        self._origin: Connection | None = None  # of what it was forked from
        self.pid: int | None = None
        self._hung_up = False
        self._answered = False
        self._failed_start: LoadProcessError | SentError | None = None

    def run(
        self,
        job: str,
        argument: bytes,
        target: Target,
        *,
        timeout: float,
        cancelled: Event | None = None,
        watch: Watch | None = None,
    ) -> bytes:
        """Run a job on ``argument`` in a fresh process and return its result.

        Args:
            job: its name in :data:`harness.load.child.JOBS`, as that was when the process started.
            argument: its argument.
            target: whose environment the job has and whose chips are locked while it runs.
            timeout: seconds until the process is asked for its stacks and ended.
            cancelled: the job is not to begin once it is set; :meth:`cancel` ends one that has.
            watch: gets figures of the job's progress while it runs.

        Raises:
            LoadProcessError: the job raised, crashed, was cancelled, or did not end in time; or
                the stack could not be imported, which is tried once.
            TargetUnavailable: the target's chips did not become free in time, or the machine has
                no room for the process or its files.
            InternalError: the target is of another name, or what came back makes no sense.
            HarnessError: the job refused.
        """
        if target.name != self.target.name:
            raise _misused(f"a load onto {target.name}", f"the loading process of {self.target}")
        with locked(target.chips, timeout=timeout):
            self._require_started()
            environment = self._as_inherited() | store_environment() | target.environment
            request = Request(job, argument, timeout, environment, watch is not None)
            return _result(self._ask(request, cancelled or Event(), watch), timeout)

    def cancel(self) -> None:
        """Have a job end that another thread waits for: it gets a :class:`LoadProcessError`.

        For one that has not begun yet, set the event it was given first.
        """
        self._hung_up = True
        if connection := self._connection:
            connection.hang_up()
        if (process := self._process) and not isinstance(process, Twin):
            process.send_signal(guard.END_COMMAND)  # it may be at its imports, and not listen

    def close(self) -> None:
        """End the process, a job that still runs, and its twins, and remove their files."""
        self._end()
        while self._guards:
            self._guards.pop().end()

    def _end(self) -> None:
        """End the process, not its twins; the next job starts another."""
        connection, self._connection = self._connection, None
        process, self._process, self._origin, self.pid = self._process, None, None, None
        self._hung_up = False
        if connection is None:
            return
        self.scratch = _unused()
        connection.hang_up()
        if isinstance(process, Twin):
            _end_twin(process)
        elif process:
            process.send_signal(guard.END_COMMAND)
            if not connection.ended(_CLOSE_SECONDS):
                process.kill()  # at which the loading process and its load are killed, too
                process.wait()
        connection.close()
        self._guards = [each for each in self._guards if not each.has_ended()]

    def _require_started(self) -> None:
        """Start the process if there is none.

        Raises:
            LoadProcessError: it does not start; if it never did, it is not tried again: what
                cannot be imported once is not importable the next time, and each time costs.
            HarnessError: alike, when it says why.
        """
        if isinstance(self._failed_start, SentError):
            raise self._failed_start.error()
        if self._failed_start:
            raise self._failed_start
        if not self._is_running:
            self._end()  # a job was cancelled that had ended already
            self._start()

    @property
    def _is_running(self) -> bool:
        """Whether requests can be sent; it may have ended by itself."""
        return self._connection is not None and not self._hung_up

    def _start(self) -> None:
        _require_descriptors()
        connection = _new_connection()
        with self._ending():
            self._connection = connection
            try:
                self._process = self._guarded(connection)
            except OSError as error:
                raise no_room("the loading process could not be started", error) from error
            finally:
                connection.close_theirs()
            self._guards.append(_Guard(self._process, self.scratch))
            scratch = self._expect(Scratch, _GUARD_SECONDS)
            if scratch.error:
                why = OSError(scratch.error, os.strerror(scratch.error))
                raise no_room("no directory for temporary files", why, str(self.scratch))
            if self.overlay.packages:
                self.overlay.link_into(self.scratch / _OVERLAY)
            self._send(b".")
            self._await_ready()
        self._answered = True

    def _guarded(self, connection: Connection) -> subprocess.Popen[bytes]:
        """Start the guard, which starts the process when it is told to."""
        command = [sys.executable, "-m", "harness.load.child", str(self.scratch), self._preload]
        command.append(msgspec.json.encode(JOBS).decode())
        requests, answers, log = connection.theirs
        self._started_for = self.target
        return subprocess.Popen(
            [
                sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), str(self.scratch),
                *command,
            ],
            stdin=requests, stdout=answers, stderr=log, env=self._environment(),
            start_new_session=True,  # what ends this session must not end the guard with it
        )  # fmt: skip

    def _await_ready(self) -> None:
        """Wait until the process has imported what it is to.

        Raises:
            HarnessError: it says why it could not.
            LoadProcessError: it ended, or takes too long.
        """
        try:
            self.pid = self._expect(Ready, _START_SECONDS).pid
        except LoadProcessError as error:
            error.phase = IMPORT
            if not (self._answered or self._hung_up):
                what = f"{error.what}, at its first start; it is not started again"
                self._failed_start = LoadProcessError(what, error.details, phase=IMPORT)
            raise
        except HarnessError as error:
            self._failed_start = SentError.of(error)
            raise

    def start_from(self, first: LoadProcess) -> None:
        """Be a fork of ``first`` as it runs now; where that fails, a job starts this anew."""
        if (first.target.name, first.overlay) != (self.target.name, self.overlay):
            raise _misused(f"a twin of {first.target}", f"the loading process of {self.target}")
        if self._is_running and self._origin in (None, first._connection):
            return
        self._end()
        with contextlib.suppress(LoadProcessError, TargetUnavailable, OSError), self._ending():
            first._require_started()
            connection = self._connection = _new_connection()
            self.scratch = first.scratch / f"twin-{secrets.token_hex(4)}"
            try:
                self._process = first._twin(Meeting(str(self.scratch)), connection)
            finally:
                connection.close_theirs()
            self._origin = first._connection
            self.pid = self._expect(Ready, _START_SECONDS).pid
        self._failed_start = first._failed_start
        self._started_for = first._started_for

    def _twin(self, meeting: Meeting, connection: Connection) -> Twin:
        """A process like this one, at the other end of ``connection``.

        Raises:
            LoadProcessError: this process has ended.
            OSError: there is no descriptor left to watch the twin by.
        """
        with self._ending():
            self._send(msgspec.json.encode(meeting) + b"\n", connection)
            pid = self._expect(Ready, _START_SECONDS).pid
        return Twin(pid)

    def _as_inherited(self) -> dict[str, str | None]:
        """What the process has of the target it was started for, as it would be without."""
        return {name: os.environ.get(name) for name in self._started_for.environment}

    def _environment(self) -> dict[str, str]:
        first = str(self.scratch / _OVERLAY)
        path = [first, *(entry or os.getcwd() for entry in sys.path)]
        inherited = {name: text for name, text in os.environ.items() if name not in _NOT_PASSED_ON}
        return inherited | self.target.environment | {"PYTHONPATH": os.pathsep.join(path)}

    def _ask(self, request: Request, cancelled: Event, watch: Watch | None) -> Answer:
        """Send a request and wait for its answer; an interrupted wait ends the process."""
        with self._ending():
            if cancelled.is_set():
                raise LoadProcessError("the load was cancelled before it began", "")
            self._send(msgspec.json.encode(request) + b"\n")
            return self._expect(Answer, request.timeout + _GRACE_SECONDS, watch)

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """End the process if the body fails: an answer nobody took would be the next job's."""
        try:
            yield
        except BaseException:
            self._end()
            raise

    def _send(self, line: bytes, given: Connection | None = None) -> None:
        try:
            self._connected.send(line, given.theirs if given else None)
        except OSError as error:  # it ended: the answer would say so; or cancel hung up
            if self._hung_up:
                raise LoadProcessError("the load was cancelled", "") from error

    @property
    def _connected(self) -> Connection:
        if self._connection is None:
            raise _misused("a request", "no loading process")
        return self._connection

    def _expect(self, kind: type[Expected], timeout: float, watch: Watch | None = None) -> Expected:
        """Wait for the process's next message, and pass on the figures that come before.

        Raises:
            LoadProcessError: it ended, or says nothing in time.
            HarnessError: it says what is wrong.
        """
        end = time.monotonic() + timeout
        connection = self._connected
        while line := connection.receive(end - time.monotonic()):
            with InternalError.instead():
                message = msgspec.json.decode(line, type=Message)
            if isinstance(message, kind):
                return message
            if isinstance(message, SentError):
                raise message.error()
            if not isinstance(message, Figures):
                raise _misused(f"a message {type(message).__name__}", f"no {kind.__name__}")
            if watch:
                watch(message)
        how = "ended" if line is not None else f"gave no answer within {timeout:g} s"
        raise LoadProcessError(f"the loading process {how}", connection.log_tail())


def _end_twin(twin: Twin) -> None:
    try:
        twin.wait(_CLOSE_SECONDS)
    except subprocess.TimeoutExpired:
        twin.kill()
        twin.wait()


def _unused() -> Path:
    """A path that nobody can have foreseen; the guard makes it, and refuses what is there.

    Raises:
        TargetUnavailable: there is no directory for temporary files.
    """
    try:
        return Path(tempfile.gettempdir(), f"harness-load-{secrets.token_hex(8)}")
    except OSError as error:
        raise no_room("no directory for temporary files", error, "TMPDIR") from error


def _new_connection() -> Connection:
    try:
        return Connection()
    except OSError as error:
        raise no_room("the loading process could not be started", error) from error


def _require_descriptors() -> None:
    """Whether the stack can open as many files as it does; it ends anyhow where it cannot.

    Raises:
        TargetUnavailable: it may not.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < _DESCRIPTORS:
        raise TargetUnavailable(
            f"no more than {hard} files may be open at once",
            where="ulimit -Hn",
            expected=f"{_DESCRIPTORS} at least: the stack under test opens that many",
            hint=f"ulimit -n {_DESCRIPTORS}, or more, before the command",
        )


def _misused(what: str, where: str) -> InternalError:
    return InternalError(
        what, where=where, expected="what the process was started for", hint="report this"
    )


def _result(answer: Answer, timeout: float) -> bytes:
    """A job's result, or the error it ended in, which is raised here."""
    if answer.late:
        what = f"the load did not end within {timeout:g} s"
        raise LoadProcessError(what, answer.log, late=True, phase=answer.phase)
    match answer.outcome:
        case Returned(result=result):
            return result
        case SentError() as sent:
            raise sent.error()
        case JobRaised(error=error):
            raise LoadProcessError("the load raised an error", error, phase=answer.phase)
        case _:
            what = f"the load's process ended with {_how(answer.status)}"
            raise LoadProcessError(what, answer.log, phase=answer.phase)


def _how(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"


class LoadProcesses(_Closable):
    """The loading processes of a session, started when asked for.

    One for each name of a target and each host that this machine plays.

    Args:
        overlay: packages to import instead of the installed ones.

    Attributes:
        job: what they do to verify, by its name in ``JOBS`` of :mod:`harness.load.child`.
    """

    def __init__(self, overlay: Overlay | None = None) -> None:
        self.overlay = overlay or Overlay()
        self.job = "verify"
        self._processes: dict[tuple[str, int], LoadProcess] = {}

    def doing(self, job: str) -> LoadProcesses:
        """The same processes; to verify they do another job."""
        others = copy.copy(self)
        others.job = job
        return others

    def of(self, target: Target) -> LoadProcess:
        """The process for ``target`` and its host; of a further host it is forked from the first's.

        The first host's must be idle.
        """
        key, first = (target.name, target.host), self._processes.get((target.name, 0))
        if key not in self._processes:
            self._processes[key] = LoadProcess(target, self.overlay)
        if first and target.host:
            self._processes[key].start_from(first)
        return self._processes[key]

    def close(self) -> None:
        """End all of them."""
        while self._processes:
            self._processes.popitem()[1].close()
