"""What failed is a failure in every rendering, whether a report shows it or not."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import msgspec
import pytest

from harness.report.junit import junit_xml
from harness.report.markdown import markdown
from harness.report.report import Session, Status
from tests.support.given_reports import CONFTEST, report

TEST = """
import pytest
from harness.explain.causes import Cause
from harness.compare.difference import Kind
from harness.families.family import Part
from harness.report.known_issue import KnownIssue, Load, Nature, Owner, Sign

KNOWN = KnownIssue(
    id="an-issue", owner=Owner.VLLM, nature=Nature.BUG, reason="it fails", releases=("vllm",),
    when=lambda load: load.tied,
    differs=lambda load: [Sign(Cause.BIT_FLIP, Kind.BITS, Part.DECODER, parameter="t")],
)

@pytest.fixture
def a_store():
    raise OSError("no such store")

@pytest.mark.parametrize("row", ["plain", "known"])
def test_row(row, moe_verified, moe_expected):
    load = Load(family="f", layers={Part.DECODER: [0]}, experts=8, tied=row == "known")
    moe_expected(load, moe_verified("anywhere"), [KNOWN])

def test_without(a_store):
    pass

def test_its_own(moe_verified):
    moe_verified("anywhere")
    assert 1 == 2
"""


def ran(pytester: pytest.Pytester, status: Status, *options: str) -> Session:
    """The session file of four tests over a report with this status."""
    report(status).write(pytester.path / "given.json")
    pytester.makeconftest(CONFTEST.format(report=str(pytester.path / "given.json")))
    pytester.makepyfile(TEST)
    pytester.runpytest_subprocess("--moe-reports", "out", *options)
    return msgspec.json.decode((pytester.path / "out" / "session.json").read_bytes(), type=Session)


def failures(session: Session) -> dict[str, str]:
    """Cases of the JUnit file that failed or broke off: name and message."""
    cases = ET.fromstring(junit_xml(session)).iter("testcase")
    found = [(case, case.find(kind)) for case in cases for kind in ("failure", "error")]
    return {
        case.get("name", ""): problem.get("message", "")
        for case, problem in found
        if problem is not None
    }


@pytest.mark.slow
@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["one process", "xdist"])
def test_a_known_issue_that_did_not_happen_fails(
    pytester: pytest.Pytester, workers: list[str]
) -> None:
    session = ran(pytester, Status.EQUAL, "--moe-expect=known", *workers)
    assert {row.scenario: row.failed for row in session.rows} == {
        "plain": False, "known": True, "test_its_own": False,
    }  # fmt: skip
    assert "known issue an-issue did not happen" in failures(session)["known"]
    assert "its known issue did not happen" in markdown(session)


@pytest.mark.slow
def test_what_broke_off_is_an_error(pytester: pytest.Pytester) -> None:
    session = ran(pytester, Status.EQUAL)
    its_own, broken = session.broken
    assert (its_own.phase, its_own.message) == ("call", "assert 1 == 2")
    assert its_own.test.endswith("test_its_own")
    assert (broken.phase, broken.message) == ("setup", "OSError: no such store")
    assert broken.test.endswith("test_without")
    assert "no such store" in broken.error
    assert any(name.endswith("test_without") for name in failures(session))
    assert "setup: OSError: no such store" in markdown(session)


@pytest.mark.slow
def test_a_difference_is_a_failure(pytester: pytest.Pytester) -> None:
    session = ran(pytester, Status.DIFFERENT)
    assert {row.scenario for row in session.rows if row.failed} == {
        "plain",
        "known",
        "test_its_own",
    }
    suite = ET.fromstring(junit_xml(session)).find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("4", "3", "1")
    assert "3 of 3 scenarios failed, 1 broke off" in markdown(session)


def test_nothing_to_tell() -> None:
    session = Session(complete=True)
    assert failures(session) == {}
    assert "every scenario as expected" in markdown(session)
