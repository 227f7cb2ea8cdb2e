"""Nothing that was tampered with comes out equal; what is honest does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from harness.difference import Account, Kind, Side
from harness.errors import HarnessError
from harness.report import Report, Status
from tests.silent_passes import ATTEMPTS, HONEST, Attempt
from tests.silent_worlds import judged, world


def outcome(found: Report) -> set[Kind]:
    assert found.status is Status.DIFFERENT
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
    tiny_checkpoints: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = world(tiny_checkpoints[attempt.recipe], tmp_path)
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
    honest: str, tiny_checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, recipe = HONEST[honest]
    given = world(tiny_checkpoints[recipe], tmp_path)
    change(given)
    report = judged(given, monkeypatch)
    assert (report.status, report.differences) == (Status.EQUAL, [])
    assert [account.side for account in report.accounts] == list(Side)
    for account in report.accounts:
        require_whole(account)
        assert account.compared > 0
        assert account.unaccounted == 0


def test_the_table() -> None:
    """At least sixty rows, and no name twice."""
    assert len(ATTEMPTS) >= 60
    assert Counter(attempt.id for attempt in ATTEMPTS).most_common(1)[0][1] == 1
