"""The pytest plugin: options, fixtures, and the closing table. It holds no logic of its own.

Reports travel on pytest's test reports, so that they reach the terminal from xdist's workers too.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.errors import HarnessError
from harness.known import KnownIssue, Verdict, judge
from harness.load import LoadProcess
from harness.message import failure_text, known_text
from harness.overlay import Overlay, overlay_from
from harness.report import Report, report_from_json
from harness.stack import installed_versions
from harness.target import Target, target_named
from harness.terminal import closing_table
from harness.verification import verify

Verified = Callable[..., Report]

#: On an item: its reports. On the config: rows of all items, as they are collected.
_REPORTS = pytest.StashKey[list[Report]]()
_OVERLAY = pytest.StashKey[Overlay]()
_ROWS = pytest.StashKey[list[tuple[str, Report]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("harness", "MoE load verification")
    group.addoption("--target", default="emulated", help="where to load to (default: emulated)")
    group.addoption("--devices", type=int, default=4, help="size of the mesh (default: 4)")
    group.addoption(
        "--checkpoint",
        action="append",
        default=[],
        metavar="DIR",
        help="run the scenarios on this checkpoint instead of the synthetic ones; repeatable",
    )
    group.addoption(
        "--reports", type=Path, metavar="DIR", help="write each scenario's report as JSON here"
    )
    group.addoption(
        "--stack",
        default="",
        metavar="path:VLLM[,TPU_INFERENCE]",
        help="import vllm (and tpu_inference) from these checkouts",
    )
    group.addoption(
        "--expect",
        choices=["equal", "known"],
        default="equal",
        help="known: exactly the known upstream failures of this stack must happen",
    )
    group.addoption(
        "--load-timeout", type=float, default=600.0, help="seconds one load may take (default: 600)"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_ROWS] = []
    try:
        target_named(config.getoption("--target"), config.getoption("--devices"))
        config.stash[_OVERLAY] = overlay_from(config.getoption("--stack"))
    except HarnessError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_report_header(config: pytest.Config) -> list[str]:
    versions = installed_versions()
    target = target_named(config.getoption("--target"), config.getoption("--devices"))
    stack = ", ".join(f"{name} {number}" for name, number in versions.items())
    overlay = str(config.stash[_OVERLAY])
    lines = [f"harness target: {target}", f"harness stack: {stack}"]
    return [*lines, f"harness overlay: {overlay}"] if overlay else lines


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest) -> Target:
    """The target of this session, from ``--target`` and ``--devices``."""
    return target_named(request.config.getoption("--target"), request.config.getoption("--devices"))


@pytest.fixture(scope="session")
def load_process(request: pytest.FixtureRequest, target: Target) -> Iterator[LoadProcess]:
    """A process with the stack imported, that forks a fresh one for every load."""
    with LoadProcess(target, request.config.stash[_OVERLAY]) as process:
        yield process


@pytest.fixture
def verified(request: pytest.FixtureRequest, target: Target, load_process: LoadProcess) -> Verified:
    """Verify a checkpoint on the session's target; the report joins the closing table.

    Call it like :func:`harness.verification.verify`, without the target. It returns the report
    and fails nothing by itself; :func:`expected` does.
    """

    def run(checkpoint: Path, **options: Any) -> Report:
        options.setdefault("timeout", request.config.getoption("--load-timeout"))
        report = verify(checkpoint, target, process=load_process, **options)
        request.node.stash.setdefault(_REPORTS, []).append(report)
        return report

    return run


Expected = Callable[[str, Report, Sequence[KnownIssue]], None]


@pytest.fixture
def expected(request: pytest.FixtureRequest) -> Expected:
    """Fail the test unless a scenario's report is what ``--expect`` says it should be."""
    known_wanted = request.config.getoption("--expect") == "known"

    def check(scenario: str, report: Report, issues: Sequence[KnownIssue]) -> None:
        verdict, issue = judge(report, scenario, issues)
        report.known_issue = issue.id if issue and verdict is Verdict.KNOWN else ""
        if verdict is Verdict.KNOWN and known_wanted:
            assert issue is not None
            pytest.xfail(f"{issue.id}: {issue.reason} ({', '.join(issue.threads)})")
        if text := known_text(verdict, issue) + failure_text(report):
            pytest.fail(text, pytrace=False)

    return check


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    outcome = yield
    if outcome.when == "call":
        callspec = getattr(item, "callspec", None)
        name = callspec.id if callspec else item.name
        # xdist sends attributes of basic types along, but neither bytes nor objects.
        texts = [[name, r.to_json().decode()] for r in item.stash.get(_REPORTS, [])]
        vars(outcome)["harness_reports"] = texts
    return outcome


class _Collector:
    """On the controller (or the only process): keeps what the test reports carry."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, encoded in getattr(report, "harness_reports", []):
            self._config.stash[_ROWS].append((name, report_from_json(encoded.encode())))


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):
        session.config.pluginmanager.register(_Collector(session.config))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    config = terminalreporter.config
    rows = config.stash[_ROWS]
    if not rows:
        return
    terminalreporter.section("MoE load verification")
    closing_table(rows, file=terminalreporter._tw._file)
    if directory := config.getoption("--reports"):
        directory.mkdir(parents=True, exist_ok=True)
        for name, report in rows:
            report.write(directory / f"{name}.json")
        terminalreporter.line(f"reports: {directory}")
