"""In this checkout the plugin's options have short names: ``--target`` for ``--moe-target``."""

from __future__ import annotations

import argparse

import pytest

from harness.app.options import OF_PYTEST, PREFIX


def pytest_addoption(parser: pytest.Parser) -> None:
    """Name each option of the plugin once more; the defaults are the plugin's."""
    group = parser.getgroup(PREFIX)
    for option in OF_PYTEST:
        told = option.for_pytest() | {"help": f"Short for {option.prefixed}."}
        group.addoption(f"--{option.name}", **told | {"default": argparse.SUPPRESS})
