"""A process that loads: imports the stack once, then forks a fresh process for every load.

``python -m harness.load.child SCRATCH TARGET JOBS`` reads one request a line from standard input
and answers one line when the forked process has ended. Importing the stack takes many seconds, and
a load leaves memory, devices and global state behind; forking after the import and before any
device is touched gives each load a process of its own at the price of the load alone.

It watches its forked process and its parent at once. A load that outlives its time is asked for
its stacks, then terminated, then killed. When the parent is gone or hangs up, the load and this
process end; :mod:`harness.load.guard` sees to it where this process cannot, and removes the files.

Nothing that a load leaves has a name: its result and its output are in memory this process made
before it forked. What crosses to the parent is JSON of the types below.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import mmap
import os
import resource
import selectors
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from harness.base.errors import HarnessError, InternalError, SentError, no_room
from harness.base.progress import EVERY_SECONDS, Figures, Meter
from harness.load import engine
from harness.load.connection import tail
from harness.load.guard import die_with_parent
from harness.load.twin import Meeting, become, take_over

#: What a loading process can be asked to do: a name, and the function that does it, as
#: ``module:function``. It takes the job's argument, bytes, and the meter to count in, and returns
#: bytes. A process gets the table as it is when it starts, and nothing that is sent to it
#: afterwards can name a module. Tests and benchmarks add rows of their own.
#:
#: A module may have a function ``prepare``: a process that imports it before the first load calls
#: that once, for all loads it forks.
JOBS = {
    "verify": "harness.verification.job:verify_job",
    "record": "harness.audit.feeding:record_job",
}

#: Asks a load for the stacks of its threads, which go to its log.
DUMP_STACKS = signal.SIGUSR1
_JOB = "verify"  # what nearly every job is
_DUMP_SECONDS = 1.0
_TERMINATE_SECONDS = 5.0
_DESCRIPTORS = 65536  # some libraries count up to the limit
_LARGEST_LOG = 64 * 2**20  # of a load that never stops talking, the last this many bytes are kept


class Request(msgspec.Struct, frozen=True, tag=True):
    """One job: its name in the table, its argument, and its limits.

    ``timeout`` is in seconds; ``environment`` is set before any device is touched, and what is None
    there unset; ``watched`` says whether figures are wanted while it runs.
    """

    job: str
    argument: bytes
    timeout: float
    environment: dict[str, str | None] = {}
    watched: bool = False


class Scratch(msgspec.Struct, frozen=True, tag=True):
    """The guard's word: the scratch directory is made, or could not be, for this ``errno``."""

    error: int


class Ready(msgspec.Struct, frozen=True, tag=True):
    """A loading process, or the twin of the one that says so, can be sent requests."""

    pid: int


class Returned(msgspec.Struct, frozen=True, tag=True):
    """What a job's function returned."""

    result: bytes


class JobRaised(msgspec.Struct, frozen=True, tag=True):
    """The traceback of what a job's function raised, other than a :class:`HarnessError`."""

    error: str


class Answer(msgspec.Struct, frozen=True, tag=True):
    """A forked process has ended.

    Attributes:
        status: its exit status, negative for a signal.
        late: whether its time was over.
        phase: what it had begun last; empty for nothing, see :mod:`harness.base.progress`.
        outcome: what it left; None where it was ended, or ended itself, before it left anything.
        log: the end of its output.
    """

    status: int
    late: bool
    phase: str
    outcome: Returned | SentError | JobRaised | None
    log: str


class _ParentGone(Exception):
    """Standard input closed while a load was running."""


class _Load(NamedTuple):
    """A forked process, and the memory it shares with this one."""

    pid: int
    meter: Meter
    log: int
    outcome: int


def main(scratch: Path, preload: str, jobs: Mapping[str, str]) -> None:
    """Serve requests until standard input closes.

    Args:
        scratch: the directory all jobs' directories lie in.
        preload: the target whose stack is imported before the first request, and what compares;
            empty for none.
        jobs: the table of jobs, see :data:`JOBS`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to act on
    server = _Server(scratch, jobs)
    _allow_descriptors()
    if preload:
        try:
            engine.preload(preload)
            with InternalError.instead():
                _prepare(jobs[_JOB])
        except HarnessError as error:
            server.say(SentError.of(error))
            return
    server.serve()


def _prepare(job: str) -> None:
    """Import a job's module, and have it do what every load would else do anew."""
    module = importlib.import_module(job.split(":")[0])
    getattr(module, "prepare", lambda: None)()


