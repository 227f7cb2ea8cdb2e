"""A process that loads: imports the stack once, then forks a fresh process for every load.

``python -m harness.child SCRATCH`` reads one request a line from standard input and answers one
line when the forked process has ended. Importing the stack takes many seconds, and a load leaves
memory, devices and global state behind; forking after the import and before any device is
touched gives each load a process of its own at the price of the load alone.

It watches its forked process and its parent at once. A load that outlives its time is asked for
its stacks, then terminated, then killed. When the parent is gone, so are the load, its files and
this process: nothing is left to hold a device, a lock or a disk.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import os
import pickle
import selectors
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import BinaryIO

import msgspec

from harness import engine
from harness.errors import HarnessError
from harness.twin import Meeting, arrive

#: Asks a load for the stacks of its threads, which go to its log.
DUMP_STACKS = signal.SIGUSR1
_JOB = "harness.job"  # what nearly every job needs
_DUMP_SECONDS = 1.0
_TERMINATE_SECONDS = 5.0


class Request(msgspec.Struct, frozen=True, tag=True):
    """One job: ``module:function`` taking and returning bytes, its argument, and its limits.

    The directory receives ``log`` (output) and one of ``result``, ``refusal`` (a pickled
    :class:`HarnessError`) or ``error`` (a traceback), and is the job's place for temporary files.
    ``timeout`` is in seconds; ``environment`` is set before any device is touched.
    """

    job: str
    argument: bytes
    directory: str
    timeout: float
    environment: dict[str, str] = {}


class Answer(msgspec.Struct, frozen=True):
    """A forked process has ended: its exit status, negative for a signal; whether it was late."""

    status: int
    late: bool = False


class _ParentGone(Exception):
    """Standard input closed while a load was running."""


def main(scratch: Path, preload: str) -> None:
    """Serve requests until standard input closes, then remove ``scratch``.

    Args:
        scratch: the directory all jobs' directories lie in.
        preload: the target whose stack is imported before the first request, and what compares;
            empty for none.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to act on
    answers = _settle(scratch)
    if preload:
        engine.preload(preload)
        importlib.import_module(_JOB)
    _serve(scratch, answers)


def _settle(scratch: Path) -> BinaryIO:
    """Keep output and temporary files apart from the answers, whose pipe is returned."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what imports print must not mix with the answers
    os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)  # what imports write goes with it
    return answers


def _serve(scratch: Path, answers: BinaryIO) -> None:
    """Say that requests can come, and do as they say until there are no more."""
    try:
        answers.write(msgspec.json.encode(Answer(0)) + b"\n")
        for line in iter(lambda: _read_line(0), b""):
            asked = msgspec.json.decode(line, type=Request | Meeting)
            if isinstance(asked, Meeting):
                _fork_twin(asked, answers)
                answer = Answer(0)
            else:
                answer = _supervise(_fork(asked), asked)
            answers.write(msgspec.json.encode(answer) + b"\n")
    except (_ParentGone, BrokenPipeError):
        pass
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _read_line(descriptor: int) -> bytes:
    """One line, read byte by byte: nothing of it may hide in a buffer from the selector."""
    line = bytearray()
    while byte := os.read(descriptor, 1):
        line += byte
        if byte == b"\n":
            return bytes(line)
    return b""


def _fork_twin(meeting: Meeting, answers: BinaryIO) -> None:
    """Fork a process like this one, that serves on its own."""
    if _forked():
        return
    try:
        answers.close()  # its end must show here, however long its twin lives
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # nor may its requests be read here
        arrive(meeting)
        _serve(Path(meeting.scratch), _settle(Path(meeting.scratch)))
    except BaseException:  # whoever waits for the twin does not wait for long
        traceback.print_exc()
    finally:
        os._exit(0)


def _fork(request: Request) -> int:
    pid = _forked()
    if pid == 0:
        os._exit(_run(request))
    with contextlib.suppress(OSError):
        os.setpgid(pid, pid)  # both sides: whoever comes first
    return pid


def _forked() -> int:
    """The new process's number; 0 in that."""
    with warnings.catch_warnings():
        # JAX warns of forking once its threads run; no backend is alive here, so none does.
        warnings.filterwarnings("ignore", message=r".*os\.fork\(\) was called", append=False)
        return os.fork()


def _supervise(pid: int, request: Request) -> Answer:
    """Wait for a load to end; end it when it is late or the parent is gone."""
    ended = os.pidfd_open(pid)
    try:
        if _wait(ended, request.timeout):
            return Answer(_status(pid))
        _signal(pid, DUMP_STACKS)
        _wait(ended, _DUMP_SECONDS)
        _signal(pid, signal.SIGTERM)
        _wait(ended, _TERMINATE_SECONDS)
        _signal(pid, signal.SIGKILL)
        return Answer(_status(pid), late=True)
    except _ParentGone:
        _signal(pid, signal.SIGKILL)
        _status(pid)
        raise
    finally:
        os.close(ended)


def _wait(ended: int, seconds: float) -> bool:
    """Whether the load ended within ``seconds``.

    Raises:
        _ParentGone: the parent closed its end first; it never writes while a load is running.
    """
    with selectors.DefaultSelector() as selector:
        selector.register(ended, selectors.EVENT_READ)
        selector.register(0, selectors.EVENT_READ)
        ready = {key.fd for key, _ in selector.select(seconds)}
    if 0 in ready:
        raise _ParentGone
    return ended in ready


def _signal(pid: int, number: int) -> None:
    """Send a signal to a load and, but for the request for its stacks, to all it started."""
    send = os.kill if number == DUMP_STACKS else os.killpg
    with contextlib.suppress(ProcessLookupError):
        send(pid, number)


def _status(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _run(request: Request) -> int:
    directory = Path(request.directory)
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)  # so that a load can be ended with all it started
    log = os.open(directory / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(request.environment)
    os.environ["TMPDIR"] = tempfile.tempdir = str(directory)
    # What vLLM pulls of a store, config.json and the like, it keeps by URL: never an old one.
    os.environ["VLLM_ASSETS_CACHE"] = str(directory / "assets")
    faulthandler.enable(log)
    faulthandler.register(DUMP_STACKS, log, all_threads=True)
    try:
        module, function = request.job.split(":")
        result = getattr(importlib.import_module(module), function)(request.argument)
        (directory / "result").write_bytes(result)
        return 0
    except HarnessError as error:  # meant for the user: it goes on as it is
        (directory / "refusal").write_bytes(pickle.dumps(error))
        return 1
    except BaseException:  # reported to the parent, whatever it is
        (directory / "error").write_text(traceback.format_exc())
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
    os._exit(0)  # to take the imported stack apart would take seconds
