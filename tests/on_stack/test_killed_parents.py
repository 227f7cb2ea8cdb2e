"""A parent may end at any moment and in any way: two seconds later nothing of its loads is left."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from harness.load import guard
from tests.support.nested import nested_environment
from tests.support.waiting import gone, wait_for

pytestmark = pytest.mark.alone

ROOT = Path(__file__).parents[2]
SECONDS = 2.0  # what the loading process and its files may outlive their parent by

#: What every parent begins with.
START = """
import os, sys, time
from pathlib import Path
from harness.load.process import LoadProcess
from harness.load.overlay import Overlay
from harness.load.targets.known_targets import target_named
from tests.support import registered
target = target_named("emulated")
plain = lambda: LoadProcess(target, preload=False)
def run(process, job, timeout=600):
    return process.run("tests.support.idle_jobs:" + job, b"", target, timeout=timeout)
"""

#: Parents by what they are about, and what the file that says so is called; "" for the log.
MOMENTS = {
    "importing, and hearing nothing": (
        "LoadProcess(target, Overlay({'torch': Path(sys.argv[1])})).run('verify', b'', target,"
        " timeout=600)",
        "imports",
    ),
    "between requests": (
        "one = plain(); run(one, 'echo'); Path(sys.argv[2]).touch(); time.sleep(600)",
        "said",
    ),
    "loading": ("one = plain(); run(one, 'say_and_hang')", "said"),
    "ending a load that is late and deaf": (
        "one = plain(); run(one, 'say_and_hang_deaf', timeout=1)",
        "said",
    ),
    "loading, with a daemon": ("one = plain(); run(one, 'say_and_hang_with_a_daemon')", "said"),
    "with a twin that waits": (
        "one, other = plain(), plain(); other.start_from(one); run(one, 'say_and_hang')",
        "said",
    ),
    "with a twin that loads": (
        "one, other = plain(), plain(); other.start_from(one); run(other, 'say_and_hang')",
        "said",
    ),
    "with a twin that lives on": (
        "one, other = plain(), plain(); other.start_from(one); os.kill(one.pid, 9)\n"
        "run(other, 'say_and_hang')",
        "said",
    ),
    "forked, with all its descriptors": (
        "one = plain(); run(one, 'echo')\n"
        "if os.fork() == 0: time.sleep(600)\n"
        "run(one, 'say_and_hang')",
        "said",
    ),
}  # fmt: skip


@contextmanager
def parent(script: str, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A parent with a group of its own, and a package for it that never ends to be imported."""
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import ctypes, pathlib\n"
        f"pathlib.Path({str(tmp_path / 'imports')!r}).touch()\n"
        "ctypes.PyDLL(None).sleep(600)  # and no other thread runs meanwhile\n"
    )
    (tmp_path / "tmp").mkdir()
    environment = nested_environment(
        PYTHONPATH=str(ROOT), TMPDIR=str(tmp_path / "tmp"), SAY=str(tmp_path / "said")
    )
    command = [sys.executable, "-c", START + script, str(package), str(tmp_path / "said")]
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def descendants(pid: int) -> list[psutil.Process]:
    found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    return found


@pytest.mark.parametrize("moment", MOMENTS)
def test_nothing_outlives_a_parent_that_is_killed(moment: str, tmp_path: Path) -> None:
    script, said = MOMENTS[moment]
    with parent(script, tmp_path) as process:
        wait_for((tmp_path / said).exists)
        left = descendants(process.pid)
        (scratch,) = (tmp_path / "tmp").glob("harness-load-*")
        assert stat.S_IMODE(scratch.stat().st_mode) == 0o700
        if "fork" in script:  # one that goes on holding what its parent held
            left = [each for each in left if "guard.py" in " ".join(each.cmdline())]
            left += [each for of in left for each in of.children(recursive=True)]
        process.kill()
        process.wait()
        require_nothing_left(left, tmp_path / "tmp")


def require_nothing_left(left: list[psutil.Process], where: Path) -> None:
    assert len(left) > 1
    ended = time.monotonic()
    wait_for(lambda: gone(left), 60)
    wait_for(lambda: not list(where.iterdir()), 60)
    assert time.monotonic() - ended < SECONDS


