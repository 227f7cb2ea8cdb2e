"""JUnit and JSON against their schemas; the published JSON schema is the code's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import msgspec
import pytest
import xmlschema

from harness.report.junit import junit_xml
from harness.report.renderings import json_schema
from harness.report.report import Broken, Session
from tests.support.pages import all_equal, canary, rank_shift

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "docs" / "report.schema.json"
JUNIT = xmlschema.XMLSchema(ROOT / "tests" / "data" / "junit.xsd")


def broken_off() -> Session:
    text = "OSError: \x1b[31mno store"
    broken = Broken(test="a\x00test", phase="setup", message=text, error=text)
    return Session(complete=False, broken=[broken], unfinished=["b"])


EVERY = pytest.mark.parametrize("session", [all_equal, canary, rank_shift, broken_off])


@pytest.mark.slow
@EVERY
def test_junit(session: Callable[[], Session]) -> None:
    JUNIT.validate(junit_xml(session()).decode())


def test_junit_that_is_none() -> None:
    with pytest.raises(xmlschema.XMLSchemaValidationError):
        JUNIT.validate(junit_xml(all_equal()).decode().replace("<properties>", "<propertys>", 1)
                       .replace("</properties>", "</propertys>", 1))  # fmt: skip


@pytest.mark.slow
@EVERY
def test_json(session: Callable[[], Session]) -> None:
    given = json.loads(msgspec.json.encode(session()))
    jsonschema.validate(given, json.loads(PUBLISHED.read_text()))


def test_the_published_schema_is_the_codes(request: pytest.FixtureRequest) -> None:
    text = json.dumps(json_schema(), indent=2) + "\n"
    if request.config.getoption("--write-docs"):
        PUBLISHED.write_text(text)
    assert PUBLISHED.read_text() == text
