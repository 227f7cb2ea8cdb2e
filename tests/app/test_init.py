"""What ``import harness`` offers, and that it imports none of it before it is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

import harness
from harness.load import target
from harness.load.targets import known_targets as registry
from harness.report import report
from harness.verification import verify as verification


def test_the_library_is_at_the_top() -> None:
    assert harness.verify is verification.verify
    assert harness.target_named is registry.target_named
    assert (harness.Report, harness.Target) == (report.Report, target.Target)


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(AttributeError, match="module 'harness' has no attribute 'golden'"):
        _ = harness.golden


def test_importing_the_package_imports_nothing_else() -> None:
    """vLLM imports it at its own import, to ask for a platform."""
    code = "import harness, sys; print([n for n in sys.modules if n.startswith('harness.')])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
