"""One trial: which pairs it asks for, what a pair that does not work is, and what a report says."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.app import bisect_command
from harness.app.cli import main
from harness.base.errors import BadInput, TargetUnavailable
from harness.bisect import trial
from harness.bisect.trial import (
    VersionTrial,
    asked_for,
    outcome_of,
    require_checkout,
    scenario_run,
    words_of,
)
from harness.bisect.walk import Question, Tried, opened
from harness.families.family import Part
from harness.report.known_issue import shows
from harness.report.report import Failure, Report, Session, SessionRow, Status
from scenarios.known_issues import KNOWN_ISSUES
from tests.support.known_issue import ISSUE, LOAD, failed
from tests.support.pipelines import ROOT
from tests.support.reports import a_report

ASKED = Question(package="tpu-inference", good="0.26.0", bad="0.32.0", scenario="vl-fused")
VLLM = ["0.25.0", "0.26.0", "0.27.0", "0.28.0", "0.29.0", "0.32.0"]


def ended(code: int, said: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess([], code, stdout="/env\n", stderr=said)


class SetUps:
    """Stands for ``ci/setup.py``: pairs end with 4 that are not among ``working``."""

    def __init__(self, working: set[str]) -> None:
        self.working, self.asked = working, list[str]()

    def __call__(self, pair: str, *options: str) -> subprocess.CompletedProcess[str]:
        self.asked.append(pair)
        assert "--inside" in options
        works = pair in self.working
        return ended(0) if works else ended(4, f"noise\nsetup: {pair} cannot be imported\n")


def tried(
    monkeypatch: pytest.MonkeyPatch, folder: Path, working: set[str], version: str,
    asked: Question = ASKED,
) -> tuple[Tried, list[str]]:  # fmt: skip
    set_ups = SetUps(working)
    monkeypatch.setattr(trial, "set_up", set_ups)
    monkeypatch.setattr(
        trial, "scenario_run",
        lambda programs, asked, reports, *rest: Tried(
            words="equal", report=str(reports / "session.json")
        ),
    )  # fmt: skip
    return VersionTrial(asked, folder, VLLM, None, None)(version), set_ups.asked


def test_the_other_package_follows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """0.29.0 cannot be imported with 0.29.0; the next number is tried, then the one before."""
    found, asked = tried(monkeypatch, tmp_path, {"0.28.0+0.29.0"}, "0.29.0")
    assert asked == ["0.29.0+0.29.0", "0.32.0+0.29.0", "0.28.0+0.29.0"]
    assert (found.words, found.pair) == ("equal", "0.28.0+0.29.0")
    assert found.report == "trials/0.29.0/session.json"


def test_a_build_that_goes_with_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found, asked = tried(monkeypatch, tmp_path, set(), "0.26.0.dev20260820")
    assert len(asked) == 3
    assert found.words == ""
    assert found.why.startswith("0.26.0+0.26.0.dev20260820 cannot be imported; 0.27.0+0.26.0")


def test_the_other_package_fixed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = Question(package="vllm", good="1", bad="2", scenario="s", other="0.22.1")
    found, pairs = tried(monkeypatch, tmp_path, {"0.22.0+0.22.1"}, "0.22.0", asked)
    assert (pairs, found.words) == (["0.22.0+0.22.1"], "equal")


@pytest.mark.parametrize("code", [1, 2, 75])
def test_an_index_that_does_not_answer_is_no_skip(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int
) -> None:
    monkeypatch.setattr(trial, "set_up", lambda *_: ended(code, "setup: no network"))
    with pytest.raises(TargetUnavailable, match="no environment: no network"):
        VersionTrial(ASKED, tmp_path, VLLM, None, None)("0.26.0")


def test_a_pytest_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TargetUnavailable, match="no environment"):
        scenario_run(tmp_path / "none", ASKED, tmp_path / "reports", None, None)


# What a session says.


def session(folder: Path, *reports: Report) -> Path:
    rows = [SessionRow(scenario="vl-fused", report=report) for report in reports]
    Session(complete=True, rows=rows).write(folder / "session.json")
    return folder / "session.json"


def test_words_of_an_outcome() -> None:
    assert words_of(a_report()) == "equal"
    assert words_of(failed()) == "load-failed: AssertionError, argument-contract"


def test_no_report_is_no_verdict(tmp_path: Path) -> None:
    assert "pytest ended with 4" in outcome_of(tmp_path / "session.json", 4, None, None).why
    assert outcome_of(session(tmp_path), 5, None, None).why == "pytest ended with 5 and no report"


def test_a_machine_that_is_too_slow_is_no_verdict(tmp_path: Path) -> None:
    """It is raised, so that nothing of it is kept and the build is tried again."""
    late = a_report(
        status=Status.LOAD_FAILED,
        failure=Failure(error="the loading process gave no answer within 300 s", message=""),
        tallies=[],
    )
    with pytest.raises(TargetUnavailable, match="the machine is too slow"):
        outcome_of(session(tmp_path, late), 1, None, None)


def test_an_issue_that_shows_and_one_that_does_not(tmp_path: Path) -> None:
    path = session(tmp_path, failed())
    assert outcome_of(path, 1, LOAD, ISSUE).shows is True
    assert outcome_of(session(tmp_path, a_report()), 0, LOAD, ISSUE).shows is False
    assert outcome_of(session(tmp_path, a_report()), 0, LOAD, None).shows is None


def test_an_error_hides_differences() -> None:
    (row,) = (row for row in KNOWN_ISSUES if row.id == "untied-head-unwritten")
    assert not shows(failed(), LOAD, row)
    assert not trial.can_tell(failed(), row)
    assert trial.can_tell(a_report(), row)
    assert trial.can_tell(failed(), ISSUE)


def test_an_issue_shows_on_any_release() -> None:
    """Where a row ends is what a bisection asks: its own ranges do not count."""
    assert not ISSUE.is_of({"vllm": "0.26.0"}, "emulated")
    assert shows(failed("0.26.0"), LOAD, ISSUE)
    assert not shows(a_report(), LOAD, ISSUE)


# What is asked for.


@pytest.mark.parametrize(
    ("issue", "scenario"),
    [("untied-head-unwritten", "vl-fused"), ("positional-ids-qwen3.5-mtp", "mtp-fused-alone")],
)
def test_the_scenario_of_an_issue(issue: str, scenario: str) -> None:
    name, load, row = asked_for("", issue, "emulated")
    assert name == scenario
    assert row is not None
    assert row.when(load)
    assert Part.MTP not in load.parts or len(load.parts) == 1


@pytest.mark.parametrize(
    ("scenario", "issue", "match"),
    [
        ("none", "", "no scenario 'none'"),
        ("", "none", "no known issue 'none'"),
        ("", "no-fp8-on-the-host", "no scenario shows known issue"),
    ],
)
def test_what_is_not_there(scenario: str, issue: str, match: str) -> None:
    with pytest.raises(BadInput, match=match):
        asked_for(scenario, issue, "emulated")


def test_an_installed_harness_makes_no_environments(tmp_path: Path) -> None:
    with pytest.raises(TargetUnavailable, match="no environment of other releases"):
        require_checkout(tmp_path)


# The command.

#: It shows what the command prints here.
PAGE = ROOT / "docs" / "bisect.md"
INDEX = {
    "tpu-inference": ["0.26.0", "0.26.0.dev20260819", "0.26.0.dev20260820", "0.27.0", "0.32.0",
                      "0.25.0"],
    "vllm": VLLM,
}  # fmt: skip
BAD = {"0.26.0.dev20260820", "0.27.0", "0.32.0"}


@pytest.fixture
def upstream(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An index, and builds that come out as :data:`BAD` says; the versions that were tried."""
    asked: list[str] = []

    class Trial:
        def __init__(self, question: Question, folder: Path, *_: object) -> None:
            self.folder = folder

        def __call__(self, version: str) -> Tried:
            asked.append(version)
            if version == "0.27.0" and len(asked) == 3:
                raise KeyboardInterrupt
            bad = version in BAD
            words = "different: parameter-unwritten" if bad else "equal"
            return Tried(words=words, pair=f"0.26.0+{version}", report=f"trials/{version}/s")

    monkeypatch.setattr(bisect_command, "VersionTrial", Trial)
    monkeypatch.setattr(bisect_command, "versions_of", INDEX.__getitem__)
    monkeypatch.setattr(bisect_command, "built_on", lambda package, version: "2026-08-20")
    return asked


