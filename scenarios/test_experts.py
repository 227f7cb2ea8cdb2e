"""Every expert of every layer arrives on the device as it stands in the checkpoint."""

from __future__ import annotations

import pytest

from .catalogue import CHOSEN, SCENARIOS
from .conftest import Arrives
from .known_issues import KNOWN_ISSUES
from .scenario import Scenario, given


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


def test_experts(scenario: Scenario, arrives: Arrives) -> None:
    arrives(scenario, KNOWN_ISSUES)
