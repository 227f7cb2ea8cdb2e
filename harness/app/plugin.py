"""The pytest plugin: options, fixtures, and the closing table. It holds no logic of its own."""

from __future__ import annotations

import io
import math
import os
import shlex
import signal
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import pytest

from harness.app.options import OF_PYTEST, PREFIX, as_pytest_has_them, keywords, target_of
from harness.base.bounds import require_seconds
from harness.base.errors import HarnessError, InternalError, TargetUnavailable
from harness.base.secrets import redact
from harness.base.writing import require_writable, require_writable_directory
from harness.families.known_families import bring
from harness.load.meshes import mesh_sizes
from harness.load.overlay import Overlay, overlay_from
from harness.load.process import LoadProcess, LoadProcesses
from harness.load.stack import installed_versions
from harness.load.target import Implementation, Parallelism, Target
from harness.report.known_issue import KnownIssue, Load, Verdict, judge, note
from harness.report.message import failure_text, known_text
from harness.report.renderings import FILES, add_to_step_summary
from harness.report.report import Report, Session
from harness.report.session import (
    JUDGED,
    REPORTS,
    SESSION_FILE,
    Carrier,
    Collector,
    purpose_of,
)
from harness.report.terminal import closing_table
from harness.verification.verify import verify

Verified = Callable[..., Report]
Expected = Callable[[Load | None, Report, Sequence[KnownIssue]], None]
TargetOf = Callable[..., Target]

_OVERLAY = pytest.StashKey[Overlay]()
_COLLECTOR = pytest.StashKey[Collector]()
_USED = pytest.StashKey[bool]()
#: The session that ends, for the summary, which is not told of it.
_SESSION = pytest.StashKey[pytest.Session]()
#: Where the reports are, or why they are not there, in words.
_PLACE = pytest.StashKey[str]()

#: Options that a verification is not repeated with: one is there anyway, the others are the
#: session's.
_OF_THE_SESSION = ("target", "reports", "expect", "families")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup(PREFIX, "MoE load verification")
    for option in OF_PYTEST:
        group.addoption(option.prefixed, **option.for_pytest())


def _given(config: pytest.Config) -> dict[str, Any]:
    """The values of the options, by their names without prefix."""
    return {option.key: config.getoption(option.dest) for option in OF_PYTEST}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        f"{PREFIX}_purpose(sentence): what a test of a checkpoint's load is meant to catch; the "
        "report quotes it",
    )
    given = _given(config)
    try:
        bring(given["family"])
        _target(config)
        require_seconds(given["load_timeout"], "--load-timeout")
        config.stash[_OVERLAY] = overlay_from(given["stack"])
        if not hasattr(config, "workerinput"):
            _require_directory(given["reports"])
    except HarnessError as error:
        raise pytest.UsageError(as_pytest_has_them(str(error))) from error
    config.pluginmanager.register(Carrier(), f"{PREFIX}-carrier")
    if not hasattr(config, "workerinput"):
        config.stash[_COLLECTOR] = Collector(_typed(config))
        config.pluginmanager.register(config.stash[_COLLECTOR], f"{PREFIX}-collector")
        config.pluginmanager.register(_Ending(), f"{PREFIX}-ending")


