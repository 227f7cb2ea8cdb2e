"""Every expert of every layer arrives on the device as it stands in the checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.app.plugin import Expected, TargetOf, Verified

from .catalogue import CHOSEN, SCENARIOS
from .conftest import Stored
from .known_issues import KNOWN_ISSUES
from .scenario import Scenario, given, require_quantised


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Rows of the catalogue, or the checkpoints the user named instead.

    Who asks for rows by name may mean any of them.
    """
    config = metafunc.config
    named = [given(checkpoint) for checkpoint in config.getoption("--moe-checkpoint")]
    by_name = config.getoption("keyword") or any("[" in words for words in config.args)
    everything = by_name or config.getoption("--moe-families") == "all"
    rows = [
        pytest.param(row, id=row.id, marks=pytest.mark.moe_purpose(row.why))
        for row in named or (SCENARIOS if everything else CHOSEN)
    ]
    metafunc.parametrize("scenario", rows)


def test_experts(
    scenario: Scenario,
    pytestconfig: pytest.Config,
    tmp_path: Path,
    moe_target_of: TargetOf,
    moe_verified: Verified,
    moe_expected: Expected,
    stored: Stored,
) -> None:
    target = moe_target_of(
        scenario.devices, scenario.parallelism, scenario.hosts, scenario.mesh, scenario.asked
    )
    require_quantised(scenario, target)
    put = stored(scenario.store)
    checkpoint, reference = scenario.checkpoint(tmp_path)
    report = moe_verified(
        put(checkpoint),
        target,
        reference=reference,
        parts=scenario.parts,
        nan=scenario.nan(target),
        stream_options=scenario.stream_options,
    )
    layers = pytestconfig.getoption("--moe-num-layers")
    load = scenario.load(target, layers) if scenario in SCENARIOS else None
    moe_expected(load, report, KNOWN_ISSUES)
