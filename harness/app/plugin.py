"""The pytest plugin: options, fixtures, and the closing table. It holds no logic of its own."""

from __future__ import annotations

import math
import os
import shlex
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from harness.base.bounds import require_seconds
from harness.base.errors import HarnessError, InternalError, TargetUnavailable
from harness.base.writing import require_writable, require_writable_directory
from harness.compare.digest_comparison import Method
from harness.compare.selection import Selection
from harness.load.meshes import mesh_sizes
from harness.load.overlay import Overlay, overlay_from
from harness.load.process import LoadProcess, LoadProcesses
from harness.load.stack import installed_versions
from harness.load.target import Parallelism, Target
from harness.load.targets.registry import meshed, target_on
from harness.report import session as collector
from harness.report.known_issue import KnownIssue, Load, Verdict, judge, note
from harness.report.message import failure_text, known_text
from harness.report.renderings import FILES, add_to_step_summary
from harness.report.report import Report, Session
from harness.report.session import JUDGED, REPORTS, SESSION_FILE, Collector, options_of, purpose_of
from harness.report.terminal import closing_table
from harness.verification.verify import verify

Verified = Callable[..., Report]
Expected = Callable[[Load | None, Report, Sequence[KnownIssue]], None]
TargetOf = Callable[..., Target]

_OVERLAY = pytest.StashKey[Overlay]()
_COLLECTOR = pytest.StashKey[Collector]()
_USED = pytest.StashKey[bool]()
#: Where the reports are, or why they are not there, in words.
_PLACE = pytest.StashKey[str]()


#: The options, and what pytest is told of each.
_OPTIONS: dict[str, dict[str, Any]] = {
    "--target": {"default": "emulated", "help": "where to load to (default: emulated)"},
    "--devices": {"type": int, "help": "size of the mesh (default: 4; on a TPU, all)"},
    "--hosts": {
        "type": int, "default": 1,
        "help": "hosts the mesh is over: on a TPU slice all of them, this is one (default: 1)",
    },
    "--parallelism": {
        "choices": [p.value for p in Parallelism], "default": Parallelism.TENSOR.value,
        "help": "how experts are spread over the mesh (default: tensor)",
    },
    "--checkpoint": {
        "action": "append", "default": [], "metavar": "PLACE",
        "help": "run the scenarios on this directory, s3://…, gs://… or hub id instead of the "
        "synthetic ones; repeatable",
    },
    "--layers": {"default": "", "help": "compare these layers only: 0,12,-1 or 0-3"},
    "--experts": {"default": "", "help": "compare these experts of each layer: 0-3,7,-1"},
    "--sample": {"type": int, "help": "compare so many experts, drawn by --seed"},
    "--max-bytes": {"type": int, "help": "compare so many bytes of experts at most"},
    "--seed": {"type": int, "default": 0, "help": "the draw follows from it (default: 0)"},
    "--num-layers": {"type": int, "help": "load the first decoder layers only"},
    "--compare": {
        "choices": [m.value for m in Method], "default": Method.AUTO.value,
        "help": "by bits read back or by digests made on the device (default: auto)",
    },
    "--checksums": {"action": "store_true", "help": "compare files with their store's"},
    "--reports": {
        "type": Path, "metavar": "DIR", "help": "write the reports here: JSON, JUnit, HTML …",
    },
    "--stack": {
        "default": "", "metavar": "path:VLLM[,TPU_INFERENCE]",
        "help": "import vllm (and tpu_inference) from these checkouts",
    },
    "--expect": {
        "choices": ["equal", "known"], "default": "equal",
        "help": "known: exactly the known upstream failures of this stack must happen",
    },
    "--load-timeout": {
        "type": float, "default": 600.0, "help": "seconds one load may take (default: 600)",
    },
}  # fmt: skip

#: Options that a verification is not repeated with: one is there anyway, two are the session's.
_OF_THE_SESSION = ("--target=", "--reports=", "--expect=")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("harness", "MoE load verification")
    for name, told in _OPTIONS.items():
        group.addoption(name, **told)


