"""A process that loads: imports the stack once, then forks a fresh process for every load.

``python -m harness.child`` reads one request a line from standard input and answers one line
when the forked process has ended. Importing the stack takes many seconds, and a load leaves
memory, devices and global state behind; forking after the import and before any device is
touched gives each load a process of its own at the price of the load alone.

A forked process redirects its output to a log, runs the named job, writes the result and exits.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import msgspec

from harness import engine


class Request(msgspec.Struct, frozen=True):
    """One job: ``module:function`` taking and returning bytes, its argument, and its directory.

    The directory receives ``log`` (output), ``result`` or ``error`` (a traceback), and is the
    job's place for temporary files.
    """

    job: str
    argument: bytes
    directory: str


class Answer(msgspec.Struct, frozen=True):
    """A forked process has ended: its exit status, negative for a signal."""

    status: int


def main() -> None:
    """Serve requests until standard input closes."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what imports print must not mix with the answers
    engine.preload()
    answers.write(msgspec.json.encode(Answer(0)) + b"\n")
    for line in sys.stdin.buffer:
        request = msgspec.json.decode(line, type=Request)
        answers.write(msgspec.json.encode(Answer(_fork(request))) + b"\n")


def _fork(request: Request) -> int:
    with warnings.catch_warnings():
        # JAX warns of forking once its threads run; no backend is alive here, so none does.
        warnings.filterwarnings("ignore", message=r".*os\.fork\(\) was called", append=False)
        pid = os.fork()
    if pid == 0:
        os._exit(_run(request))
    (Path(request.directory) / "pid").write_text(str(pid))
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def _run(request: Request) -> int:
    directory = Path(request.directory)
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)  # so that a load that hangs can be ended with all it started
    log = os.open(directory / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ["TMPDIR"] = tempfile.tempdir = str(directory)
    try:
        module, function = request.job.split(":")
        result = getattr(importlib.import_module(module), function)(request.argument)
        (directory / "result").write_bytes(result)
        return 0
    except BaseException:  # reported to the parent, whatever it is
        (directory / "error").write_text(traceback.format_exc())
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


if __name__ == "__main__":
    main()
