"""Gathers the reports of a pytest session, from one process or from all of xdist's workers.

Reports travel on pytest's test reports. The order of the rows follows the catalogue, not the
order in which workers finished, so that the same scenarios give the same file.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import pytest

from harness.base.secrets import redacted_within
from harness.base.writing import not_written, write
from harness.report.junit import first_line
from harness.report.renderings import FILES, rendered
from harness.report.report import (
    Broken,
    Report,
    Session,
    SessionRow,
    Skipped,
    Status,
    report_from_json,
)

#: On an item: the reports of its verifications.
REPORTS = pytest.StashKey[list[Report]]()
#: On an item: what failed it are its reports, against the table of known issues.
JUDGED = pytest.StashKey[bool]()
#: On an item: its place in the order of collection, which is the catalogue's.
_ORDER = pytest.StashKey[int]()

SESSION_FILE = "session.json"


class Carrier:
    """Where tests run: hangs what a report needs of an item on its test report."""

    def __init__(self) -> None:
        self._collected = count()

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Note the item's place before anything is shuffled or left out."""
        item.stash[_ORDER] = next(self._collected)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Hang an item's reports on its test report, and the scenario's name on one of a skip."""
        outcome = yield
        if _verifies(item):
            outcome.longrepr = redacted_within(outcome.longrepr)
            outcome.sections = redacted_within(outcome.sections)
        if outcome.skipped and not hasattr(outcome, "wasxfail"):
            vars(outcome)["moe_skipped"] = _name(item) if _verifies(item) else ""
        if outcome.when == "call":
            # xdist sends attributes of basic types along, but neither bytes nor objects.
            texts = [report.to_json().decode() for report in item.stash.get(REPORTS, [])]
            vars(outcome)["moe_reports"] = [[_name(item), item.stash[_ORDER], t] for t in texts]
            vars(outcome)["moe_purpose"] = purpose_of(item)
            vars(outcome)["moe_judged"] = item.stash.get(JUDGED, False)
        return outcome


def _name(item: pytest.Item) -> str:
    """The id of a test's parameters; its own name where it has none."""
    parameters = item.name.removeprefix(getattr(item, "originalname", item.name))
    return parameters[1:-1] or item.name


def _verifies(item: pytest.Item) -> bool:
    return "moe_verified" in getattr(item, "fixturenames", ())


def purpose_of(item: pytest.Item) -> str:
    """What a test is there to catch, as its marker ``moe_purpose`` says; empty without one."""
    marker = item.get_closest_marker("moe_purpose")
    return str(marker.args[0]) if marker and marker.args else ""


class Collector:
    """On the controller, or the only process: keeps what the test reports carry."""

    def __init__(self, options: Sequence[str] = ()) -> None:
        self._options = list(options)
        self._skipped: list[Skipped] = []
        self._rows: list[tuple[int, SessionRow]] = []
        self._begun: dict[str, None] = {}
        self._broken: list[Broken] = []
        self._began = datetime.now(UTC).isoformat(timespec="seconds")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Note that a test has begun."""
        self._begun[nodeid] = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the reports of a test, and note its end."""
        if report.when == "teardown":
            self._begun.pop(report.nodeid, None)
        if name := getattr(report, "moe_skipped", ""):
            self._skipped.append(Skipped(scenario=name, reason=_reason(report)))
        rows = list(_rows(report))
        self._rows += rows
        if report.failed and not any(row.failed for _, row in rows):
            self._broken.append(_broken(report))

    def session(self) -> Session:
        """What is known so far."""
        return Session(
            complete=not self._begun,
            began=self._began,
            unfinished=sorted(self._begun),
            broken=sorted(self._broken, key=lambda broken: broken.test),
            rows=[row for _, row in sorted(self._rows, key=lambda pair: pair[0])],
            skipped=sorted(self._skipped, key=lambda skipped: skipped.scenario),
            options=self._options,
        )

    def write(self, directory: Path) -> None:
        """Write a file for each scenario, one for the session, and the session's renderings.

        Raises:
            NotWritten: ``directory`` does not take them; they are kept elsewhere.
        """
        session = self.session()
        files = {f"{row.scenario}.json": row.report.to_json() for row in session.rows}
        files[SESSION_FILE] = session.to_json()
        try:
            files |= {name: rendered(session, name) for name in FILES}
        finally:  # a rendering that fails takes nothing else with it
            _put(directory, files)


def _put(directory: Path, files: Mapping[str, bytes]) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write(directory / name, content)
    except OSError as error:
        raise not_written(str(directory), error, files) from error


def _reason(outcome: pytest.TestReport) -> str:
    """Why a test was skipped: pytest has file, line and reason of it."""
    told = outcome.longrepr
    return str(told[2] if isinstance(told, tuple) else told).removeprefix("Skipped: ")


def _broken(outcome: pytest.TestReport) -> Broken:
    error = str(outcome.longrepr)
    return Broken(
        test=outcome.nodeid, phase=outcome.when or "", message=first_line(error), error=error
    )


def _rows(outcome: pytest.TestReport) -> Iterator[tuple[int, SessionRow]]:
    """The rows a test report carries; of a failed test's, those that failed it.

    Reports that are equal fail a test where a known issue should have happened. What else fails
    after them is an error of the test, or of the harness.
    """
    carried = getattr(outcome, "moe_reports", [])
    reports = [report_from_json(encoded.encode()) for _, _, encoded in carried]
    judged = getattr(outcome, "moe_judged", False)
    all_equal = judged and all(report.status is Status.EQUAL for report in reports)
    for (name, order, _), report in zip(carried, reports, strict=True):
        failed = outcome.failed and (all_equal or report.status is not Status.EQUAL)
        why = str(outcome.longrepr) if failed else ""
        purpose = getattr(outcome, "moe_purpose", "")
        row = SessionRow(scenario=name, report=report, failed=failed, why=why, purpose=purpose)
        yield order, row