def _allow_descriptors() -> None:
    """Raise this process's limit of open files as far as it may: the stack opens hundreds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _DESCRIPTORS and soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, _DESCRIPTORS), hard))


class _Server:
    """Answers on what was standard output, which gets what imports print, apart from answers."""

    def __init__(self, scratch: Path, jobs: Mapping[str, str]) -> None:
        self._jobs = jobs
        self._settle(scratch)

    def _settle(self, scratch: Path) -> None:
        """Take standard output for answers; keep temporary files where they go with the rest."""
        self._answers = os.dup(1)
        self._scratch = scratch
        self._count = 0
        os.dup2(2, 1)  # what imports print must not mix with the answers
        os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)  # what imports write goes with it

    def say(self, message: msgspec.Struct) -> None:
        """Write a line."""
        left = memoryview(msgspec.json.encode(message) + b"\n")
        while left:
            left = left[os.write(self._answers, left) :]

    def serve(self) -> None:
        """Say that requests can come, and do as they say until there are no more."""
        with contextlib.suppress(_ParentGone, BrokenPipeError):
            self.say(Ready(os.getpid()))
            for line in iter(lambda: _read_line(0), b""):
                asked = msgspec.json.decode(line, type=Request | Meeting)
                self.say(self._twin(asked) if isinstance(asked, Meeting) else self._job(asked))

    def _twin(self, meeting: Meeting) -> Ready:
        """Fork a process like this one, that serves on its own."""
        with socket.socket(fileno=os.dup(0)) as requests:
            given = take_over(requests)
        if pid := _forked():
            for descriptor in given:
                os.close(descriptor)
            return Ready(pid)
        try:
            os.close(self._answers)  # its end must show here, however long its twin lives
            become(given)
            os.mkdir(meeting.scratch, 0o700)
            self._settle(Path(meeting.scratch))
            self.serve()
            shutil.rmtree(meeting.scratch, ignore_errors=True)
        except BaseException:  # whoever waits for the twin does not wait for long
            traceback.print_exc()
        finally:
            os._exit(0)

    def _job(self, request: Request) -> Answer | SentError:
        """Run a job in a forked process and say how that ended."""
        self._count += 1
        directory = self._scratch / str(self._count)
        try:
            directory.mkdir(0o700)
            load = self._fork(request, directory)
        except OSError as error:
            shutil.rmtree(directory, ignore_errors=True)
            return SentError.of(no_room("the load could not be started", error))
        try:
            status, late = self._supervise(load, request)
            return Answer(
                status, late, load.meter.figures.phase, _outcome(load.outcome), tail(load.log)
            )
        finally:
            os.close(load.log)
            os.close(load.outcome)
            shutil.rmtree(directory, ignore_errors=True)

    def _fork(self, request: Request, directory: Path) -> _Load:
        meter = Meter(memoryview(mmap.mmap(-1, Meter.SIZE)))
        log, outcome = (os.memfd_create(name, os.MFD_CLOEXEC) for name in ("log", "outcome"))
        parent, pid = os.getpid(), _forked()
        if pid == 0:
            die_with_parent(parent)
            os._exit(_run(request, self._jobs, directory, _Load(pid, meter, log, outcome)))
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)  # both sides: whoever comes first
        return _Load(pid, meter, log, outcome)

    def _supervise(self, load: _Load, request: Request) -> tuple[int, bool]:
        """Wait for a load to end; end it when it is late or the parent is gone.

        Returns:
            Its exit status, and whether it was late.
        """
        ended = os.pidfd_open(load.pid)
        try:
            if self._ends(ended, load, request.timeout, watched=request.watched):
                _signal(load.pid, signal.SIGKILL)  # what it started and left running
                return _status(load.pid), False
            _signal(load.pid, DUMP_STACKS)
            self._ends(ended, load, _DUMP_SECONDS)
            _signal(load.pid, signal.SIGTERM)
            self._ends(ended, load, _TERMINATE_SECONDS)
            _signal(load.pid, signal.SIGKILL)
            return _status(load.pid), True
        except _ParentGone:
            _signal(load.pid, signal.SIGKILL)
            _status(load.pid)
            raise
        finally:
            os.close(ended)

    def _ends(self, ended: int, load: _Load, seconds: float, *, watched: bool = False) -> bool:
        """Whether the load ends within ``seconds``; pass on its figures, and bound its log.

        Raises:
            _ParentGone: the parent closed its end first; it never writes while a load is running.
        """
        end, shown = time.monotonic() + seconds, Figures("", 0, 0)
        with selectors.DefaultSelector() as selector:
            selector.register(ended, selectors.EVENT_READ)
            selector.register(0, selectors.EVENT_READ)
            while (left := end - time.monotonic()) > 0:
                ready = {key.fd for key, _ in selector.select(min(left, EVERY_SECONDS))}
                if 0 in ready:
                    raise _ParentGone
                if ended in ready:
                    return True
                if os.fstat(load.log).st_size > _LARGEST_LOG:
                    os.ftruncate(load.log, 0)
                if watched and (figures := load.meter.figures) != shown:
                    self.say(shown := figures)
        return False


def _read_line(descriptor: int) -> bytes:
    """One line, read byte by byte: nothing of it may hide in a buffer from the selector."""
    line = bytearray()
    while byte := os.read(descriptor, 1):
        line += byte
        if byte == b"\n":
            return bytes(line)
    return b""


def _forked() -> int:
    """The new process's number; 0 in that."""
    with warnings.catch_warnings():
        # JAX warns of forking once its threads run; no backend is alive here, so none does.
        warnings.filterwarnings("ignore", message=r".*os\.fork\(\) was called", append=False)
        return os.fork()


