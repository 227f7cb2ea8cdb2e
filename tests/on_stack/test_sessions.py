"""The scenarios give the same report whatever the number of workers and the order."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from harness.base.errors import TargetUnavailable
from harness.load.targets.known_targets import target_named
from harness.report.report import Session, SessionRow
from tests.support.nested import NESTED_PYTEST, nested_environment

pytestmark = pytest.mark.alone

ROOT = Path(__file__).parents[2]
ROWS = "mtp-fused-alone or vl-2-devices"


def run(reports: Path, *options: str) -> Session:
    asked = ["scenarios", "-k", ROWS, "--target", "torch-xla"]
    subprocess.run(
        [sys.executable, *NESTED_PYTEST, *asked, "--reports", str(reports), *options],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
        env=nested_environment(),
    )
    return msgspec.json.decode((reports / "session.json").read_bytes(), type=Session)


def facts(row: SessionRow) -> object:
    """A row without what differs from run to run: times, and the place of the checkpoint."""
    report = msgspec.to_builtins(row.report)
    for name in ("timings", "checkpoint", "reference", "repeat"):
        del report[name]
    return row.scenario, report


def test_workers_and_order_change_nothing(tmp_path: Path) -> None:
    try:
        target_named("torch-xla")
    except TargetUnavailable as error:
        pytest.skip(str(error))
    one = run(tmp_path / "one")
    assert one.complete
    assert [row.scenario for row in one.rows] == ["mtp-fused-alone", "vl-2-devices"]
    for name, options in {
        "two": ["-n", "2"],
        "backwards": ["-p", "tests.support.backwards"],
    }.items():
        other = run(tmp_path / name, *options)
        assert [facts(row) for row in other.rows] == [facts(row) for row in one.rows]
