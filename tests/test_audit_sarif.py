"""An audit's SARIF log, held against the object model of SARIF 2.1.0 and GitHub's demands.

``sarif_om`` is generated from OASIS's JSON schema: each class knows the properties its object may
have, by their names in the schema, and which it must have. Types, ranges and enumerations are not
in it, so those of the properties written here are in :data:`VALUES`, from the specification.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import attr
import msgspec
import pytest
import sarif_om

from harness.audit import audit
from harness.audit.report import AuditReport
from harness.audit.sarif import audit_sarif
from tests import audited

#: Which object stands under a property, where it is not free text or a property bag.
OBJECTS = {
    "runs": sarif_om.Run,
    "tool": sarif_om.Tool,
    "driver": sarif_om.ToolComponent,
    "rules": sarif_om.ReportingDescriptor,
    "shortDescription": sarif_om.MultiformatMessageString,
    "fullDescription": sarif_om.MultiformatMessageString,
    "help": sarif_om.MultiformatMessageString,
    "defaultConfiguration": sarif_om.ReportingConfiguration,
    "results": sarif_om.Result,
    "message": sarif_om.Message,
    "description": sarif_om.Message,
    "locations": sarif_om.Location,
    "physicalLocation": sarif_om.PhysicalLocation,
    "artifactLocation": sarif_om.ArtifactLocation,
    "region": sarif_om.Region,
    "logicalLocations": sarif_om.LogicalLocation,
}

Test = Callable[[Any], bool]


def text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def from_one(value: object) -> bool:
    return isinstance(value, int) and value >= 1


def uri(value: object) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"[\w.~:/?#@!$&'()*+,;=%-]+", value))


#: What the specification asks of a property's value.
VALUES: dict[str, Test] = {
    "$schema": uri,
    "version": lambda v: v == "2.1.0",
    "name": text,
    "informationUri": uri,
    "helpUri": uri,
    "id": text,
    "text": text,
    "markdown": text,
    "level": lambda v: v in ("none", "note", "warning", "error"),
    "columnKind": lambda v: v in ("utf16CodeUnits", "unicodeCodePoints"),
    "ruleId": text,
    "ruleIndex": lambda v: v == 0,
    "uri": uri,
    "uriBaseId": text,
    "startLine": from_one,
    "startColumn": from_one,
    "endLine": from_one,
    "endColumn": from_one,
    "fullyQualifiedName": text,
    "kind": text,
    "partialFingerprints": lambda v: all(map(text, [*v, *v.values()])),
    "originalUriBaseIds": lambda v: all(
        not faults(o, sarif_om.ArtifactLocation) for o in v.values()
    ),
    "properties": lambda v: isinstance(v, dict),
}


def faults(value: dict[str, Any], of: type, at: str = "log") -> list[str]:
    """Every property that is unknown, missing or of a wrong value."""
    fields = {f.metadata["schema_property_name"]: f for f in attr.fields(of)}
    known = {"$schema" if name == "schema_uri" else name for name in fields}
    required = {name for name, f in fields.items() if f.default is attr.NOTHING}
    found = [f"{at}.{name} is unknown" for name in value.keys() - known]
    found += [f"{at}.{name} is missing" for name in required - value.keys()]
    named = [(name, v) for name, v in value.items() if name in known]
    return found + [f for name, v in named for f in _inside(name, v, f"{at}.{name}")]


def _inside(name: str, value: Any, at: str) -> Iterator[str]:
    if name in OBJECTS:
        for each in value if isinstance(value, list) else [value]:
            yield from faults(each, OBJECTS[name], at)
    elif name not in VALUES or not VALUES[name](value):
        yield f"{at} is {value!r}"


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


def test_the_log_is_sarif(report: AuditReport) -> None:
    assert faults(log(report), sarif_om.SarifLog) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda run: run.update(surprise=1), "log.runs.surprise is unknown"),
        (lambda run: run.pop("tool"), "log.runs.tool is missing"),
        (lambda run: run["results"][0].update(level="fatal"), "log.runs.results.level is 'fatal'"),
        (lambda run: run["results"][0].pop("message"), "log.runs.results.message is missing"),
    ],
)
def test_the_test_sees_what_is_no_sarif(
    report: AuditReport, change: Callable[[Any], object], fault: str
) -> None:
    changed = log(report)
    change(changed["runs"][0])
    assert faults(changed, sarif_om.SarifLog) == [fault]


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


def test_no_finding_is_a_log_without_results(tmp_path: Path) -> None:
    clean = log(audit(audited.vllm(tmp_path, {})))
    assert clean["runs"][0]["results"] == []
    assert faults(clean, sarif_om.SarifLog) == []
