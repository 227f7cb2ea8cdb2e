"""The commands that read reports: what they write, what they refuse, and what stays secret."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import jsonschema
import pytest
from click.testing import CliRunner, Result

from harness.app.cli import main
from harness.report.renderings import json_schema
from harness.report.report import Broken, Report, Session, SessionRow, Status, report_from_json
from tests.support.differences import unread
from tests.support.host_reports import host

UNREAD = unread()


def ran(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def session_file(tiny_report: Path) -> Path:
    report = report_from_json(tiny_report.read_bytes())
    report.status, report.differences = Status.DIFFERENT, [UNREAD]
    path = tiny_report.with_name("session.json")
    Session(
        complete=True, rows=[SessionRow(scenario="vl-fused", report=report, failed=True)]
    ).write(path)
    return path


def test_markdown_is_printed(session_file: Path) -> None:
    result = ran("report", session_file)
    assert result.exit_code == 0
    assert "1 of 1 scenarios failed" in result.output


def test_renderings_are_written(session_file: Path, tmp_path: Path) -> None:
    assert ran("report", session_file, "--junit", tmp_path / "j.xml",
               "--markdown", tmp_path / "s.md").output == ""  # fmt: skip
    (case,) = ET.parse(tmp_path / "j.xml").iter("testcase")
    assert case.get("name") == "vl-fused"
    assert case.find("failure") is not None
    assert "vl-fused" in (tmp_path / "s.md").read_text()


def test_one_report_is_a_session_of_one(tiny_report: Path) -> None:
    assert "every scenario as expected" in ran("report", tiny_report).output
    report = report_from_json(tiny_report.read_bytes())
    report.status, report.differences = Status.DIFFERENT, [UNREAD]
    report.write(tiny_report)
    assert "1 of 1 scenarios failed" in ran("report", tiny_report).output


@pytest.mark.parametrize(
    ("fault", "exit_code", "told"),
    [
        ("none", 0, ""),
        ("broken", 1, "t.py::test_a broke off in setup: OSError: no"),
        ("unfinished", 1, "t.py::test_a did not end"),
        ("incomplete", 1, "a session did not end"),
        ("no rows", 1, "no scenario was verified"),
        ("known issue did not happen", 1, "vl: it did not happen"),
    ],
)
def test_a_merge_says_what_no_report_shows(
    tmp_path: Path, fault: str, exit_code: int, told: str
) -> None:
    session = Session(
        complete=True, rows=[SessionRow(scenario="vl", report=host(n)) for n in (0, 1)]
    )
    if fault == "broken":
        session.broken = [
            Broken(test="t.py::test_a", phase="setup", message="OSError: no", error="")
        ]
    if fault == "unfinished":
        session.complete, session.unfinished = False, ["t.py::test_a"]
    if fault == "incomplete":
        session.complete = False
    if fault == "no rows":
        session.rows = []
    if fault == "known issue did not happen":
        session.rows[0].failed, session.rows[0].why = True, "it did not happen"
    session.write(tmp_path / "session.json")
    ended = ran("merge", tmp_path / "session.json", "--output", tmp_path / "merged.json")
    assert ended.exit_code == exit_code, ended.output
    assert told in ended.output


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{}", b'{"rows": 3}', b"\xff"])
def test_no_report(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "r.json").write_bytes(content)
    result = ran("report", tmp_path / "r.json", "--junit", tmp_path / "j.xml")
    assert result.exit_code == 2
    assert "not a report" in result.output
    assert not (tmp_path / "j.xml").exists()


@pytest.mark.parametrize("command", [["report"], ["merge", "--output", "OUT"]])
def test_a_report_without_an_end(command: list[str], tmp_path: Path) -> None:
    arguments = [str(tmp_path / "out") if each == "OUT" else each for each in command]
    ended = CliRunner().invoke(main, [*arguments, "/dev/zero"])
    assert (ended.exit_code, "more than 268435456 bytes" in ended.stderr) == (2, True)


def test_the_schema(session_file: Path, tiny_report: Path) -> None:
    schema = json.loads(ran("schema").output)
    assert schema == json.loads(json.dumps(json_schema()))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(session_file.read_text()), schema)
    of_a_report = schema | {"$ref": "#/$defs/Report"}
    jsonschema.validate(json.loads(tiny_report.read_text()), of_a_report)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"rows": [{"scenario": 1}], "complete": True}, schema)


def test_credentials_are_taken_out(
    session_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "wJalrXUtnFEMI-planted-secret"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    report: Report = report_from_json((tmp_path / "given.json").read_bytes())
    report.checkpoint = f"s3://bucket/{secret}"
    row = SessionRow(scenario="vl", report=report, failed=True, why=f"refused: {secret}")
    Session(complete=True, rows=[row]).write(session_file)
    ran("report", session_file, "--junit", tmp_path / "j.xml")
    assert secret not in ran("report", session_file).output
    assert secret not in (tmp_path / "j.xml").read_text()
