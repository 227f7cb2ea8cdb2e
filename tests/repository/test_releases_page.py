"""docs/releases.md and releases.json are what runs of pairs left."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from harness.report.releases import SeenPair, seen_pairs
from harness.report.report import Report, Session, SessionRow, Status
from scenarios.known_issues import KNOWN_ISSUES
from tests.support.differences import unread
from tests.support.pipelines import script
from tests.support.reports import a_report, an_environment

releases_page = script("releases_page")
PAGE = releases_page.ROOT / releases_page.PAGE


def report(vllm: str, tpu: str, *, failing: bool = False) -> Report:
    return a_report(
        status=Status.DIFFERENT if failing else Status.EQUAL,
        differences=[unread("model.stray.weight")] if failing else [],
        environment=an_environment(versions={"vllm": vllm, "tpu-inference": tpu}),
    )


def left(out: Path, stacks: Mapping[str, Report | dict[str, str]]) -> Path:
    """What a nightly run leaves of pairs that ran one scenario, or do not work."""
    figures = []
    for stack, given in stacks.items():
        figures.append({"stack": stack, "pair": given if isinstance(given, dict) else None})
        if isinstance(given, Report):
            (out / stack).mkdir(parents=True)
            row = SessionRow(scenario="vl-fused", report=given)
            Session(complete=True, rows=[row]).write(out / stack / "session.json")
    out.mkdir(exist_ok=True)
    (out / "nightly.json").write_text(json.dumps({"stacks": figures}))
    return out


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout without pinned stacks."""
    monkeypatch.setattr(releases_page, "pinned_pairs", list)
    at = tmp_path / "checkout"
    (at / "docs").mkdir(parents=True)
    (at / "harness" / "report").mkdir(parents=True)
    marks = f"{releases_page.BEGIN}\n{releases_page.END}"
    (at / "docs" / "releases.md").write_text(f"before\n{marks}\nafter\n")
    return at


FAILS = {"vllm": "0.29.0", "tpu_inference": "0.29.0", "verdict": "unimportable", "why": "no `ACT`."}


def test_what_runs_came_to(root: Path, tmp_path: Path) -> None:
    out = left(
        tmp_path / "out",
        {
            "0.33+0.32": report("0.33.0", "0.32.0", failing=True),
            "0.25": report("0.25.1", "0.25.0"),
            "0.29": FAILS,
        },
    )
    assert releases_page.main([str(out)], root) == 0
    text = (root / "docs" / "releases.md").read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    rows = [line for line in text.splitlines() if line.startswith("| 0.")]
    assert rows == [
        "| 0.25.1 | 0.25.0 | = |",
        "| 0.29.0 | 0.29.0 | cannot run |",
        "| 0.33.0 | 0.32.0 | **new** |",
    ]
    assert "- vLLM 0.29.0 + tpu-inference 0.29.0: unimportable: no `ACT`." in text
    assert "- vLLM 0.33.0 + tpu-inference 0.32.0: new: `vl-fused`" in text
    (_, fails, new) = seen_pairs(root / "harness" / "report" / "releases.json")
    assert fails == msgspec.convert(FAILS, SeenPair)
    assert new.new == ("vl-fused",)
    assert "untied-head-unwritten" in new.absent


def test_other_pairs_stay_as_they_were_recorded(root: Path, tmp_path: Path) -> None:
    releases_page.main([str(left(tmp_path / "a", {"0.29": FAILS}))], root)
    once = report("0.25.1", "0.25.0")
    releases_page.main([str(left(tmp_path / "b", {"0.25": once}))], root)
    found = seen_pairs(root / "harness" / "report" / "releases.json")
    assert [pair.vllm for pair in found] == ["0.25.1", "0.29.0"]


@pytest.mark.parametrize("fault", ["nothing", "broken off", "no session"])
def test_what_is_no_run(
    root: Path, tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    if fault != "nothing":
        left(out, {"0.25": report("0.25.1", "0.25.0")})
    session = out / "0.25" / "session.json"
    if fault == "broken off":
        Session(complete=False, rows=[]).write(session)
    if fault == "no session":
        session.unlink()
    assert releases_page.main([str(out)], root) == 2
    assert "releases_page: " in capsys.readouterr().err
    assert (root / "docs" / "releases.md").read_text().startswith("before")


def test_the_page_is_what_is_recorded() -> None:
    text = PAGE.read_text().split(releases_page.BEGIN)[1].split(releases_page.END)[0]
    assert text.strip() == releases_page.tables(seen_pairs()).strip()


def test_the_pinned_stacks_are_in_the_table() -> None:
    seen = {pair.order: pair for pair in seen_pairs()}
    pinned = list(releases_page.pinned_pairs())
    assert [pair.vllm for pair in pinned] == ["0.21.0", "0.22.0", "0.26.0", "0.32.0"]
    assert [seen[pair.order] for pair in pinned] == pinned
    (canary, fixed, *_) = pinned
    assert "positional-ids-qwen3-vl-moe" in canary.issues
    assert "positional-ids-qwen3-vl-moe" in fixed.absent


def test_every_issue_that_was_recorded_is_one() -> None:
    known = {issue.id for issue in KNOWN_ISSUES}
    assert {name for pair in seen_pairs() for name in (*pair.issues, *pair.absent)} <= known
