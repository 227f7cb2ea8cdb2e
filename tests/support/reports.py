"""Reports of no load, for tests of what reads them."""

from __future__ import annotations

from typing import Any

from harness.compare.difference import Tally
from harness.families.family import Part
from harness.report.report import Environment, Report, Status


def an_environment(**given: Any) -> Environment:
    """The emulated target under vLLM 0.26, but for what is given."""
    fields: dict[str, Any] = {
        "stack": "0.26",
        "python": "3.11",
        "versions": {},
        "target": "emulated, 4 devices",
    }
    return Environment(**fields | given)


def a_report(**given: Any) -> Report:
    """A Qwen3-VL load that is equal, but for what is given."""
    fields: dict[str, Any] = {
        "checkpoint": "/c", "reference": "/c", "family": "qwen3-vl-moe", "status": Status.EQUAL,
        "environment": an_environment(),
        "tallies": [Tally(part=Part.DECODER, layers=1, experts=8, experts_compared=8)],
    }  # fmt: skip
    return Report(**fields | given)
