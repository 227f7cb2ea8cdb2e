"""Nothing that was tampered with comes out equal; what is honest does."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from harness.base.errors import BadInput, HarnessError
from harness.compare.difference import Account, Kind, Side
from harness.families.family import Part
from harness.report.known_issue import Verdict, judge
from harness.report.merge import merged
from harness.report.report import HostPart, Report, Status, contradictions
from scenarios.catalogue import SCENARIOS
from scenarios.known_issues import KNOWN_ISSUES
from tests.support.known_issue import pinned_versions
from tests.support.reports import a_report
from tests.support.silent_passes import (
    ATTEMPTS,
    DEVICES,
    HONEST,
    ORIENTATION_GUESSED,
    REPORTS,
    SQUARE,
    UNKNOWN,
    Attempt,
)
from tests.support.silent_worlds import World, judged, world


def outcome(found: Report) -> set[Kind]:
    assert found.status is Status.DIFFERENT
    assert list(contradictions(found)) == []
    assert found.exit_code == 1
    assert sum(d.covers for d in found.diagnoses) == len(found.differences)
    return {difference.kind for difference in found.differences}


def require_whole(account: Account) -> None:
    """Every tensor is counted once."""
    counted = account.compared + sum(account.left_alone.values()) + account.unaccounted
    assert account.tensors == counted


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt.id)
def test_no_silent_pass(
    attempt: Attempt,
    checkpoints: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = world(checkpoints[attempt.recipe], tmp_path, DEVICES.get(attempt.recipe, 4))
    attempt.tamper(given)
    if not isinstance(attempt.found, Kind):
        with pytest.raises(HarnessError, match=attempt.found):
            judged(given, monkeypatch)
        return
    report = judged(given, monkeypatch)
    assert attempt.found in outcome(report)
    assert list(map(require_whole, report.accounts)) == [None, None]


@pytest.mark.parametrize("honest", HONEST)
def test_what_is_honest_is_equal(
    honest: str, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, recipe = HONEST[honest]
    given = world(checkpoints[recipe], tmp_path, DEVICES.get(recipe, 4))
    change(given)
    report = judged(given, monkeypatch)
    assert (report.status, report.differences) == (Status.EQUAL, [])
    assert list(contradictions(report)) == []
    dropped = {"dropped-draft", "dropped-draft-per-expert"}
    assert report.absent == ([Part.MTP] if honest in dropped else [])
    assert [account.side for account in report.accounts] == list(Side)
    for account in report.accounts:
        require_whole(account)
        assert account.compared > 0
        assert account.unaccounted == 0


def verdict(given: World, patch: pytest.MonkeyPatch) -> Verdict:
    """Of a report of :data:`SQUARE`, as if it came from the stack that the issue is of."""
    report = judged(given, patch)
    report.environment = msgspec.structs.replace(
        report.environment, versions=pinned_versions("0.26")
    )
    (load,) = [scenario.load() for scenario in SCENARIOS if scenario.id == "vl-square"]
    return judge(report, load, KNOWN_ISSUES).verdict


def test_a_known_issue_is_known(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = world(checkpoints[SQUARE], tmp_path)
    ORIENTATION_GUESSED(given)
    assert verdict(given, monkeypatch) is Verdict.KNOWN


@pytest.mark.parametrize("attempt", UNKNOWN)
def test_what_resembles_a_known_issue_is_unexpected(
    attempt: str, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = world(checkpoints[SQUARE], tmp_path)
    UNKNOWN[attempt](given)
    assert verdict(given, monkeypatch) is Verdict.UNEXPECTED


@pytest.mark.parametrize("attempt", REPORTS)
def test_a_report_is_not_taken_at_its_word(attempt: str) -> None:
    host = HostPart(number=0, of=1, devices=(), status=Status.EQUAL, differences=0)
    assert merged([a_report(hosts=[host])]).status is Status.EQUAL
    with pytest.raises(BadInput, match="contradicts itself"):
        merged([a_report(hosts=[host], **REPORTS[attempt])])


def test_the_table() -> None:
    """At least sixty rows, and no name twice."""
    ids = [*(attempt.id for attempt in ATTEMPTS), *UNKNOWN, *REPORTS]
    assert len(ids) >= 60
    assert len(ids) == len(set(ids))
