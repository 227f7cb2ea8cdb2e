"""Interrupted, terminated, killed, hung: nothing is left behind, and what is known is written."""

from __future__ import annotations

import gc
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from harness.base.errors import InternalError
from harness.load.connection import Connection
from harness.load.process import LoadProcess, LoadProcessError
from harness.load.target import Target
from harness.load.targets.known_targets import target_named
from harness.report.report import Report, Status
from harness.verification.job import VerifyRequest
from harness.verification.outcomes import outcome
from tests.support.nested import NESTED_PYTEST, nested_environment
from tests.support.reports import a_report
from tests.support.waiting import gone, wait_for

pytestmark = pytest.mark.alone

ROOT = Path(__file__).parents[2]

#: Starts a Python that Ctrl-C ends: what a shell puts into the background is born deaf to it.
PYTHON = [
    sys.executable, "-c", "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])",
]  # fmt: skip

#: A parent that starts a load which never ends, and says where its files are.
PARENT = """
from harness.load.process import LoadProcess
from harness.load.targets.known_targets import target_named
from tests.support import registered
with LoadProcess(target_named("emulated"), preload=False) as process:
    print(process.scratch, flush=True)
    process.run("tests.support.idle_jobs:hang_with_a_child", b"", process.target, timeout=600)
"""

#: A session: one test that passes with a report, then one whose load never ends.
SESSION = """
import pytest
from tests.support import registered
from harness.load.process import LoadProcess
from harness.app.plugin import REPORTS
from harness.report.report import report_from_json
from pathlib import Path

@pytest.fixture
def moe_load_process(moe_target):
    with LoadProcess(moe_target, preload=False) as process:
        yield process

def test_a_done(request):
    report = report_from_json(Path({report!r}).read_bytes())
    request.node.stash.setdefault(REPORTS, []).append(report)

def test_b_hangs(moe_load_process, moe_target):
    Path({started!r}).write_text(str(moe_load_process.scratch))
    jobs = "tests.support.idle_jobs"
    moe_load_process.run(f"{{jobs}}:hang_with_a_child", b"", moe_target, timeout=600)
"""


@pytest.fixture(scope="module")
def load_process(target: Target) -> Iterator[LoadProcess]:
    """A process that imports no stack: what is tested here needs none."""
    with LoadProcess(target, preload=False) as process:
        yield process


def hanging_children(scratch: Path) -> list[psutil.Process]:
    """The load and what it started, once both are there."""
    pids = scratch / "1" / "pids"
    wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    return [psutil.Process(int(pid)) for pid in pids.read_text().split()]


def alive(pid: int) -> bool:
    """Whether there is such a process; a zombie has ended, and waits to be asked how."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("how", "phase", "hosts", "error"),
    [
        ("crash", "stream", 1, "SIGSEGV"),
        ("crash", "compare", 2, "SIGSEGV"),
        ("leave", "stream", 1, "raised an error"),
        ("hang", "compare", 1, "did not end within 2 s"),
    ],
)
def test_a_load_that_is_ended_failed(
    how: str, phase: str, hosts: int, error: str, load_process: LoadProcess,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Of several hosts the end of one can end another; when time is over, the load took it."""
    report = broken_off(how, phase, hosts, load_process)
    assert report.failure is not None
    assert error in report.failure.error


