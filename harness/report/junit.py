"""JUnit XML of a session: one case per scenario; stack and target as properties.

pytest's own ``--junitxml`` says which tests failed; this says which scenarios did, and why, in
the dialect GitHub's reporters and Buildkite's test collector read: ``testsuites``, ``testsuite``,
``testcase`` with ``properties`` first and one of ``failure``, ``error`` or ``skipped`` after.
"""

from __future__ import annotations

from xml.etree import ElementTree as ET

from harness.base.foreign import presentable, several_lines
from harness.load.stack import under_test
from harness.report.message import failure_text
from harness.report.report import Report, Session, SessionRow, Status

_MOST = 100_000  # characters: more than the longest text of a failure


def junit_xml(session: Session) -> bytes:
    """The session as JUnit XML, UTF-8."""
    session = presentable(session)
    root = ET.Element("testsuites", name="MoE load verification")
    suite = ET.SubElement(root, "testsuite", _counts(session))
    for row in session.rows:
        _case(suite, row)
    for skipped in session.skipped:
        case = _empty_case(suite, skipped.scenario)
        ET.SubElement(case, "skipped", message=_text(skipped.reason))
    for broken in session.broken:
        _error(suite, broken.test, f"{broken.phase}: {broken.message}", broken.error)
    for name in session.unfinished:
        _error(suite, name, "begun and not ended", "")
    ET.indent(root)
    encoded: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return encoded + b"\n"


def first_line(text: str) -> str:
    """The first line of a text that says something; of a traceback by pytest, its error's."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line[1:].strip() for line in text.splitlines() if line.startswith("E  ")]
    return next(iter([*errors, *lines]), "no message")


def verdict_line(session: Session) -> str:
    """How a session ended, in a line."""
    failed = sum(row.failed for row in session.rows)
    verdicts = [f"{failed} of {len(session.rows)} scenarios failed"] if failed else []
    verdicts += [f"{len(session.broken)} broke off"] if session.broken else []
    verdicts += [f"{len(session.unfinished)} did not end"] if session.unfinished else []
    skipped = [f"{len(session.skipped)} skipped"] if session.skipped else []
    return ", ".join([*(verdicts or ["every scenario as expected"]), *skipped])


def summary_line(row: SessionRow) -> str:
    """Why a scenario failed, in a line: its first diagnosis, and how many more there are."""
    report = row.report
    if report.status is Status.EQUAL:
        return first_line(row.why)
    if report.diagnoses:
        first, more = report.diagnoses[0], len(report.diagnoses) - 1
        return f"{first.summary} [{first.cause}]" + (f" and {more} more" if more else "")
    return report.failure.error if report.failure else str(report.status)


def _counts(session: Session) -> dict[str, str]:
    errors, skipped = len(session.unfinished) + len(session.broken), len(session.skipped)
    known = sum(bool(r.report.known_issue) and not r.failed for r in session.rows)
    return {
        "name": "scenarios",
        "tests": str(len(session.rows) + errors + skipped),
        "failures": str(sum(row.failed for row in session.rows)),
        "errors": str(errors),
        "skipped": str(known + skipped),
        "time": _seconds(sum(_time(row.report) for row in session.rows)),
    }


def _empty_case(suite: ET.Element, name: str) -> ET.Element:
    return ET.SubElement(suite, "testcase", classname="harness", name=_text(name), time="0")


def _error(suite: ET.Element, name: str, message: str, text: str) -> None:
    case = _empty_case(suite, name)
    error = ET.SubElement(case, "error", message=_text(message), type="error")
    error.text = _text(text)


def _case(suite: ET.Element, row: SessionRow) -> None:
    report = row.report
    attributes = {"classname": f"scenarios.{report.family}", "name": row.scenario}
    attributes["time"] = _seconds(_time(report))
    case = ET.SubElement(suite, "testcase", {n: _text(v) for n, v in attributes.items()})
    properties = ET.SubElement(case, "properties")
    for name, value in _properties(row).items():
        ET.SubElement(properties, "property", name=name, value=_text(value))
    if row.failed:
        kind = "out-of-date" if report.status is Status.EQUAL else str(report.status)
        failure = ET.SubElement(case, "failure", message=_text(summary_line(row)), type=kind)
        failure.text = _text(failure_text(report, row.purpose) or row.why)
    elif report.known_issue:
        ET.SubElement(case, "skipped", message=_text(f"known issue {report.known_issue}"))


def _properties(row: SessionRow) -> dict[str, str]:
    report, environment = row.report, row.report.environment
    return {
        "purpose": row.purpose,
        "status": str(report.status),
        "stack": environment.stack,
        "target": environment.target,
        "checkpoint": report.checkpoint,
        "experts_compared": str(report.experts_compared),
        "parameters_compared": str(report.parameters_compared),
        "bytes_compared": str(report.all_bytes_compared),
        "differences": str(len(report.differences)),
        "absent": ",".join(report.absent),
        "causes": ",".join(d.cause for d in report.diagnoses),
        "known_issue": report.known_issue,
        "mended_issue": report.mended_issue,
        "repeat": report.repeat,
    } | {f"version.{name}": version for name, version in under_test(environment.versions).items()}


def _time(report: Report) -> float:
    return report.timings.setup + report.timings.load + report.timings.compare


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f}"


def _text(text: str) -> str:
    """``text`` without the characters that XML 1.0 cannot hold, escaped or not."""
    return several_lines(text, _MOST)