def _require_directory(reports: Path | None) -> None:
    """Try the place for reports, and those of their files whose names are known."""
    if reports is not None:
        require_writable_directory(reports)
        for name in (SESSION_FILE, *FILES) if reports.exists() else ():
            require_writable(reports / name)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> None:
    """Note that this session uses the harness: others of this environment are left alone."""
    if fixturedef.func.__module__ == __name__:
        request.config.stash[_USED] = True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell the controller of it, too."""
    outcome = yield
    vars(outcome)["moe_used"] = item.config.stash.get(_USED, False)
    return outcome


class _Ending:
    """On the controller, or the only process: once the harness is used, SIGTERM ends a session."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if getattr(report, "moe_used", False):
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
    impl: Implementation | None = None,
) -> Target:
    """The session's target, as a scenario asks for it; a worker's share of the chips."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0"))
    number = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    asked = {"devices": devices, "parallelism": parallelism, "hosts": hosts, "impl": impl}
    values = _given(config) | {name: value for name, value in asked.items() if value is not None}
    return target_of(values, mesh or None, (int(number), workers) if workers else None)


def pytest_report_header(config: pytest.Config) -> list[str]:
    versions = installed_versions()
    stack = ", ".join(f"{name} {number}" for name, number in versions.items())
    overlay = str(config.stash[_OVERLAY])
    lines = [f"harness target: {_target(config)}", f"harness stack: {stack}"]
    return [*lines, f"harness overlay: {overlay}"] if overlay else lines


@pytest.fixture(scope="session")
def moe_target(request: pytest.FixtureRequest) -> Target:
    """The target of this session, from ``--moe-target``, ``--moe-devices`` and related options."""
    return _target(request.config)


@pytest.fixture
def moe_target_of(request: pytest.FixtureRequest) -> TargetOf:
    """The session's target with another mesh or another implementation of the model.

    Skips the test if this machine or target has none; fails it if the mesh is malformed.
    """

    def of(
        devices: int | None = None,
        parallelism: Parallelism | None = None,
        hosts: int | None = None,
        mesh: str = "",
        impl: Implementation | None = None,
    ) -> Target:
        over = _given(request.config)["hosts"] if hosts is None else hosts
        count = math.prod(mesh_sizes(mesh)[0].values()) if mesh else devices
        if hosts is None and (count or over) % over:
            pytest.skip(f"a mesh of {count} cannot be divided among {over} hosts (--moe-hosts)")
        try:
            return _target(request.config, devices, parallelism, hosts, mesh, impl)
        except TargetUnavailable as error:
            pytest.skip(str(error))

    return of


@pytest.fixture(scope="session")
def moe_load_processes(request: pytest.FixtureRequest) -> Iterator[LoadProcesses]:
    """Processes that import the stack once and fork a fresh process for every load."""
    processes = LoadProcesses(request.config.stash[_OVERLAY])
    yield processes
    processes.close()


@pytest.fixture(scope="session")
def moe_load_process(moe_load_processes: LoadProcesses, moe_target: Target) -> LoadProcess:
    """The process for the session's target."""
    return moe_load_processes.of(moe_target)


@pytest.fixture
def moe_verified(
    request: pytest.FixtureRequest, moe_target: Target, moe_load_processes: LoadProcesses
) -> Verified:
    """Verify a checkpoint on the session's target; the report joins the closing table.

    Call it like :func:`harness.verification.verify.verify`; the target defaults to the session's.
    It returns the report, whose ``repeat`` names the test, and never fails the test;
    :func:`moe_expected` does.
    """

    def run(checkpoint: str | Path, target: Target = moe_target, **options: Any) -> Report:
        given = _given(request.config)
        usual = keywords(given) | {"timeout": given["load_timeout"]}
        # What a scenario made is compared whole; what the user named may have been digested before.
        usual["cache"] = usual["cache"] and str(checkpoint) in given["checkpoint"]
        options = usual | {"terminal": _log_of(request.config)} | options
        report = verify(checkpoint, target, processes=moe_load_processes, **options)
        report.repeat = _repeat(request.node)
        request.node.stash.setdefault(REPORTS, []).append(report)
        return report

    return run


def _fail_with(item: pytest.Item, text: str) -> None:
    """Fail a test that judged its report, with what is to be said of that; if there is anything."""
    if text:
        item.stash[JUDGED] = True
        pytest.fail(text, pytrace=False)


@pytest.fixture
def moe_equal(request: pytest.FixtureRequest, moe_verified: Verified) -> Verified:
    """Verify a checkpoint on the session's target, and fail the test unless everything is equal.

    Call it like :func:`harness.verification.verify.verify`. A failure shows the report's text:
    what differs, where, the likely cause, and the command that repeats it. Returns the report.
    """

    def run(checkpoint: str | Path, *args: Any, **options: Any) -> Report:
        report = moe_verified(checkpoint, *args, **options)
        _fail_with(request.node, failure_text(report, purpose_of(request.node)))
        return report

    return run


