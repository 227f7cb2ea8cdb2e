"""``harness audit`` on the command line: exit codes, formats, files that appear complete."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from harness.app.cli import main
from harness.audit.audit_report import AuditReport
from tests.support import audited

FINDING = "def load(param):\n    param.weight_loader(param, w, n, s, e)\n"
KEYWORD = "def load(param):\n    param.weight_loader(param, w, n, shard_id=s, expert_id=e)\n"


def run(at: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["audit", "--vllm", str(at), *options])


def test_a_finding_is_exit_1(tmp_path: Path) -> None:
    result = run(audited.vllm(tmp_path, {"tiny_moe": FINDING}))
    assert result.exit_code == 1
    assert "vllm/model_executor/models/tiny_moe.py:2:5  load" in result.stdout
    assert "hook sees  args=(n, s, e), kwargs={}" in result.stdout
    assert "write      param.weight_loader(param, w, n, shard_id=s, expert_id=e)" in result.stdout
    assert "1 finding; " in result.stdout


def test_none_is_exit_0(tmp_path: Path) -> None:
    result = run(audited.vllm(tmp_path, {"tiny_moe": KEYWORD}))
    assert result.exit_code == 0
    assert "no findings; 1 keyword" in result.stdout
    assert "tiny_moe.py" not in result.stdout


def test_all_lists_what_is_in_order(tmp_path: Path) -> None:
    result = run(audited.vllm(tmp_path, {"tiny_moe": KEYWORD}), "--all")
    assert "keyword    vllm/model_executor/models/tiny_moe.py:2:5  load" in result.stdout


def test_no_vllm_is_exit_2(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.exit_code == 2
    assert "no package vllm here" in result.stderr


def test_no_tpu_inference_is_exit_2(tmp_path: Path) -> None:
    result = run(audited.vllm(tmp_path, {}), "--tpu-inference", str(tmp_path))
    assert result.exit_code == 2
    assert "no package tpu_inference here" in result.stderr


def test_nowhere_to_write_is_exit_2(tmp_path: Path) -> None:
    result = run(audited.vllm(tmp_path, {}), "--output", str(tmp_path / "none" / "out"))
    assert result.exit_code == 2


@pytest.mark.parametrize("form", ["text", "json", "sarif"])
def test_the_file_holds_what_would_be_printed(tmp_path: Path, form: str) -> None:
    at, out = audited.vllm(tmp_path, {"tiny_moe": FINDING}), tmp_path / "out"
    printed = run(at, "--format", form)
    written = run(at, "--format", form, "--output", str(out))
    assert written.stdout == ""
    assert written.exit_code == printed.exit_code == 1
    assert len(out.read_text().splitlines()) == len(printed.stdout.splitlines())
    assert [path.name for path in tmp_path.glob("*out*")] == ["out"]


def test_json_is_the_report(tmp_path: Path) -> None:
    at = audited.vllm(tmp_path, {"tiny_moe": FINDING + KEYWORD})
    report = msgspec.json.decode(run(at, "--format", "json", "--all").stdout, type=AuditReport)
    assert [call.line for call in report.findings] == [2]
    assert [call.line for call in report.others] == [4]
    assert report.tally == {"positional": 1, "keyword": 1}
