"""A report of experts only is nowhere called equal, whoever renders it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from harness.app.cli import main
from harness.base.errors import BadInput
from harness.compare.accounting import EXPERTS_ONLY
from harness.compare.difference import Account, ParameterTally, Side, Tally
from harness.families.family import Part
from harness.report.merge import merged
from harness.report.message import failure_text
from harness.report.renderings import FILES, rendered
from harness.report.report import (
    HostPart,
    Report,
    Session,
    SessionRow,
    Status,
    contradictions,
    report_from_json,
)
from tests.support.differences import unread
from tests.support.reports import a_report

ACCOUNT = Account(side=Side.REFERENCE, tensors=30, compared=24, left_alone={EXPERTS_ONLY: 6})


def experts_only(**given: Any) -> Report:
    fields = {"experts_only": True, "status": Status.EXPERTS_EQUAL, "accounts": [ACCOUNT]}
    return a_report(**fields | given)


def test_it_has_a_status_of_its_own() -> None:
    report = report_from_json(experts_only().to_json())
    assert (report.status, report.exit_code) == ("experts-equal", 0)
    assert not list(contradictions(report))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"status": Status.EQUAL}, "its status is equal"),
        ({"experts_only": False}, "its status is experts-equal"),
        ({"experts_only": False, "status": Status.EQUAL}, "its account is of experts only"),
        (
            {"parameters": [ParameterTally(part=Part.DECODER, parameters=1, compared=1)]},
            "other parameters were compared",
        ),
        ({"differences": [unread()]}, "its status is experts-equal, with 1 differences"),
        ({"tallies": []}, "nothing was compared"),
    ],
    ids=["plainly equal", "not said", "the account alone", "parameters", "differences", "nothing"],
)
def test_one_that_says_otherwise_is_not_believed(given: dict[str, Any], message: str) -> None:
    encoded = msgspec.json.encode(experts_only(**given))
    with pytest.raises(BadInput, match=message):
        report_from_json(encoded)


def test_the_text_says_what_was_not_looked_at() -> None:
    text = failure_text(experts_only())
    assert text.startswith("qwen3-vl-moe: experts only: 8 experts compared, no difference")
    assert "scope      experts only: no other tensor or parameter was compared" in text
    different = experts_only(status=Status.DIFFERENT, differences=[unread()])
    assert "scope      experts only" in failure_text(different)
    assert failure_text(a_report()) == ""


PLAIN = re.compile(r"(?<!experts only: )(?<!experts-)\bequal\b", re.I)


@pytest.mark.parametrize("name", FILES)
def test_no_rendering_calls_it_equal(name: str) -> None:
    row = SessionRow(scenario="mine", report=experts_only())
    text = rendered(Session(complete=True, rows=[row]), name).decode()
    if name.endswith(".html"):  # its style and script have words of their own
        text = text.split("<body>")[1].split("<script")[0]
    assert re.search(r"experts only|experts-equal", text)
    assert not PLAIN.search(text)


def test_no_table_calls_it_equal(tmp_path: Path) -> None:
    experts_only().write(tmp_path / "given.json")
    shown = CliRunner().invoke(main, ["report", str(tmp_path / "given.json")])
    assert shown.exit_code == 0
    assert "experts only: equal" in shown.stdout
    assert not PLAIN.search(shown.stdout)


def of_host(number: int, **given: Any) -> Report:
    status = given.get("status", Status.EXPERTS_EQUAL)
    part = HostPart(number=number, of=2, devices=(f"cpu:{number}",), status=status, differences=0)
    tally = Tally(part=Part.DECODER, layers=1, experts=8, experts_compared=4)
    return experts_only(**{"hosts": [part], "tallies": [tally]} | given)


def test_hosts_are_merged_to_one() -> None:
    whole = merged([of_host(0), of_host(1)])
    assert (whole.status, whole.experts_only) == (Status.EXPERTS_EQUAL, True)
    alone = merged([of_host(0)])
    assert (alone.status, alone.experts_only) == (Status.LOAD_FAILED, True)


def test_hosts_of_another_scope_are_not_merged() -> None:
    other = of_host(1, status=Status.EQUAL, experts_only=False, accounts=[])
    with pytest.raises(BadInput, match="2 verifications"):
        merged([of_host(0), other])