def test_the_command_over_releases_and_days(upstream: list[str], tmp_path: Path) -> None:
    """Interrupted at its third trial, and typed once more."""
    typed = ["bisect", "--good", "0.26", "--bad", "0.32", "--scenario", "vl-fused"]
    typed += ["--out", str(tmp_path)]
    assert CliRunner().invoke(main, typed).exit_code == 130
    assert upstream == ["0.26.0", "0.32.0", "0.27.0"]
    ran = CliRunner().invoke(main, typed)
    assert ran.exit_code == 0, ran.output
    assert upstream[3:] == ["0.27.0", "0.26.0.dev20260819", "0.26.0.dev20260820"]
    (shown,) = re.findall(r"^```text\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    default = "reports/bisect/tpu-inference-0.26-0.32-vl-fused"
    assert ran.stdout == shown.replace(default, str(tmp_path))
    assert Status("different") in opened(tmp_path, ASKED).trials["0.32.0"].words


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bad", "0.32"], "nothing to run"),
        (["--bad", "0.26.0", "--scenario", "vl-fused"], "both ends are 0.26.0"),
        (["--bad", "0.31", "--scenario", "vl-fused"], "there is no tpu-inference 0.31"),
        (["--bad", "0.32", "--scenario", "none"], "there is no scenario 'none'"),
    ],
)
def test_bad_input(upstream: list[str], tmp_path: Path, options: list[str], message: str) -> None:
    ran = CliRunner().invoke(main, ["bisect", "--good", "0.26", *options, "--out", str(tmp_path)])
    assert (ran.exit_code, upstream) == (2, [])
    assert message in ran.stderr


def test_two_bisections_in_one_folder(upstream: list[str], tmp_path: Path) -> None:
    with bisect_command.alone(tmp_path):
        ran = CliRunner().invoke(main, ["bisect", "--good", "0.26", "--bad", "0.32", "--scenario",
                                        "vl-fused", "--out", str(tmp_path)])  # fmt: skip
    assert ran.exit_code == 4
    assert "another bisection is running there" in ran.stderr