@pytest.mark.parametrize(
    "how", ["os._exit(0)", "sys.exit()", "os.kill(os.getpid(), 15)", "os.kill(0, 9)"]
)
def test_however_it_ends(how: str, tmp_path: Path) -> None:
    """Also by a signal to all of its group, as ``timeout`` and a shell send it."""
    script = f"one = plain(); run(one, 'echo'); Path(sys.argv[2]).touch(); input(); {how}"
    script = script.replace("input()", "wait(sys.argv[2] + '-too')")
    wait = "def wait(path):\n    while not os.path.exists(path): time.sleep(.01)\n"
    with parent(wait + script, tmp_path) as process:
        wait_for((tmp_path / "said").exists)
        left = descendants(process.pid)
        (tmp_path / "said-too").touch()
        process.wait(60)
        require_nothing_left(left, tmp_path / "tmp")


@pytest.mark.parametrize("seconds", [0.1, 1.0, 3.0])
def test_a_parent_killed_while_the_real_stack_is_imported(seconds: float, tmp_path: Path) -> None:
    with parent("LoadProcess(target).run('verify', b'', target, timeout=600)", tmp_path) as process:
        wait_for(lambda: list((tmp_path / "tmp").iterdir()))
        wait_for(lambda: len(descendants(process.pid)) > 1)
        time.sleep(seconds)
        left = descendants(process.pid)
        process.kill()
        process.wait()
        require_nothing_left(left, tmp_path / "tmp")


GUARD = """
import os, subprocess, sys, time
command = [sys.executable, "-I", "-S", sys.argv[1], str(os.getpid()), *sys.argv[2:]]
process = subprocess.Popen(command, stdin=subprocess.PIPE)
time.sleep(600)
"""


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A parent of a guard that it has not told to start anything."""
    command = [sys.executable, "-c", GUARD, guard.__file__, str(tmp_path / "scratch"), "/bin/true"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_a_parent_killed_before_anything_runs(
    tmp_path: Path, guarded: subprocess.Popen[bytes]
) -> None:
    assert guarded.stdout is not None
    assert guarded.stdout.readline() == b'{"type": "Scratch", "error": 0}\n'
    assert (tmp_path / "scratch").is_dir()
    left = [psutil.Process(guarded.pid), *descendants(guarded.pid)]
    guarded.kill()
    guarded.wait()
    require_nothing_left(left, tmp_path)


@pytest.mark.parametrize("there", ["a directory", "a link", "a file"])
def test_what_is_there_is_not_taken_for_a_scratch_directory(there: str, tmp_path: Path) -> None:
    """A name that somebody knew: nothing is written there, and nothing removed."""
    scratch, other = tmp_path / "scratch", tmp_path / "other"
    other.mkdir()
    (other / "theirs").touch()
    if there == "a directory":
        other.rename(scratch)
        other = scratch
    elif there == "a link":
        scratch.symlink_to(other)
    else:
        scratch.touch()
    command = [sys.executable, "-I", "-S", guard.__file__, str(psutil.Process().pid), str(scratch)]
    ran = subprocess.run([*command, "/bin/true"], input=b".", capture_output=True, check=True)
    assert ran.stdout == b'{"type": "Scratch", "error": 17}\n'
    assert (other / "theirs").exists()
    assert scratch.exists()


def test_a_guard_whose_parent_is_gone_by_then_does_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", guard.__file__, "1", str(tmp_path / "scratch"), "true"]
    ran = subprocess.run(command, capture_output=True, check=True)
    assert (ran.stdout, ran.stderr) == (b"", b"")
    assert not (tmp_path / "scratch").exists()


def test_a_guard_that_is_killed_takes_the_loads_along(tmp_path: Path) -> None:
    with parent("one = plain(); run(one, 'say_and_hang')", tmp_path) as process:
        wait_for((tmp_path / "said").exists)
        left = descendants(process.pid)
        (the_guard,) = psutil.Process(process.pid).children()
        the_guard.send_signal(signal.SIGKILL)
        wait_for(lambda: gone(left))
        wait_for(lambda: not list((tmp_path / "tmp").iterdir()))
