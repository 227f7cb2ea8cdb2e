"""The pytest plugin: options, fixtures, and the closing table. It holds no logic of its own.

Reports travel on pytest's test reports, so that they reach the terminal from xdist's workers too.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness.errors import HarnessError
from harness.load import LoadProcess
from harness.message import failure_text
from harness.report import Report, report_from_json
from harness.stack import installed_versions
from harness.target import Target, target_named
from harness.terminal import closing_table
from harness.verification import verify

Verified = Callable[..., Report]

_REPORTS = pytest.StashKey[list[tuple[str, bytes]]]()


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
        "--load-timeout", type=float, default=600.0, help="seconds one load may take (default: 600)"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_REPORTS] = []
    try:
        target_named(config.getoption("--target"), config.getoption("--devices"))
    except HarnessError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_report_header(config: pytest.Config) -> list[str]:
    versions = installed_versions()
    target = target_named(config.getoption("--target"), config.getoption("--devices"))
    stack = ", ".join(f"{name} {number}" for name, number in versions.items())
    return [f"harness target: {target}", f"harness stack: {stack}"]


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest) -> Target:
    """The target of this session, from ``--target`` and ``--devices``."""
    return target_named(request.config.getoption("--target"), request.config.getoption("--devices"))


@pytest.fixture(scope="session")
def load_process(target: Target) -> Iterator[LoadProcess]:
    """A process with the stack imported, that forks a fresh one for every load."""
    with LoadProcess(target) as process:
        yield process


@pytest.fixture
def verified(request: pytest.FixtureRequest, target: Target, load_process: LoadProcess) -> Verified:
    """Verify a checkpoint on the session's target; the report joins the closing table.

    Call it like :func:`harness.verification.verify`, without the target. It returns the report
    and fails nothing by itself; :func:`require_equal` does.
    """

    def run(checkpoint: Path, **options: Any) -> Report:
        options.setdefault("timeout", request.config.getoption("--load-timeout"))
        report = verify(checkpoint, target, process=load_process, **options)
        request.node.stash.setdefault(_REPORTS, []).append(
            (_row_name(request), msgspec.json.encode(report))
        )
        return report

    return run


def _row_name(request: pytest.FixtureRequest) -> str:
    callspec = getattr(request.node, "callspec", None)
    return str(callspec.id if callspec else request.node.name)


def require_equal(report: Report) -> None:
    """Fail the running test with the full failure text unless ``report`` is equal."""
    if text := failure_text(report):
        pytest.fail(text, pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    outcome = yield
    if outcome.when == "call":
        reports = item.stash.get(_REPORTS, [])
        # xdist sends attributes of basic types along, but neither bytes nor objects.
        texts = [[name, encoded.decode()] for name, encoded in reports]
        vars(outcome)["harness_reports"] = texts
    return outcome


class _Collector:
    """On the controller (or the only process): keeps what the test reports carry."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, encoded in getattr(report, "harness_reports", []):
            self._config.stash[_REPORTS].append((name, encoded.encode()))


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):
        session.config.pluginmanager.register(_Collector(session.config))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    config = terminalreporter.config
    rows = [(name, report_from_json(encoded)) for name, encoded in config.stash[_REPORTS]]
    if not rows:
        return
    terminalreporter.section("MoE load verification")
    closing_table(rows, file=terminalreporter._tw._file)
    if directory := config.getoption("--reports"):
        directory.mkdir(parents=True, exist_ok=True)
        for name, report in rows:
            report.write(directory / f"{name}.json")
        terminalreporter.line(f"reports: {directory}")
