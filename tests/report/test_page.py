"""The page as a file: whole, small, and nothing in it that a checkpoint could have put there."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest

from harness.compare.difference import Kind
from harness.families.experts import TensorSlice
from harness.families.family import Projection
from harness.report.page import page
from harness.report.report import Broken, Session
from tests.support.differences import a_difference
from tests.support.pages import all_equal, canary, rank_shift

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


def test_a_failed_load_is_told() -> None:
    html = page(canary()).decode()
    assert "3 of 3 scenarios failed" in html
    assert "the hook received shard_id and expert_id positionally" in html


def test_a_failed_load_draws_what_never_arrived() -> None:
    html = page(canary()).decode()
    positional, alone, vision = embedded(html)
    assert html.count("The load ended early and nothing was compared") == 3
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
