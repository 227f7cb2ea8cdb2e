"""Every rendering of a session, and the way back from JSON to a session."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from harness.base.errors import BadInput
from harness.base.foreign import presentable
from harness.base.writing import append
from harness.report.junit import junit_xml
from harness.report.markdown import markdown
from harness.report.page import page
from harness.report.report import EQUAL, SCHEMA, Report, Row, Session, believed, content_of

#: By file name: what a session directory holds beside the JSON.
FILES: Mapping[str, Callable[[Session], bytes]] = {
    "junit.xml": junit_xml,
    "summary.md": lambda session: markdown(session).encode(),
    "report.html": page,
}


def rendered(session: Session, name: str) -> bytes:
    """One of :data:`FILES`; each makes its session presentable first."""
    return FILES[name](session)


def add_to_step_summary(session: Session) -> None:
    """Append the Markdown summary to GitHub's step summary, where a step has one.

    Raises:
        OSError: it is not to be written to.
    """
    if path := os.environ.get("GITHUB_STEP_SUMMARY"):
        append(Path(path), rendered(session, "summary.md"))


def session_from(path: Path) -> Session:
    """Read a session, or one report, which becomes a session of one scenario.

    Raises:
        BadInput: it is neither, or a report's status is not what its content says.
    """
    try:
        given: dict[str, Any] = msgspec.json.decode(content_of(path), type=dict[str, Any])
        if "rows" in given:
            session = msgspec.convert(given, Session)
        else:
            report = msgspec.convert(given, Report)
            row = Row(scenario=path.stem, report=report, failed=report.status not in EQUAL)
            session = Session(complete=True, rows=[row])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(
            f"not a report: {error}",
            where=str(path),
            expected="the JSON that harness verify --json or pytest --reports writes, of schema "
            f"{SCHEMA}",
            hint="harness report DIR/session.json --junit junit.xml",
        ) from error
    for row in session.rows:
        believed(row.report, f"{path}, {row.scenario}")
    return presentable(session)


def json_schema() -> dict[str, Any]:
    """The published JSON schema of a session and, under ``$defs/Report``, of a report."""
    return msgspec.json.schema(Session) | {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Session of the MoE load harness",
    }
