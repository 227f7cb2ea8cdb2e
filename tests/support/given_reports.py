"""Sessions in which a report that is given stands for the load."""

from __future__ import annotations

from harness.report.report import Report, Status
from tests.support.differences import unread
from tests.support.reports import a_report, an_environment

CONFTEST = """
import harness.app.plugin
from harness.report.report import report_from_json
from pathlib import Path

def verify(checkpoint, target, **options):
    return report_from_json(Path({report!r}).read_bytes())

harness.app.plugin.verify = verify
"""


def report(status: Status) -> Report:
    return a_report(
        status=status,
        environment=an_environment(versions={"vllm": "0.26.0"}),
        differences=[unread()] if status is Status.DIFFERENT else [],
        repeat="harness verify /c",
    )
