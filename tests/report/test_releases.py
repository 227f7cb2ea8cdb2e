"""Since which release an issue is known, and until which, from the pairs that ran."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from harness.report import releases
from harness.report.releases import SeenPair, SeenPairs, last_seen, seen_pairs, span


def pair(number: str, *issues: str, absent: tuple[str, ...] = ()) -> SeenPair:
    return SeenPair(
        vllm=number, tpu_inference=number, verdict="works", issues=issues, absent=absent
    )


PAIRS = [
    pair("0.25.0", absent=("i",)),
    pair("0.26.0", "i"),
    SeenPair(vllm="0.27.0", tpu_inference="0.27.0", verdict="unimportable", why="no ACT"),
    pair("0.28.0", "i", "k"),
    pair("0.29.0", "k", absent=("i",)),
]


@pytest.mark.parametrize(
    ("issue", "first", "last", "gone"),
    [("i", "0.26.0", "0.28.0", "0.29.0"), ("k", "0.28.0", "0.29.0", None)],
)
def test_since_when_and_until_when(issue: str, first: str, last: str, gone: str | None) -> None:
    found = span(issue, PAIRS)
    assert found is not None
    assert (found.first.vllm, found.last.vllm) == (first, last)
    assert (found.gone.vllm if found.gone else None) == gone


def test_an_issue_that_nothing_shows() -> None:
    assert span("none", PAIRS) is None


def test_the_last_time_it_was_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "releases.json"
    file.write_bytes(msgspec.json.encode(SeenPairs(PAIRS[::-1])))
    assert seen_pairs(file) == PAIRS
    assert seen_pairs(tmp_path / "none") == []
    monkeypatch.setattr(releases, "known_pairs", lambda: seen_pairs(file))
    newest = {"vllm": "0.33.0", "tpu-inference": "0.32.0.dev20261026"}
    assert last_seen("i", newest) == "last seen on vLLM 0.28.0 + tpu-inference 0.28.0"
    assert last_seen("i", {"vllm": "0.25.0", "tpu-inference": "0.25.0"}) == "seen on no other pair"


def test_builds_of_a_day_follow_their_release() -> None:
    line = ["0.26.0", "0.26.0.dev20260731", "0.26.0.dev20260820", "0.27.0"]
    pairs = [pair(number) for number in line]
    shuffled = [pairs[2], pairs[0], pairs[3], pairs[1]]
    assert sorted(shuffled, key=lambda one: one.order) == pairs
