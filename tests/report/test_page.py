"""The page as a file: whole, small, and nothing in it that a checkpoint could have put there."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest

from harness.compare.difference import Kind
from harness.explain.causes import Cause
from harness.families.experts import TensorSlice
from harness.families.family import Projection
from harness.report.page import MOST_BYTES, page
from harness.report.report import Broken, Session, SessionRow, Status
from tests.support.differences import a_difference
from tests.support.pages import a_report, all_equal, canary, rank_shift

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"


def embedded(html: str) -> list[dict[str, object]]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    data: list[dict[str, object]] = json.loads(found[1])
    return data


def test_it_needs_no_network() -> None:
    html = page(all_equal()).decode()
    assert not re.search(r"""(?:src|href)=["'](?!#)""", html)
    assert "@import" not in html
    assert "default-src 'none'" in html


@pytest.mark.slow
def test_the_largest_is_small() -> None:
    assert len(page(rank_shift())) < 3_000_000


@pytest.mark.slow
def test_what_is_embedded_covers_every_difference() -> None:
    (first, _) = embedded(page(rank_shift()).decode())
    (part_map,) = first["maps"]  # type: ignore[misc]
    runs = part_map["causes"]["gate_proj"][93]  # type: ignore[has-type]
    assert runs[:4] == [1, 0, 7, -1]
    assert sum(runs[::2]) == 128


@pytest.mark.slow
def test_patterns_are_told_in_words() -> None:
    html = page(rank_shift()).decode()
    assert "gate_proj: layers 0-93, every 8th expert from 0 to 120" in html
    assert "down_proj: layers 0-59, experts 256-511" in html


@pytest.mark.slow
def test_places_in_words_are_links() -> None:
    html = page(rank_shift()).decode()
    assert 'href="#s0/decoder/0/0/gate_proj">gate_proj: layers 0-93' in html
    assert 'href="#s1/decoder/0/256/down_proj">down_proj: layers 0-59' in html


def head(session: Session) -> str:
    """What stands above the scenarios, without its markup."""
    html = page(session).decode().partition("<main")[0].partition("<body>")[2]
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


SMALL = ("small", (2, 8), ())


def a_session(*rows: tuple[str, tuple[int, int], tuple[int, ...]], **given: Any) -> Session:
    """Scenarios by name, size and the experts that are shifted; such ones failed."""
    made = [SessionRow(scenario=name, report=a_report(*size, shifted), failed=bool(shifted))
            for name, size, shifted in rows]  # fmt: skip
    return Session(complete=True, rows=made, **given)


@pytest.mark.parametrize(
    ("rows", "mood", "words"),
    [
        ([SMALL], "good", "The device holds what the checkpoint says"),
        ([("one", (2, 8), (1,))], "bad", "The device differs from the checkpoint"),
        ([SMALL, SMALL], "good", "Every scenario as expected ✓ 2 equal"),
        ([SMALL, ("one", (2, 8), (1,))], "bad", "1 of 2 scenarios failed ✗ 1 failed ✓ 1 equal"),
        ([], "bad", "No scenario ran"),
    ],
)
def test_the_head_says_whether_all_is_well(rows: Any, mood: str, words: str) -> None:
    session = a_session(*rows)
    assert words in head(session)
    assert f'<header class="{mood}">' in page(session).decode()


def test_the_head_of_a_known_failure() -> None:
    session = canary()
    for row in session.rows:
        row.failed, row.report.issue_owner = False, "vllm"
    found = head(session)
    assert "Every scenario as expected ◇ 3 failed as known" in found
    assert "vllm the hook received shard_id" in found
    assert "known: positional-ids-qwen3-vl-moe argument-contract" in found


def test_experts_only_are_not_all() -> None:
    session = a_session(SMALL)
    report = session.rows[0].report
    report.status, report.experts_only = Status.EXPERTS_EQUAL, True
    assert "Experts only: equal; nothing else was compared" in head(session)
    assert '<header class="some">' in page(session).decode()


def test_what_broke_off_is_never_well() -> None:
    broken = Broken(test="test_x", phase="setup", message="OSError", error="")
    session = msgspec.structs.replace(a_session(SMALL), broken=[broken])
    assert '<header class="bad">' in page(session).decode()


