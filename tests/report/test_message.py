"""The text of a failure: what it is measured by, what it is for, and where the rest of it is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.report.known_issue import Judgement, Nature, Verdict
from harness.report.markdown import markdown
from harness.report.message import failure_text, known_text
from harness.report.report import Session, SessionRow
from tests.support.known_issue import ISSUE
from tests.support.pages import canary, rank_shift


def test_the_reference_is_what_the_device_differs_from() -> None:
    report = rank_shift().rows[0].report
    report.reference = "/checkpoints/other"
    text = failure_text(report)
    assert "the device differs from the reference: " in text
    assert "   reference  /checkpoints/other" in text


def test_the_purpose_of_the_scenario_is_told() -> None:
    report = canary().rows[0].report
    assert "   purpose    Fused experts arrive.\n" in failure_text(report, "Fused experts arrive.")
    assert "purpose" not in failure_text(report)


@pytest.mark.slow
def test_what_is_cut_short_says_how_to_get_the_rest() -> None:
    report = rank_shift().rows[0].report
    report.diagnoses *= 22
    how = "the JSON report (pytest --reports DIR, or harness verify --json FILE) has"
    assert failure_text(report).count(f"2 more causes: {how} all") == 1
    rows = [SessionRow(scenario=f"s{number}", report=report, failed=True) for number in range(31)]
    text = markdown(Session(complete=True, rows=rows))
    assert text.count(f"… {how} the rest") == 30
    assert f"1 more failure: {how} all." in text


def test_a_known_issue_says_what_kind_it_is() -> None:
    assert known_text(Judgement(Verdict.KNOWN, (ISSUE,))) == (
        "known issue an-issue, a bug, owner vllm, vllm#1: it crashes\n\n"
    )
    row = replace(ISSUE, nature=Nature.BY_DESIGN)
    assert "an-issue, refused by design, owner vllm" in row.summary