@pytest.mark.parametrize(
    ("how", "phase", "what", "detail"),
    [
        ("crash", "compare", "the comparison did not: .*SIGSEGV", "about to crash"),
        ("crash", "", "not the load under test: .*SIGSEGV", "about to crash"),
        ("leave", "compare", "the comparison did not: the load raised an error", "SystemExit"),
        ("leave", "", "not the load under test: the load raised an error", "SystemExit"),
        ("kill_what_watches", "stream", "not the load under test: the loading process ended", ""),
        ("answer_nonsense", "compare", "not the load under test: .*Error", "json"),
    ],
)
def test_what_breaks_off_outside_the_stack_is_not_the_loads(
    how: str, phase: str, what: str, detail: str, load_process: LoadProcess,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The harness failed: not the load, and nothing is different."""
    with pytest.raises(InternalError, match=what) as raised:
        broken_off(how, phase, 1, load_process)
    assert detail in raised.value.hint
    assert raised.value.exit_code == 5


def test_a_line_that_makes_no_sense_is_the_harnesss_own_failure(
    load_process: LoadProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connection, "receive", lambda *_: b"Traceback (most recent call last):\n")
    with pytest.raises(InternalError, match="not the load under test"):
        load_process.run("tests.support.idle_jobs:echo", b"", load_process.target, timeout=60)
    monkeypatch.undo()
    answer = load_process.run(
        "tests.support.idle_jobs:echo", b"on", load_process.target, timeout=60
    )
    assert answer == b"on"


def test_another_target_is_not_loaded_here(load_process: LoadProcess) -> None:
    other = replace(load_process.target, name="torch-xla")
    with pytest.raises(InternalError, match="a load onto torch-xla"):
        load_process.run("tests.support.idle_jobs:echo", b"", other, timeout=60)


def broken_off(how: str, phase: str, hosts: int, process: LoadProcess) -> Report:
    """The report of a load that crashes or hangs in a phase."""
    target = replace(target_named("emulated"), hosts=hosts)
    request = VerifyRequest(checkpoint=phase, reference=how, target=target, parts=())
    job, timeout = "tests.support.idle_jobs:end_in_a_phase", 2 if how == "hang" else 60
    return outcome(request, a_report(status=Status.LOAD_FAILED), process, timeout, job)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_parent_that_dies_takes_its_load_and_its_files_along(number: signal.Signals) -> None:
    with subprocess.Popen(
        [*PYTHON, "-c", PARENT],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=nested_environment(PYTHONPATH=str(ROOT)),
    ) as parent:
        assert parent.stdout is not None
        scratch = Path(parent.stdout.readline().decode().strip())
        processes = [*hanging_children(scratch), *psutil.Process(parent.pid).children()]
        parent.send_signal(number)
        parent.wait(120)
    wait_for(lambda: gone(processes))
    wait_for(lambda: not scratch.exists())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", [[], ["-n", "1"]], ids=["one process", "xdist"])
def test_an_interrupted_session_writes_what_is_known(
    pytester: pytest.Pytester, tiny_report: Path, number: signal.Signals, workers: list[str]
) -> None:
    started = pytester.path / "started"
    pytester.makepyfile(SESSION.format(report=str(tiny_report), started=str(started)))
    environment = nested_environment(PYTHONPATH=str(ROOT))
    command = [*PYTHON, *NESTED_PYTEST, "--moe-reports", "out", *workers]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as session:
        wait_for(lambda: started.exists() and started.read_text())
        scratch = Path(started.read_text())
        processes = hanging_children(scratch)
        session.send_signal(number)
        output, _ = session.communicate(timeout=240)
    wait_for(lambda: gone(processes))
    wait_for(lambda: not scratch.exists())
    assert "MoE load verification" in output
    written = json.loads((pytester.path / "out" / "session.json").read_text())
    assert [row["scenario"] for row in written["rows"]] == ["test_a_done"]
    assert not written["complete"]
    assert [name.rpartition("::")[2] for name in written["unfinished"]] == ["test_b_hangs"]


def test_a_killed_worker_leaves_nothing_and_is_named(
    pytester: pytest.Pytester, tiny_report: Path
) -> None:
    started = pytester.path / "started"
    pytester.makepyfile(SESSION.format(report=str(tiny_report), started=str(started)))
    environment = nested_environment(PYTHONPATH=str(ROOT))
    command = [*PYTHON, *NESTED_PYTEST, "--moe-reports", "out", "-n", "1", "--maxfail", "1"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as session:
        wait_for(lambda: started.exists() and started.read_text())
        scratch = Path(started.read_text())
        processes = hanging_children(scratch)
        load_process = processes[0].parent()
        assert load_process is not None
        guard = load_process.parent()
        assert guard is not None
        worker = guard.parent()
        assert worker is not None
        worker.kill()
        output, _ = session.communicate(timeout=240)
    wait_for(lambda: gone([*processes, load_process, guard]))
    wait_for(lambda: not scratch.exists())
    assert "crashed while running" in output
    written = json.loads((pytester.path / "out" / "session.json").read_text())
    assert [row["scenario"] for row in written["rows"]] == ["test_a_done"]
    assert [name.rpartition("::")[2] for name in written["unfinished"]] == ["test_b_hangs"]


def test_a_load_that_hangs_shows_its_stacks_and_takes_its_children_along(
    load_process: LoadProcess, target: Target
) -> None:
    with pytest.raises(LoadProcessError, match="did not end within 3 s") as raised:
        load_process.run("tests.support.idle_jobs:hang_with_a_child", b"", target, timeout=3)
    assert "hang_with_a_child" in raised.value.details
    assert "most recent call first" in raised.value.details
    pids = raised.value.details.split("pids: ")[1].split("\n")[0]
    wait_for(lambda: not any(alive(int(pid)) for pid in pids.split()))


def test_a_load_that_ignores_a_request_to_end_is_killed(
    load_process: LoadProcess, target: Target
) -> None:
    with pytest.raises(LoadProcessError, match="did not end within 1 s"):
        load_process.run("tests.support.idle_jobs:hang_deaf", b"", target, timeout=1)
    assert load_process.run("tests.support.idle_jobs:echo", b"on", target, timeout=60) == b"on"


def test_a_loading_process_that_is_killed_is_replaced(target: Target) -> None:
    with LoadProcess(target, preload=False) as process:
        assert process.run("tests.support.idle_jobs:echo", b"1", target, timeout=60) == b"1"
        psutil.Process(process.pid).kill()
        with pytest.raises(LoadProcessError, match="the loading process ended"):
            process.run("tests.support.idle_jobs:echo", b"2", target, timeout=60)
        assert process.run("tests.support.idle_jobs:echo", b"3", target, timeout=60) == b"3"


def descriptors(process: psutil.Process) -> int:
    count: int = process.num_fds()
    return count


def test_soak(target: Target, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """200 short-lived targets and 20 killed loads leave no process, descriptor, lock or file."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("HARNESS_LOCKS", str(tmp_path / "locks"))
    chips = [(), (0,), (0, 1, 2, 3)]
    with LoadProcess(target, preload=False) as process:
        process.run("tests.support.idle_jobs:echo", b"", target, timeout=60)
        loading = psutil.Process(process.pid)
        gc.collect()
        before = descriptors(psutil.Process()), descriptors(loading)
        for number in range(200):
            mesh = target_named("emulated", 1 + number % 8)
            object.__setattr__(mesh, "chips", chips[number % 3])
            answer = process.run("tests.support.idle_jobs:echo", b"%d" % number, mesh, timeout=60)
            assert answer == b"%d" % number
            if number % 10 == 0:
                with pytest.raises(LoadProcessError, match="SIGKILL"):
                    process.run("tests.support.idle_jobs:kill_itself", b"", mesh, timeout=60)
        gc.collect()
        wait_for(lambda: descriptors(psutil.Process()) <= before[0])
        wait_for(lambda: descriptors(loading) <= before[1])
        wait_for(lambda: loading.children(recursive=True) == [])
    assert gone([loading])
    assert [path.name for path in tmp_path.iterdir()] == ["locks"]
    assert not list((tmp_path / "locks").glob("*.pid"))
