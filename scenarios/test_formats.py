"""Quantised experts arrive on the device as their format says, or as upstream quantises them anew.

Run when asked for: ``pytest scenarios/test_formats.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.app.plugin import Expected, TargetOf, Verified

from .formats import FORMAT_ROWS
from .known_issues_formats import FORMAT_ISSUES
from .scenario import Scenario, require_quantised


@pytest.mark.parametrize(
    "scenario",
    [pytest.param(row, id=row.id, marks=pytest.mark.moe_purpose(row.why)) for row in FORMAT_ROWS],
)
def test_formats(
    scenario: Scenario,
    tmp_path: Path,
    moe_target_of: TargetOf,
    moe_verified: Verified,
    moe_expected: Expected,
) -> None:
    target = moe_target_of(scenario.devices, scenario.parallelism, scenario.hosts, scenario.mesh)
    require_quantised(scenario, target)
    checkpoint, reference = scenario.checkpoint(tmp_path)
    report = moe_verified(
        checkpoint, target, reference=reference, parts=scenario.parts, nan=scenario.nan(target),
        stream_options=scenario.stream_options,
    )  # fmt: skip
    moe_expected(scenario.load(target), report, FORMAT_ISSUES)
