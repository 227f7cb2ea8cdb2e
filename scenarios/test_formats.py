"""Quantised experts arrive on the device as their format says, or as upstream quantises them anew.

Run when asked for: ``pytest scenarios/test_formats.py``.
"""

from __future__ import annotations

import pytest

from .conftest import Arrives
from .formats import FORMAT_ROWS
from .known_issues_formats import FORMAT_ISSUES
from .scenario import Scenario


@pytest.mark.parametrize(
    "scenario",
    [pytest.param(row, id=row.id, marks=pytest.mark.moe_purpose(row.why)) for row in FORMAT_ROWS],
)
def test_formats(scenario: Scenario, arrives: Arrives) -> None:
    arrives(scenario, FORMAT_ISSUES)
