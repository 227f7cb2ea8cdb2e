"""Credentials leave the harness by name only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness import secrets
from harness.cli import main
from harness.errors import BadInput
from harness.report import Failure, redacted_report, report_from_json

PLANTED = {
    "AWS_ACCESS_KEY_ID": "AKIA0PLANTED0KEY0ID0",
    "AWS_SECRET_ACCESS_KEY": 'planted/secret"with\\quotes+and/slashes',
    "AWS_SESSION_TOKEN": "planted-session-token==",
    "HF_TOKEN": "hf_plantedplantedplanted",
    "HUGGING_FACE_HUB_TOKEN": "hf_anotherplantedone",
    "MY_STORE_PASSWORD": "correct horse battery",
}
KEY = "-----BEGIN PRIVATE KEY-----\nMIIEvplanted\nplantedlast=\n-----END PRIVATE KEY-----\n"


@pytest.fixture(autouse=True)
def _planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(secrets, "_remembered", {})
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "key.json").write_text(json.dumps({"private_key": KEY, "type": "service_account"}))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))


def everything() -> str:
    return "; ".join([*PLANTED.values(), KEY, repr(KEY), KEY.splitlines()[1]])


def none_is_in(text: str) -> bool:
    values = [*PLANTED.values(), *KEY.splitlines()[1:3]]
    return not any(v in text or json.dumps(v)[1:-1] in text for v in values)


def test_text() -> None:
    text = secrets.redact(everything())
    assert none_is_in(text)
    assert all(f"<{name}>" in text for name in PLANTED)


def test_errors() -> None:
    error = BadInput(everything(), where=everything(), expected="x", hint="y")
    assert none_is_in(str(error))


def test_reports(tiny_report: Path) -> None:
    report = report_from_json(tiny_report.read_bytes())
    report.failure = Failure(error="E", message=everything(), log_tail=f"a\n{everything()}\nb")
    report.repeat = f"AWS_SESSION_TOKEN={PLANTED['AWS_SESSION_TOKEN']} harness verify"
    written = redacted_report(report).to_json().decode()
    assert none_is_in(written)
    assert "AWS_SESSION_TOKEN=<AWS_SESSION_TOKEN> harness verify" in written


def test_the_key_file_is_read_once_a_report(
    tiny_report: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    monkeypatch.setattr(secrets, "_remember_key_file", lambda: reads.append(1))
    redacted_report(report_from_json(tiny_report.read_bytes()))
    assert reads == [1]


def test_what_was_read_elsewhere() -> None:
    secrets.remember("AWS_SECRET_ACCESS_KEY", "from-the-credentials-file")
    assert secrets.redact("key from-the-credentials-file.") == "key <AWS_SECRET_ACCESS_KEY>."


def test_words_are_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    assert secrets.redact("a test of tests") == "a test of tests"


def test_doctor_names_credentials_only() -> None:
    result = CliRunner().invoke(main, ["doctor"])
    assert none_is_in(result.output)
    assert "AWS_SECRET_ACCESS_KEY" in result.output
    assert "GOOGLE_APPLICATION_CREDENTIALS" in result.output
