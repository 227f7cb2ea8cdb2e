"""A model arrives whichever of upstream's implementations serves it.

Run when asked for, on 0.26 or 0.32: ``pytest scenarios/test_implementations.py``.
"""

from __future__ import annotations

import pytest

from .conftest import Arrives
from .implementations import IMPLEMENTATION_ROWS
from .known_issues_implementations import IMPLEMENTATION_ISSUES
from .scenario import Scenario


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(row, id=row.id, marks=pytest.mark.moe_purpose(row.why))
        for row in IMPLEMENTATION_ROWS
    ],
)
def test_implementations(scenario: Scenario, arrives: Arrives) -> None:
    arrives(scenario, IMPLEMENTATION_ISSUES)
