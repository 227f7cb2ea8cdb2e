"""CI fails where a test was skipped for want of what ``.ci/run`` can install."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pipelines import ROOT


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("SKIPPED [15] tests/report/test_page_browser.py:26: no Chromium here", 1),
        ("SKIPPED [1] tests/on_stack/test_audit_installed.py:72: stack 0.32 is not set up", 1),
        ("SKIPPED [1] tests/support/pipelines.py:160: no shellcheck here: make lock", 1),
        ("SKIPPED [1] tests/load/test_tpu.py:9: the target is not available", 1),
        ("SKIPPED [2] tests/devices/test_digest.py:9: no GPU here", 0),
        ("SKIPPED [2] tests/load/test_chips.py:9: no TPU on this machine", 0),
        ("SKIPPED [1] tests/on_stack/test_contract.py:91: this release has no call site", 0),
        ("3648 passed in 90.00s", 0),
    ],
)
def test_a_skip_for_want_of_anything_else_fails(tmp_path: Path, line: str, status: int) -> None:
    (tmp_path / "log").write_text(f"....\n{line}\n==== 1 passed in 0.1s ====\n")
    skips = [sys.executable, str(ROOT / "ci" / "skips.py"), str(tmp_path / "log")]
    ran = subprocess.run(skips, capture_output=True, text=True, check=False)
    assert ran.returncode == status, ran.stderr
    assert ran.stdout.count("ci: skipped") == status
    assert not status or line.partition("] ")[2] in ran.stdout


def test_ci_reads_its_own_output() -> None:
    text = (ROOT / ".ci" / "run").read_text()
    assert 'make lint types docs wheel test 2>&1 | tee "$log"' in text
    assert 'python3 ci/skips.py "$log"' in text
