"""Jobs that need next to nothing of the harness: they begin at once, so short time-outs hold.

A job's module is imported in its forked child, within the job's time.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness.base.progress import Meter


def echo(argument: bytes, _: Meter) -> bytes:
    print("echoing", flush=True)
    return argument


def count(argument: bytes, meter: Meter) -> bytes:
    """Be a while at the first byte of three."""
    meter.begin("stream", 3)
    meter.advance(1)
    time.sleep(1)
    return argument


def is_asserting(*_: object) -> bytes:
    return str(__debug__).encode()


def limit_of_files(*_: object) -> bytes:
    return str(resource.getrlimit(resource.RLIMIT_NOFILE)[0]).encode()


def fill_the_disk(*_: object) -> bytes:
    Path(tempfile.gettempdir(), "full").write_bytes(bytes(1 << 17))
    return b""


def print_without_end(*given: object) -> bytes:
    """Print faster than anybody looks, then as a load does; at the end crash."""
    for _ in range(30):
        os.write(1, bytes(8 << 20))
        time.sleep(0.02)
    time.sleep(1)
    print("bytes:", os.fstat(1).st_size)
    print("the last line", flush=True)
    return crash()


def pid(*_: object) -> bytes:
    return str(os.getpid()).encode()


def leave_a_temporary_file(*_: object) -> bytes:
    return tempfile.mkstemp()[1].encode()


def fail(*_: object) -> bytes:
    raise ValueError("as planted")


def crash(*_: object) -> bytes:
    print("about to crash", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
    return b""


def end_in_a_phase(argument: bytes, meter: Meter) -> bytes:
    """End as the reference is named, in the phase that the checkpoint is named as."""
    request, _ = json.loads(argument)
    meter.begin(request["checkpoint"], 0)
    ways = (crash, hang, leave, kill_what_watches, answer_nonsense)
    return {way.__name__: way for way in ways}[request["reference"]]()


def leave(*_: object) -> bytes:
    sys.exit("enough")


def kill_what_watches(*_: object) -> bytes:
    os.kill(os.getppid(), signal.SIGKILL)
    return hang()


def answer_nonsense(*_: object) -> bytes:
    return b"no report"


def hang(*_: object) -> bytes:
    print("hanging", flush=True)
    time.sleep(600)
    return b""


def hang_with_a_child(*_: object) -> bytes:
    """Never end, and have a child that never ends; its directory and its log hold both pids."""
    child = subprocess.Popen(["sleep", "600"])
    pids = f"{os.getpid()} {child.pid}"
    print(f"pids: {pids}", flush=True)
    Path(tempfile.gettempdir(), "pids").write_text(pids)
    time.sleep(600)
    return b""


def hang_deaf(*_: object) -> bytes:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
    return b""


def environment(*_: object) -> bytes:
    return json.dumps(dict(os.environ)).encode()


def kill_itself(*_: object) -> bytes:
    os.kill(os.getpid(), signal.SIGKILL)
    return b""


def say_and_hang(*_: object) -> bytes:
    Path(os.environ["SAY"]).touch()
    return hang()


def say_and_hang_deaf(*_: object) -> bytes:
    signal.signal(signal.SIGTERM, lambda *_: Path(os.environ["SAY"]).touch())
    while True:
        hang()


def say_and_hang_with_a_daemon(*_: object) -> bytes:
    """Leave a process that has no parent, session or group in common with this one."""
    command = ["sh", "-c", "setsid sleep 600 & setsid sh -c 'sleep 600 & sleep 600'"]
    subprocess.Popen(command, start_new_session=True)
    time.sleep(0.5)
    return say_and_hang()
