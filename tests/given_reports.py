"""Sessions in which a report that is given stands for the load."""

from __future__ import annotations

from harness.difference import Tally
from harness.family import Part
from harness.report import Report, Status
from tests.reports import a_report, an_environment

CONFTEST = """
import harness.plugin
from harness.report import report_from_json
from pathlib import Path

def verify(checkpoint, target, **options):
    return report_from_json(Path({report!r}).read_bytes())

harness.plugin.verify = verify
"""


def report(status: Status) -> Report:
    return a_report(
        status=status,
        environment=an_environment(versions={"vllm": "0.26.0"}),
        tallies=[Tally(part=Part.DECODER, layers=1, experts=8, experts_compared=8)],
        repeat="harness verify /c",
    )
