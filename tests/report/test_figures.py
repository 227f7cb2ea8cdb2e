"""A report's figures are the same in every rendering, and say all that was compared."""

from __future__ import annotations

import io
from xml.etree import ElementTree as ET

import msgspec
import pytest
from rich.filesize import decimal

from harness.compare.difference import ParameterTally
from harness.families.family import Part
from harness.report.figures import figures, notes, sums
from harness.report.junit import junit_xml
from harness.report.markdown import markdown
from harness.report.merge import merged_session
from harness.report.page import page
from harness.report.report import Session, Skipped, Status
from harness.report.terminal import closing_table
from scenarios.catalogue import SCENARIOS
from scenarios.known_issues import KNOWN_ISSUES
from tests.support.pages import all_equal
from tests.support.pipelines import script


@pytest.fixture
def session() -> Session:
    """Two scenarios: of the first, other parameters were compared as well, and some left out."""
    made = all_equal()
    made.rows[0].report.parameters = [
        ParameterTally(part=Part.DECODER, parameters=9, compared=7, left_out=2, bytes_compared=1000)
    ]
    return made


def table(session: Session) -> str:
    text = io.StringIO()
    rows = [(row.scenario, row.report) for row in session.rows]
    closing_table(rows, text, session.skipped)
    return text.getvalue()


def test_every_rendering_has_the_same_figures(session: Session) -> None:
    report = session.rows[0].report
    nbytes = 16 * 9_437_184 + 1000
    shown = figures(report)
    assert (shown["parameters"], shown["bytes compared"]) == ("7/9, 2 left out", decimal(nbytes))
    for text in (table(session), markdown(session)):
        for figure in shown.values():
            assert figure in text
    html = page(session).decode()
    assert all(shown[name] in html for name in ("parameters", "bytes compared"))
    (case, _) = ET.fromstring(junit_xml(session)).iter("testcase")
    values = {p.get("name"): p.get("value") for p in case.iter("property")}
    assert (values["bytes_compared"], values["parameters_compared"]) == (str(nbytes), "7")


def test_the_nightly_run_counts_the_same_bytes(session: Session) -> None:
    rows = msgspec.to_builtins(session)["rows"]
    total = script("nightly_summary").total(rows, "bytes_compared")
    assert total == sum(row.report.all_bytes_compared for row in session.rows)
    assert decimal(total) == sums([row.report for row in session.rows])["bytes compared"]


def test_known_issues_are_named_with_owner_and_number(session: Session) -> None:
    for row in session.rows:
        row.report.known_issue, row.report.issue_owner = "an-issue", "vllm"
    text = table(session)
    assert text.count("│ an-issue") == 2
    assert "known issue an-issue, owner vllm: 2 scenarios\n" in text
    assert "known issue an-issue, owner vllm: 2 scenarios" in markdown(session)
    assert "known issue an-issue, owner vllm: 2 scenarios" in page(session).decode()


def test_an_issue_that_a_checkout_mends_is_named(session: Session) -> None:
    report = session.rows[0].report
    report.mended_issue, report.issue_owner = "an-issue", "vllm"
    report.environment = msgspec.structs.replace(report.environment, overlay="vllm /pull (0123)")
    line = "known issue an-issue, owner vllm, does not happen with vllm /pull (0123): 1 scenario"
    assert notes([row.report for row in session.rows], []) == [line]
    assert line in table(session)
    assert "mended: an-issue" in markdown(session)
    assert "</code> does not happen with vllm /pull (0123)" in page(session).decode()
    (case, _) = ET.fromstring(junit_xml(session)).iter("testcase")
    values = {p.get("name"): p.get("value") for p in case.iter("property")}
    assert values["mended_issue"] == "an-issue"


def test_what_was_skipped_is_told_by_reason(session: Session) -> None:
    session.skipped = [Skipped(scenario=name, reason="no [moto] here") for name in ("a", "b")]
    line = "2 scenarios skipped: no [moto] here"
    assert notes([], session.skipped) == [line]
    assert line in table(session)
    assert "2 scenarios skipped: no &#91;moto&#93; here" in markdown(session)
    assert line in page(session).decode()
    root = ET.fromstring(junit_xml(session))
    skipped = [c.get("name") for c in root.iter("testcase") if c.find("skipped") is not None]
    assert skipped == ["a", "b"]
    assert root[0].get("skipped") == "2"
    assert root[0].get("tests") == "4"


def test_no_cell_of_a_log_wraps(session: Session) -> None:
    """With the longest scenario, target and known issue there are, and a figure of each size."""
    scenario = max((row.id for row in SCENARIOS), key=len)
    issue = max((row.id for row in KNOWN_ISSUES), key=len)
    (row, _) = session.rows
    row.report.known_issue, row.report.status = issue, Status.LOAD_FAILED
    target = "emulated, 4 devices as expert=2,model=2, expert-kernel"
    row.report.environment = msgspec.structs.replace(row.report.environment, target=target)
    text = io.StringIO()
    closing_table([(scenario, row.report)], text)
    (line,) = [line for line in text.getvalue().splitlines() if f"│ {scenario}" in line]
    assert target in line
    assert f"{issue} │" in line


def test_a_slice_keeps_what_its_hosts_skipped() -> None:
    skipped = Skipped(scenario="a", reason="no store")
    hosts = [Session(complete=True, skipped=[skipped], options=["--hosts=2"]) for _ in range(2)]
    whole = merged_session(hosts)
    assert (whole.skipped, whole.options) == ([skipped], ["--hosts=2"])


def test_a_draft_model_that_is_not_there_is_told_once(session: Session) -> None:
    session.rows[0].report.absent = [Part.MTP]
    line = "left out: the draft model (mtp), which config.json announces and no file holds"
    assert notes([row.report for row in session.rows], []) == [f"{line}: 1 scenario"]
    for text in (table(session), markdown(session), page(session).decode()):
        assert text.count(line) == 1
    (case, _) = ET.fromstring(junit_xml(session)).iter("testcase")
    values = {p.get("name"): p.get("value") for p in case.iter("property")}
    assert values["absent"] == "mtp"