def _signal(pid: int, number: int) -> None:
    """Send a signal to a load and, but for the request for its stacks, to all it started."""
    send = os.kill if number == DUMP_STACKS else os.killpg
    with contextlib.suppress(ProcessLookupError):
        send(pid, number)


def _status(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _outcome(file: int) -> Returned | SentError | JobRaised | None:
    """What a load left, if it came to that."""
    written = os.pread(file, os.fstat(file).st_size, 0)
    try:
        return msgspec.json.decode(written, type=Returned | SentError | JobRaised)
    except msgspec.MsgspecError:
        return None


def _run(request: Request, jobs: Mapping[str, str], directory: Path, load: _Load) -> int:
    """Do a job, in its process; its exit status."""
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)  # so that a load can be ended with all it started
    os.dup2(load.log, 1)
    os.dup2(load.log, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for name, value in request.environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    os.environ["TMPDIR"] = tempfile.tempdir = str(directory)
    # What vLLM pulls of a store, config.json and the like, it keeps by URL: never an old one.
    os.environ["VLLM_ASSETS_CACHE"] = str(directory / "assets")
    faulthandler.enable(load.log)
    faulthandler.register(DUMP_STACKS, load.log, all_threads=True)
    outcome = _done(request, jobs, load.meter)
    with os.fdopen(load.outcome, "wb") as file:
        file.write(msgspec.json.encode(outcome))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the job closed it
            stream.flush()
    return 0 if isinstance(outcome, Returned) else 1


def _done(
    request: Request, jobs: Mapping[str, str], meter: Meter
) -> Returned | SentError | JobRaised:
    try:
        with InternalError.instead(KeyError, ImportError, AttributeError):
            module, function = jobs[request.job].split(":")
            job = getattr(importlib.import_module(module), function)
        return Returned(job(request.argument, meter))
    except HarnessError as error:  # meant for the user: it goes on as it is
        return SentError.of(error)
    except BaseException:  # reported to the parent, whatever it is
        return JobRaised(traceback.format_exc())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], msgspec.json.decode(sys.argv[3]))
    os._exit(0)  # to take the imported stack apart would take seconds
