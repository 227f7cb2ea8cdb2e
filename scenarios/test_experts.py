"""Every expert of every layer arrives on the device as it stands in the checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.app.plugin import Expected, TargetOf, Verified
from scenarios.catalogue import SCENARIOS
from scenarios.conftest import Stored
from scenarios.known_issues import KNOWN_ISSUES
from scenarios.scenario import Scenario, given


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Rows of the catalogue, or the checkpoints the user named instead."""
    named = [given(checkpoint) for checkpoint in metafunc.config.getoption("--checkpoint")]
    metafunc.parametrize("scenario", named or SCENARIOS, ids=lambda scenario: scenario.id)


def test_experts(
    scenario: Scenario,
    pytestconfig: pytest.Config,
    tmp_path: Path,
    target_of: TargetOf,
    stored: Stored,
    verified: Verified,
    expected: Expected,
) -> None:
    target = target_of(scenario.devices, scenario.parallelism, scenario.hosts, scenario.mesh)
    if scenario.fp8 and target.hosts > 1:
        pytest.skip("no comparison of FP8 values over several hosts: a block's are compared whole")
    put = stored(scenario.store)
    checkpoint, reference = scenario.checkpoint(tmp_path)
    report = verified(
        put(checkpoint),
        target,
        reference=reference,
        parts=scenario.parts,
        nan=scenario.nan(target),
        stream_options=scenario.stream_options,
    )
    layers = pytestconfig.getoption("--num-layers")
    load = scenario.load(target, layers) if scenario in SCENARIOS else None
    expected(load, report, KNOWN_ISSUES)