@pytest.mark.parametrize(
    ("cause", "owner"),
    [
        (Cause.ROLLED, "vllm or tpu-inference"),
        (Cause.CONFIG_LACKS_KEY, "the checkpoint"),
        (Cause.BIT_FLIP, "storage or hardware"),
        (Cause.UNACCOUNTED, "the harness"),
        (Cause.UNEXPLAINED, "not known"),
    ],
)
def test_whose_it_is(cause: Cause, owner: str) -> None:
    session = a_session(("one", (2, 8), (1,)))
    report = session.rows[0].report
    report.diagnoses = [msgspec.structs.replace(report.diagnoses[0], cause=cause)]
    assert f"{owner} each rank holds the piece of the next {cause} 1 6 one" in head(session)


def test_a_known_failure_that_stayed_away_is_the_harness_own() -> None:
    session = a_session(SMALL)
    session.rows[0].failed, session.rows[0].why = True, "known issue x did not happen: equal"
    assert "the harness known issue x did not happen: equal out-of-date 1 small" in head(session)


def test_what_failed_is_listed_first() -> None:
    session = a_session(SMALL, ("one", (2, 8), (1,)), SMALL)
    html = page(session).decode()
    names = re.findall(r'<span class="name">(\w+)</span>', html)
    assert names == ["one", "small", "small"]


#: No cell is like its neighbour: the worst that run lengths can do.
CHEQUERED = ("chequered", (4, 64), tuple(range(0, 64, 2)))


def test_what_there_is_no_room_for_is_left_out() -> None:
    """Of the last ones; the name and the result of each stay, and it says so."""
    session = a_session(*[CHEQUERED] * 12, SMALL)
    session.rows[0].report.checkpoint = "<&'" * 5000
    html = page(session, room=700_000).decode()
    full = html.count("This page is full")
    assert 0 < full < 12
    assert len(html) < 800_000
    held = [bool(data) for data in embedded(html)]
    assert held[:12] == [True] * (12 - full) + [False] * full
    assert html.count('<span class="name">chequered') == 12


@pytest.mark.slow
def test_the_head_and_the_list_are_bounded() -> None:
    session = a_session(SMALL)
    hostile = "<'>" * 600
    session.rows[0].scenario = session.rows[0].purpose = hostile
    session.rows *= 1100
    broken = Broken(test=hostile, phase=hostile, message=hostile, error="")
    session = msgspec.structs.replace(
        session, broken=[broken] * 400, unfinished=[hostile] * 400, options=[hostile] * 400
    )
    html = page(session)
    assert len(html) < MOST_BYTES
    assert b"100 more in session.json" in html


def test_a_failed_load_is_told() -> None:
    html = page(canary()).decode()
    assert "3 of 3 scenarios failed" in html
    assert "the hook received shard_id and expert_id positionally" in html


def test_a_failed_load_draws_what_never_arrived() -> None:
    html = page(canary()).decode()
    positional, alone, vision = embedded(html)
    assert html.count("The load ended early, and nothing was compared") == 3
    for shown, missing, open_ in ((positional, 8, 0), (alone, 8, 0), (vision, 0, 8)):
        part_map: Any = shown["maps"][0]  # type: ignore[index]
        states = part_map["states"]["gate_proj"][0]
        assert (states, shown["failed"]) == (f"{missing or open_}{'m' if missing else 'n'}", True)
        assert part_map["causes"]["gate_proj"][0] == [8, 0 if missing else -1]
    assert embedded(page(all_equal()).decode())[0]["failed"] is False


def test_what_broke_off_is_told() -> None:
    broken = Broken(test="test_x", phase="setup", message="OSError: no such store", error="")
    html = page(Session(complete=False, broken=[broken], unfinished=["test_y"])).decode()
    assert "1 broke off, 1 did not end" in html
    assert "OSError: no such store" in html
    assert "test_y" in html


@pytest.mark.slow
@pytest.mark.parametrize("field", ["checkpoint", "repeat", "family"])
def test_no_text_is_markup(field: str) -> None:
    session = rank_shift()
    report = session.rows[0].report
    setattr(report, field, HOSTILE)
    report.differences[0] = a_difference(
        Kind.BITS, layer=0, expert=0, projection=Projection.GATE,
        source=TensorSlice(HOSTILE, HOSTILE),
    )  # fmt: skip
    report.diagnoses[0] = msgspec.structs.replace(report.diagnoses[0], summary=HOSTILE)
    session.rows[0].scenario = HOSTILE
    html = page(session).decode()
    assert "<script>alert" not in html
    assert "<img" not in html
    assert embedded(html)[0]["diagnoses"][0]["summary"] == HOSTILE  # type: ignore[index]
