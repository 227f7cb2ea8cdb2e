"""A model arrives whichever of upstream's implementations serves it.

Run when asked for, on 0.26 or 0.32: ``pytest scenarios/test_implementations.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.app.plugin import Expected, TargetOf, Verified

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
def test_implementations(
    scenario: Scenario,
    tmp_path: Path,
    moe_target_of: TargetOf,
    moe_verified: Verified,
    moe_expected: Expected,
) -> None:
    target = moe_target_of(scenario.devices, scenario.parallelism, scenario.hosts, scenario.mesh)
    checkpoint, reference = scenario.checkpoint(tmp_path)
    report = moe_verified(
        checkpoint, target, reference=reference, parts=scenario.parts, nan=scenario.nan(target),
        stream_options=scenario.stream_options,
    )  # fmt: skip
    moe_expected(scenario.load(target), report, IMPLEMENTATION_ISSUES)