def pytest_configure(config: pytest.Config) -> None:
    try:
        _target(config)
        require_seconds(config.getoption("--load-timeout"), "--load-timeout")
        config.stash[_OVERLAY] = overlay_from(config.getoption("--stack"))
        if not hasattr(config, "workerinput"):
            _require_place(config.getoption("--reports"))
    except HarnessError as error:
        raise pytest.UsageError(str(error)) from error
    config.pluginmanager.register(collector, "harness-collector-hook")
    if not hasattr(config, "workerinput"):
        config.stash[_COLLECTOR] = Collector(options_of(config))
        config.pluginmanager.register(config.stash[_COLLECTOR], "harness-collector")
        config.pluginmanager.register(_Ending(), "harness-ending")


def _require_place(reports: Path | None) -> None:
    """Try the place for reports, and those of their files whose names are known."""
    if reports is not None:
        require_writable_directory(reports)
        for name in (SESSION_FILE, *FILES) if reports.exists() else ():
            require_writable(reports / name)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: Any, request: pytest.FixtureRequest) -> None:
    """Note that this session uses the harness: others of this environment are left alone."""
    if fixturedef.func.__module__ == __name__:
        request.config.stash[_USED] = True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell the controller of it, too."""
    outcome = yield
    vars(outcome)["harness_used"] = item.config.stash.get(_USED, False)
    return outcome


class _Ending:
    """On the controller, or the only process: once the harness is used, SIGTERM ends a session."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if getattr(report, "harness_used", False):
            signal.signal(signal.SIGTERM, _end_session)


def _end_session(number: int, frame: FrameType | None) -> None:
    """End as on Ctrl-C: fixtures are torn down, processes ended, the report written."""
    pytest.exit(signal.Signals(number).name)


def _target(
    config: pytest.Config,
    devices: int | None = None,
    parallelism: Parallelism | None = None,
    hosts: int | None = None,
    mesh: str = "",
) -> Target:
    """The session's target, with the mesh a scenario asks for; a worker's share of the chips."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0"))
    number = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    name, share = config.getoption("--target"), (int(number), workers) if workers else None
    parallelism = parallelism or Parallelism(config.getoption("--parallelism"))
    hosts = config.getoption("--hosts") if hosts is None else hosts
    devices = config.getoption("--devices") if devices is None else devices
    if mesh:
        return meshed(name, mesh, parallelism, hosts, share)
    return target_on(name, devices, parallelism, hosts, share)


def pytest_report_header(config: pytest.Config) -> list[str]:
    versions = installed_versions()
    stack = ", ".join(f"{name} {number}" for name, number in versions.items())
    overlay = str(config.stash[_OVERLAY])
    lines = [f"harness target: {_target(config)}", f"harness stack: {stack}"]
    return [*lines, f"harness overlay: {overlay}"] if overlay else lines


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest) -> Target:
    """The target of this session, from ``--target``, ``--devices`` and ``--parallelism``."""
    return _target(request.config)


@pytest.fixture
def target_of(request: pytest.FixtureRequest) -> TargetOf:
    """The session's target with another mesh; skips where this machine or target has none such.

    A mesh that is malformed fails.
    """

    def of(
        devices: int | None = None,
        parallelism: Parallelism | None = None,
        hosts: int | None = None,
        mesh: str = "",
    ) -> Target:
        over = request.config.getoption("--hosts") if hosts is None else hosts
        count = math.prod(mesh_sizes(mesh)[0].values()) if mesh else devices
        if hosts is None and (count or over) % over:
            pytest.skip(f"a mesh of {count} cannot be divided among {over} hosts (--hosts)")
        try:
            return _target(request.config, devices, parallelism, hosts, mesh)
        except TargetUnavailable as error:
            pytest.skip(str(error))

    return of


@pytest.fixture(scope="session")
def load_processes(request: pytest.FixtureRequest) -> Iterator[LoadProcesses]:
    """Processes with the stack imported, that fork a fresh one for every load."""
    processes = LoadProcesses(request.config.stash[_OVERLAY])
    yield processes
    processes.close()


@pytest.fixture(scope="session")
def load_process(load_processes: LoadProcesses, target: Target) -> LoadProcess:
    """The process for the session's target."""
    return load_processes.of(target)


