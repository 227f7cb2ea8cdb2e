"""Reports of hosts become one, and whatever is missing keeps it from being equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from harness.base.errors import BadInput, InternalError
from harness.compare.difference import Kind, ParameterTally, Tally
from harness.explain.causes import Cause, Diagnosis
from harness.families.family import Part, Projection
from harness.report.history import courses
from harness.report.known_issue import Verdict, judge
from harness.report.maps import PartMap, State, map_of
from harness.report.merge import merged, merged_session
from harness.report.message import known_text
from harness.report.renderings import session_from
from harness.report.report import (
    Delivery,
    Failure,
    Report,
    Session,
    SessionRow,
    Status,
    report_from_json,
)
from tests.support.differences import unread
from tests.support.host_reports import bits, different, host
from tests.support.reports import a_report


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
    lost = unread()
    first = different(0, lost, bits(0, "cpu:1"))
    second = different(1, lost, bits(2, "cpu:3"), bits(3, "cpu:2"))
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
        rows = [SessionRow(scenario=name, report=host(number)) for name in ("a", "b")]
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


def equal(**given: Any) -> Report:
    """A report of one host that compared two layers of four experts, and found them equal."""
    tally = Tally(part=Part.DECODER, layers=2, experts=8, experts_compared=8, bytes_compared=9)
    other = ParameterTally(part=Part.DECODER, parameters=5, compared=5, bytes_compared=7)
    own = map_of(Part.DECODER, [0, 1], 4, lambda layer: range(4))
    return a_report(**{"tallies": [tally], "parameters": [other], "maps": [own]} | given)


def unequal(**given: Any) -> Report:
    """The same with an expert that differs, as the harness reports it."""
    found = bits(1, "cpu:1")
    own = map_of(Part.DECODER, [0, 1], 4, lambda layer: range(4), [found])
    diagnosis = Diagnosis(
        cause=Cause.ZEROS, summary="s", evidence="e", next_step="n", covers=1, members="0"
    )
    fields = {"status": Status.DIFFERENT, "differences": [found], "maps": [own]}
    return equal(**fields | {"diagnoses": [diagnosis]} | given)


def short(**given: Any) -> list[Tally]:
    return [replace(tally, **given) for tally in equal().tallies]


def odd_map(row: str, **given: Any) -> list[PartMap]:
    """The map of :func:`equal`, with this for the first layer of up_proj."""
    (whole,) = equal().maps
    states = whole.states | {Projection.UP: [row, "4e"]}
    return [replace(whole, **{"states": states} | given)]


UNREAD = unread()
BROKEN = Failure(error="E", message="m")
#: Reports that were changed, or written by a fault: what they say of themselves is not so.
CONTRADICTIONS: dict[str, Report] = {
    "equal with a difference": equal(differences=[UNREAD]),
    "equal with a failure": equal(failure=BROKEN),
    "equal with both": equal(failure=BROKEN, differences=[UNREAD]),
    "equal with a cause": equal(diagnoses=unequal().diagnoses),
    "equal and known to fail": equal(known_issue="an-issue"),
    "equal with a host that differs": equal(
        hosts=[replace(host(0).hosts[0], of=1, status=Status.DIFFERENT)]
    ),
    "equal with a host's differences": equal(
        hosts=[replace(host(0).hosts[0], of=1, differences=1)]
    ),
    "equal and tensors not read": equal(
        deliveries=[
            Delivery(
                part=Part.DECODER, calls=1, sites={}, streamed=2, delivered=1, unused=0, unread=1
            )
        ]
    ),
    "equal and nothing compared": equal(tallies=[], parameters=[], maps=[]),
    "equal and no expert compared": equal(tallies=short(experts_compared=0)),
    "equal and all left out": equal(
        tallies=short(experts_compared=0, left_out=8),
        parameters=[ParameterTally(part=Part.DECODER, parameters=5, left_out=5)],
        maps=[map_of(Part.DECODER, [0, 1], 4)],
    ),
    "equal and an expert short": equal(tallies=short(experts_compared=7), maps=[]),
    "equal and a parameter short": equal(
        parameters=[ParameterTally(part=Part.DECODER, parameters=5, compared=4)]
    ),
    "equal and a map that differs": equal(maps=odd_map("3e1d")),
    "equal and a map of what never came": equal(maps=odd_map("3e1m")),
    "equal and a map of less": equal(maps=odd_map("3e1n")),
    "more experts than there are": equal(tallies=short(experts_compared=9)),
    "fewer than none": equal(tallies=short(experts_compared=-8)),
    "more parameters than there are": equal(
        parameters=[ParameterTally(part=Part.DECODER, parameters=5, compared=6)]
    ),
    "a part counted twice": equal(tallies=[*short(), *short()]),
    "a part that is counted and not there": equal(absent=[Part.DECODER]),
    "a map of more experts": equal(maps=odd_map("5e")),
    "a map of no letters": equal(maps=odd_map("eeee")),
    "a map of a billion": equal(maps=odd_map("1000000000e", experts=1_000_000_000)),
    "a map of other layers": equal(maps=odd_map("4e", layers=[0, 1, 2])),
    "a map of another part": equal(maps=odd_map("4e", part=Part.MTP)),
    "different without a difference": equal(status=Status.DIFFERENT),
    "different with a failure": unequal(failure=BROKEN),
    "different and a map that is equal": unequal(maps=equal().maps),
    "different and a map of another expert": unequal(maps=odd_map("3e1d")),
    "different and fewer in the map": unequal(differences=[*unequal().differences, bits(2, "c")]),
    "different and mended": unequal(mended_issue="an-issue"),
    "a cause of a difference that is not there": unequal(
        diagnoses=[replace(unequal().diagnoses[0], members="0-1")]
    ),
    "a cause that begins at none": unequal(diagnoses=[replace(unequal().diagnoses[0], first=7)]),
    "a cause of a billion": unequal(
        diagnoses=[replace(unequal().diagnoses[0], members="0-9999999999999")]
    ),
    "failed without a failure": equal(status=Status.LOAD_FAILED),
}


@pytest.fixture(params=list(CONTRADICTIONS.values()), ids=list(CONTRADICTIONS))
def contradiction(request: pytest.FixtureRequest) -> Report:
    given: Report = request.param
    return given


@pytest.mark.parametrize("report", [equal(), unequal(), host(0), host(1, divided=True)])
def test_a_report_that_agrees_with_itself_is_read(report: Report) -> None:
    assert report_from_json(report.to_json()) == report


def test_a_report_that_contradicts_itself_is_not_read(contradiction: Report) -> None:
    with pytest.raises(BadInput, match="contradicts itself"):
        report_from_json(contradiction.to_json())


def test_nor_rendered(contradiction: Report, tmp_path: Path) -> None:
    contradiction.write(tmp_path / "report.json")
    with pytest.raises(BadInput, match=r"contradicts itself: .*report\.json"):
        session_from(tmp_path / "report.json")


def test_nor_counted_as_a_night(contradiction: Report, tmp_path: Path) -> None:
    rows = [
        SessionRow(scenario="good", report=equal()),
        SessionRow(scenario="vl", report=contradiction),
    ]
    Session(complete=True, rows=rows).write(tmp_path / "session.json")
    with pytest.raises(BadInput, match=r"contradicts itself: .*, vl\)"):
        courses(tmp_path)


def test_nor_judged_as_anything_but_unexpected(contradiction: Report) -> None:
    judgement = judge(contradiction, None, ())
    assert (judgement.verdict, judgement.issues) == (Verdict.UNEXPECTED, ())
    assert "contradicts itself" in known_text(judgement)


@pytest.mark.parametrize(
    "given",
    [
        {"differences": [UNREAD]},
        {"failure": BROKEN},
        {"tallies": [Tally(part=Part.DECODER, layers=1, experts=4, experts_compared=4)]},
    ],
    ids=["a difference", "a failure", "a count that its map does not have"],
)
def test_a_host_that_contradicts_itself_is_not_merged(given: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="contradicts itself"):
        merged([host(0), host(1, **given)])


def known(report: Report) -> Report:
    return replace(report, known_issue="an-issue", issue_owner="vllm")


@pytest.mark.parametrize(
    ("hosts", "issue", "fails"),
    [
        ([known(different(0, UNREAD)), known(different(1, UNREAD))], "an-issue", False),
        ([known(different(0, UNREAD)), host(1)], "", True),
        ([known(different(0, UNREAD)), different(1, UNREAD)], "", True),
        ([known(different(0, UNREAD))], "", True),
        ([host(0), host(1)], "", False),
    ],
    ids=["on both", "on one", "another's surprise", "a host is missing", "equal"],
)
def test_a_slice_is_known_where_every_host_is(hosts: list[Report], issue: str, fails: bool) -> None:
    """No test failed on any host: what each saw was expected of it."""
    sessions = [
        Session(complete=True, rows=[SessionRow(scenario="vl", report=one)]) for one in hosts
    ]
    (row,) = merged_session(sessions).rows
    assert (row.report.known_issue, row.failed) == (issue, fails)
