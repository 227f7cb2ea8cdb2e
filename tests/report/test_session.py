"""What a session's report keeps besides reports: purposes, skips and options."""

from __future__ import annotations

import msgspec
import pytest

from harness.report.report import Session, Status
from tests.support.given_reports import CONFTEST, report

TEST = """
import pytest

def row(name, purpose):
    return pytest.param(name, id=name, marks=pytest.mark.moe_purpose(purpose))

ROWS = [row("second", "It is there to be skipped."), row("first", "It is there to run.")]

@pytest.mark.parametrize("name", ROWS)
def test_row(name, moe_verified, moe_expected):
    if name == "second":
        pytest.skip("no store here")
    moe_expected(None, moe_verified("anywhere"), ())

def test_of_something_else():
    pytest.skip("no business of a report")
"""


@pytest.fixture
def session(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest(CONFTEST.format(report=str(pytester.path / "given.json")))
    pytester.makepyfile(TEST)
    return pytester


def written(session: pytest.Pytester) -> Session:
    return msgspec.json.decode((session.path / "out/session.json").read_bytes(), type=Session)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["one process", "xdist"])
def test_skips_purposes_and_options(session: pytest.Pytester, workers: list[str]) -> None:
    report(Status.EQUAL).write(session.path / "given.json")
    given = ["--moe-reports=out", "--moe-layers=0-3", "--moe-checksums", "--moe-seed=0"]
    result = session.runpytest_subprocess(*given, *workers)
    result.assert_outcomes(passed=1, skipped=2)
    result.stdout.fnmatch_lines(["*MoE load verification*", "1 scenario skipped: no store here"])
    kept = written(session)
    assert [(one.scenario, one.reason) for one in kept.skipped] == [("second", "no store here")]
    assert [(row.scenario, row.purpose) for row in kept.rows] == [("first", "It is there to run.")]
    assert kept.options == ["--moe-layers=0-3", "--moe-checksums", "--moe-reports=out"]


@pytest.mark.slow
def test_a_session_of_skips_alone_is_told(session: pytest.Pytester) -> None:
    report(Status.EQUAL).write(session.path / "given.json")
    result = session.runpytest_subprocess("--moe-reports=out", "-k", "second")
    result.stdout.fnmatch_lines(["*MoE load verification*", "1 scenario skipped: no store here"])
    assert "1 skipped" in (session.path / "out/summary.md").read_text()


@pytest.mark.slow
def test_a_failure_says_what_the_scenario_is_for(session: pytest.Pytester) -> None:
    report(Status.DIFFERENT).write(session.path / "given.json")
    result = session.runpytest_subprocess("-k", "first")
    result.stdout.fnmatch_lines(["*purpose*It is there to run."])
