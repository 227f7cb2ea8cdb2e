"""Reports of hosts become one, and whatever is missing keeps it from being equal."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from harness.causes import Cause
from harness.difference import Difference, Kind, Tally
from harness.errors import BadInput, InternalError
from harness.family import Part
from harness.maps import State, map_of
from harness.merge import merged, merged_session
from harness.report import Failure, Report, Row, Session, Status
from tests.host_reports import bits, different, host


@pytest.mark.parametrize("divided", [False, True])
def test_equal_hosts_make_an_equal_whole(divided: bool) -> None:
    whole = merged([host(1, divided=divided), host(0, divided=divided)])
    assert whole.status is Status.EQUAL
    assert [part.number for part in whole.hosts] == [0, 1]
    (tally,) = whole.tallies
    assert (tally.experts_compared, tally.bytes_compared, tally.padding_bytes) == (4, 200, 20)
    assert (whole.parameters[0].compared, whole.parameters[0].bytes_compared) == (5, 7)
    assert whole.maps[0].count(State.EQUAL) == 12
    assert (whole.timings.load, whole.timings.peak_rss, whole.timings.stream_bytes) == (2, 10, 100)


def test_a_host_of_copies_alone_takes_no_expert_away() -> None:
    copies = Tally(part=Part.DECODER, layers=1, experts=4, divided=True)
    none = [map_of(Part.DECODER, [0], 4)]
    whole = merged([host(0, divided=True), host(1, divided=True, tallies=[copies], maps=none)])
    assert whole.experts_compared == 4
    assert whole.maps[0].count(State.EQUAL) == 12


def test_experts_that_no_host_compared_are_not_equal() -> None:
    idle = Tally(part=Part.DECODER, layers=1, experts=4)
    none = [map_of(Part.DECODER, [0], 4)]
    with pytest.raises(InternalError, match="not all was compared: decoder 2 of 4"):
        merged([host(0), host(1, tallies=[idle], maps=none)])


def test_differences_of_hosts_stand_together_and_what_both_say_stands_once() -> None:
    unread = Difference(kind=Kind.UNREAD, part=Part.DECODER, parameter="t")
    first = different(0, unread, bits(0, "cpu:1"))
    second = different(1, unread, bits(2, "cpu:3"), bits(3, "cpu:2"))
    whole = merged([first, second])
    assert whole.status is Status.DIFFERENT
    assert [d.device_name for d in whole.differences] == ["", "cpu:1", "cpu:3", "cpu:2"]
    (diagnosis,) = whole.diagnoses
    assert (diagnosis.first, diagnosis.covers, diagnosis.members) == (0, 4, "0-3")


def test_a_host_that_differs_alone_makes_the_whole_differ() -> None:
    whole = merged([host(0), different(1, bits(2, "cpu:3"))])
    assert (whole.status, len(whole.differences)) == (Status.DIFFERENT, 1)


@pytest.mark.parametrize("divided", [False, True])
def test_a_host_without_a_report_is_a_load_that_failed(divided: bool) -> None:
    whole = merged([host(1, divided=divided)])
    assert whole.status is Status.LOAD_FAILED
    assert whole.failure is not None
    assert (whole.failure.error, whole.failure.host) == ("no report", 0)
    assert [part.status for part in whole.hosts] == [Status.LOAD_FAILED, Status.EQUAL]
    assert whole.experts_compared == (0 if divided else 2)
    assert whole.maps[0].count(State.EQUAL) == (0 if divided else 6)


def test_the_failure_is_that_of_the_host_that_failed_first() -> None:
    late, early = failed(0, "waited in vain"), failed(1, "crashed")
    early.hosts = [replace(early.hosts[0], seconds=1.0)]
    whole = merged([late, early])
    assert whole.failure is not None
    assert whole.failure.error == "crashed"


def failed(number: int, error: str, **given: Any) -> Report:
    """A host whose load failed: it has what there was before the load, and no parameters."""
    failure = Failure(error=error, message="", host=number)
    tally = Tally(part=Part.DECODER, layers=1, experts=4)
    return host(
        number, status=Status.LOAD_FAILED, failure=failure, tallies=[tally], parameters=[],
        maps=[map_of(Part.DECODER, [0], 4)], **given,
    )  # fmt: skip


def of_three(report: Report) -> Report:
    return replace(report, hosts=[replace(report.hosts[0], of=3)])


def test_a_host_without_a_report_does_not_hide_why_another_failed() -> None:
    whole = merged([of_three(host(0)), of_three(failed(1, "crashed"))])
    assert whole.failure is not None
    assert (whole.failure.error, whole.failure.host) == ("crashed", 1)


def test_a_failed_host_compared_no_parameter() -> None:
    whole = merged([host(0), failed(1, "crashed")])
    (tally,) = whole.parameters
    assert (tally.parameters, tally.compared, tally.bytes_compared) == (5, 0, 0)
    assert whole.experts_compared == 2
    assert whole.maps[0].count(State.NOT_COMPARED) == 6


def test_a_device_no_host_looked_at_is_a_difference() -> None:
    second = host(1)
    second.hosts = [replace(second.hosts[0], devices=("cpu:2",))]
    whole = merged([host(0), second])
    assert whole.status is Status.DIFFERENT
    assert [(d.kind, d.device_name) for d in whole.differences] == [(Kind.UNCHECKED, "cpu:3")]
    assert whole.diagnoses[0].summary == "no host compared what cpu:3 holds"
    assert (whole.diagnoses[0].cause, whole.diagnoses[0].members) == (Cause.UNCHECKED, "0")


@pytest.mark.parametrize(("reports", "match"), [
    ([host(0), host(0)], "reports of hosts 0, 0"),
    ([host(0, hosts=[])], "reports of hosts none"),
    ([host(0), host(1, checkpoint="/d")], "reports of 2 verifications"),
    ([host(0), replace(host(1), environment=replace(host(1).environment, stack="0.32"))],
     "reports of 2 verifications"),
])  # fmt: skip
def test_reports_that_do_not_belong_together(reports: list[Report], match: str) -> None:
    with pytest.raises(BadInput, match=match):
        merged(reports)


def test_sessions_are_merged_row_by_row() -> None:
    def session(number: int, **given: Any) -> Session:
        rows = [Row(scenario=name, report=host(number)) for name in ("a", "b")]
        return Session(complete=True, began=f"2026-01-0{number + 1}", rows=rows, **given)

    lost = session(1)
    lost.rows = lost.rows[:1]
    whole = merged_session([session(0), lost])
    assert [(row.scenario, row.report.status, row.failed) for row in whole.rows] == [
        ("a", Status.EQUAL, False),
        ("b", Status.LOAD_FAILED, True),
    ]
    assert (whole.complete, whole.began) == (True, "2026-01-01")
    assert merged_session([session(0), session(1, unfinished=["c"])]).unfinished == ["c"]