def _repeat(item: pytest.Item) -> str:
    """The command line that runs a test again: what it verifies is often made for it and gone."""
    file, *inside = item.nodeid.split("::")
    here = item.config.rootpath / file == item.path  # not so where pytest was told --pyargs
    test = item.nodeid if here else "::".join([str(item.path), *inside])
    target = f"--{PREFIX}-target={item.config.getoption(f'{PREFIX}_target')}"
    return shlex.join(["pytest", test, target, *_typed(item.config, but=_OF_THE_SESSION)])


def _typed(config: pytest.Config, but: Collection[str] = ()) -> list[str]:
    """The options that are not what they are by default, as on the command line."""
    given = _given(config)
    asked = [option for option in OF_PYTEST if option.name not in but]
    return [redact(word) for option in asked for word in option.typed(given[option.key])]


@pytest.fixture
def moe_expected(request: pytest.FixtureRequest) -> Expected:
    """Fail the test unless a scenario's report is what ``--moe-expect`` asks for."""
    known_wanted = _given(request.config)["expect"] == "known"

    def check(load: Load | None, report: Report, issues: Sequence[KnownIssue]) -> None:
        judgement = judge(report, load, issues)
        note(report, judgement)
        if judgement.verdict is Verdict.KNOWN and known_wanted:
            pytest.xfail("; ".join(issue.summary for issue in judgement.issues))
        said = known_text(judgement) + failure_text(report, purpose_of(request.node))
        _fail_with(request.node, said)

    return check


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the reports before anything else ends: an interrupted session has some too."""
    config = session.config
    config.stash[_SESSION] = session
    directory = _given(config)["reports"]
    if directory and _COLLECTOR in config.stash:
        config.stash[_PLACE] = f"reports: {directory}"
        with _told(session):
            config.stash[_COLLECTOR].write(directory)


@contextmanager
def _told(session: pytest.Session) -> Iterator[None]:
    """Tell of an error of ours at the end of a session, that pytest would end on as on a failure.

    The session ends as on an internal error then, and the other plugins have their turn.
    """
    try:
        yield
    except Exception as error:
        told = error if isinstance(error, HarnessError) else InternalError.of(error)
        session.config.stash[_PLACE] = f"INTERNALERROR> {told}"
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR


def _log_of(config: pytest.Config) -> TextIO | None:
    """Where a load of minutes says how far it is; None with -q, and in xdist's workers."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if config.get_verbosity() < 0 or hasattr(config, "workerinput") or reporter is None:
        return None
    return _Log(reporter)


class _Output(io.StringIO):
    """What pytest reports to, as a file; pytest escapes characters that its terminal lacks."""

    def __init__(self, reporter: pytest.TerminalReporter) -> None:
        super().__init__()
        self.reporter = reporter

    def isatty(self) -> bool:
        return bool(self.reporter.isatty)

    def write(self, text: str) -> int:
        self.reporter.write(text)
        return len(text)


class _Log(_Output):
    """The same while a test runs: lines of their own, which no capturing takes for the test's."""

    def isatty(self) -> bool:
        return False  # a line that is written again and again would be in pytest's own

    def write(self, text: str) -> int:
        capture = self.reporter.config.pluginmanager.get_plugin("capturemanager")
        with capture.global_and_fixture_disabled() if capture else nullcontext():
            self.reporter.ensure_newline()
            self.reporter.write(text, flush=True)
        return len(text)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    config = terminalreporter.config
    with _told(config.stash[_SESSION]):
        _summarise(config.stash[_COLLECTOR].session(), terminalreporter)
    if place := config.stash.get(_PLACE, ""):
        terminalreporter.line(place)


def _summarise(session: Session, terminalreporter: pytest.TerminalReporter) -> None:
    if not (session.rows or session.skipped):
        return
    terminalreporter.section("MoE load verification")
    rows = [(row.scenario, row.report) for row in session.rows]
    closing_table(rows, _Output(terminalreporter), session.skipped)
    add_to_step_summary(session)