@pytest.fixture
def verified(
    request: pytest.FixtureRequest, target: Target, load_processes: LoadProcesses
) -> Verified:
    """Verify a checkpoint on the session's target; the report joins the closing table.

    Call it like :func:`harness.verification.verify.verify`; the target is the session's unless
    another is given. It returns the report, whose ``repeat`` names the test, and fails nothing by
    itself; :func:`expected` does.
    """

    def run(checkpoint: Path, target: Target = target, **options: Any) -> Report:
        options = _selected(request.config) | options
        report = verify(checkpoint, target, processes=load_processes, **options)
        report.repeat = _repeat(request.node)
        request.node.stash.setdefault(REPORTS, []).append(report)
        return report

    return run


def _repeat(item: pytest.Item) -> str:
    """The command line that runs a test again: what it verifies is often made for it and gone."""
    options = [o for o in options_of(item.config) if not o.startswith(_OF_THE_SESSION)]
    target = item.config.getoption("--target")
    return shlex.join(["pytest", item.nodeid, f"--target={target}", *options])


def _selected(config: pytest.Config) -> dict[str, Any]:
    """What the command line says about every verification."""
    names = ("layers", "experts", "sample", "max_bytes", "seed")
    return {
        "timeout": config.getoption("--load-timeout"),
        "selection": Selection(**{name: config.getoption(name) for name in names}),
        "num_layers": config.getoption("--num-layers"),
        "checksums": config.getoption("--checksums"),
        "method": Method(config.getoption("--compare")),
    }


@pytest.fixture
def expected(request: pytest.FixtureRequest) -> Expected:
    """Fail the test unless a scenario's report is what ``--expect`` says it should be."""
    known_wanted = request.config.getoption("--expect") == "known"

    def check(load: Load | None, report: Report, issues: Sequence[KnownIssue]) -> None:
        judgement = judge(report, load, issues)
        note(report, judgement)
        if judgement.verdict is Verdict.KNOWN and known_wanted:
            pytest.xfail("; ".join(issue.summary for issue in judgement.issues))
        if text := known_text(judgement) + failure_text(report, purpose_of(request.node)):
            request.node.stash[JUDGED] = True
            pytest.fail(text, pytrace=False)

    return check


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the reports before anything else ends: an interrupted session has some too."""
    directory, config = session.config.getoption("--reports"), session.config
    if directory and _COLLECTOR in config.stash:
        config.stash[_PLACE] = f"reports: {directory}"
        with _told(session):
            config.stash[_COLLECTOR].write(directory)


@contextmanager
def _told(session: pytest.Session | None) -> Iterator[None]:
    """Tell of an error of ours at the end of a session, that pytest would end on as on a failure.

    The session ends as on an internal error then, and the other plugins have their turn.
    """
    try:
        yield
    except Exception as error:
        told = error if isinstance(error, HarnessError) else InternalError.of(error)
        assert session is not None  # it has begun, so it can end
        session.config.stash[_PLACE] = f"INTERNALERROR> {told}"
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    config = terminalreporter.config
    with _told(terminalreporter._session):
        _summarise(config.stash[_COLLECTOR].session(), terminalreporter)
    if place := config.stash.get(_PLACE, ""):
        terminalreporter.line(place)


def _summarise(session: Session, terminalreporter: pytest.TerminalReporter) -> None:
    if not (session.rows or session.skipped):
        return
    terminalreporter.section("MoE load verification")
    rows = [(row.scenario, row.report) for row in session.rows]
    closing_table(rows, terminalreporter._tw._file, session.skipped)
    add_to_step_summary(session)
