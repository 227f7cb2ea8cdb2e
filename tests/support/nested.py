"""Pytest sessions inside a test: in their own environment and their own order."""

from __future__ import annotations

import os

#: After an interpreter. Nested sessions say which test runs last: their order must not be shuffled.
NESTED_PYTEST = ("-m", "pytest", "-p", "no:randomly")


def nested_environment(**variables: str) -> dict[str, str]:
    """This environment with ``variables``, without what the outer session told its workers."""
    kept = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    return kept | variables
