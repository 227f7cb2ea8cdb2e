"""What each host of a slice runs: the nightly, and on host 0 the merge; over a fake nightly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from harness.report.report import Session, SessionRow, Status, report_from_json
from tests.support.host_reports import bits, different, host

ROOT = Path(__file__).parents[2]
NIGHTLY = """#!/usr/bin/env bash
for word in "$@"; do case $word in --out=*) out=${word#--out=};; esac; done
echo "$@" > "$REPORTS/called-$HOST"
mkdir -p "$out/installed"
[ -f "$REPORTS/given-$HOST" ] && cp "$REPORTS/given-$HOST" "$out/installed/session.json"
exit "$OUTCOME"
"""


def write_session(path: Path, number: int, *, equal: bool = True) -> None:
    report = host(number) if equal else different(number, bits(3, "cpu:3"))
    row = SessionRow(scenario="vl", report=report, failed=not equal)
    Session(complete=True, began="2026-01-01", rows=[row]).write(path)


def run(at: Path, number: int, outcome: int = 0) -> subprocess.CompletedProcess[str]:
    nightly = at / "nightly"
    nightly.write_text(NIGHTLY)
    nightly.chmod(0o755)
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {"HOSTS": "2", "HOST": str(number), "REPORTS": str(at), "WAIT": "0",
                 "NIGHTLY": str(nightly), "OUTCOME": str(outcome), "PATH": programs}  # fmt: skip
    return subprocess.run(
        [ROOT / "ci" / "gke" / "host.sh", "--checkpoint=gs://b/c"],
        env=os.environ | variables, capture_output=True, text=True, check=False,
    )  # fmt: skip


def merged(at: Path) -> Session:
    import msgspec

    return msgspec.json.decode((at / "session.json").read_bytes(), type=Session)


def test_all_hosts_are_equal(tmp_path: Path) -> None:
    for number in (0, 1):
        write_session(tmp_path / f"given-{number}", number)
    assert run(tmp_path, 1).returncode == 0
    assert not (tmp_path / "session.json").exists()
    assert run(tmp_path, 0).returncode == 0
    assert [row.report.status for row in merged(tmp_path).rows] == [Status.EQUAL]
    written = {path.name for path in tmp_path.iterdir()}
    assert written >= {"summary.md", "junit.xml", "report.html"}
    called = (tmp_path / "called-1").read_text()
    assert "--stacks=installed --target=tpu" in called
    assert "--checkpoint=gs://b/c -- --hosts=2 --load-timeout=5400" in called


def test_a_difference_on_another_host_is_the_verdict_of_host_0(tmp_path: Path) -> None:
    write_session(tmp_path / "given-0", 0)
    write_session(tmp_path / "given-1", 1, equal=False)
    assert run(tmp_path, 1, outcome=1).returncode == 0
    ended = run(tmp_path, 0)
    assert (ended.returncode, merged(tmp_path).rows[0].failed) == (1, True)
    assert "cpu:3" in ended.stdout


def test_a_host_that_leaves_no_session_has_failed(tmp_path: Path) -> None:
    write_session(tmp_path / "given-0", 0)
    assert run(tmp_path, 1, outcome=75).returncode == 75
    ended = run(tmp_path, 0)
    assert ended.returncode == 3
    assert "the load under test failed on host 1" in ended.stdout


def test_without_a_session_there_is_nothing_to_merge(tmp_path: Path) -> None:
    assert run(tmp_path, 0, outcome=75).returncode == 75


@pytest.mark.parametrize("content", [b"{}", b"no JSON"])
def test_what_is_no_session_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "given-0").write_bytes(content)
    ended = run(tmp_path, 0)
    assert (ended.returncode, ended.stderr.startswith("error: not a report")) == (2, True)


def test_reports_of_single_hosts_do_not_merge(tmp_path: Path) -> None:
    report = replace(report_from_json(host(0).to_json()), hosts=[])
    Session(complete=True, rows=[SessionRow(scenario="vl", report=report)]).write(
        tmp_path / "given-0"
    )
    assert run(tmp_path, 0).returncode == 2
