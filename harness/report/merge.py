"""One report of the reports of several hosts; each has compared what its own devices hold.

Nothing but reports travels. A host that is missing, a load that failed on one, and a device that
no host looked at keep the whole from being equal.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from harness.base.errors import BadInput
from harness.base.number_runs import numbers_of, runs_text
from harness.compare.difference import DeviceUnchecked, Difference, ParameterTally, Tally
from harness.explain.causes import Cause, Diagnosis
from harness.families.family import Part
from harness.report.maps import PartMap, map_of, merged_map
from harness.report.report import (
    EQUAL,
    DigestsUsed,
    Failure,
    HostPart,
    Report,
    Session,
    SessionRow,
    Status,
    Timings,
    believed,
    require_covered,
)

#: In this order one status hides another.
_STATUSES = (Status.EQUAL, Status.EXPERTS_EQUAL, Status.DIFFERENT, Status.LOAD_FAILED)
_NO_REPORT = "no report"


def merged(reports: Sequence[Report]) -> Report:
    """The report of a slice.

    Args:
        reports: of its hosts, in any order, each with its :class:`HostPart`; a host without
            one is a load that failed.

    Raises:
        BadInput: they are not of one verification, a host is there twice, or the status of one
            is not what its content says.
        InternalError: all hosts are equal, and together they have not compared every expert.
    """
    _require_one_verification(reports)
    for report in reports:
        believed(report, f"the report of host {report.hosts[0].number}")
    first = next((report for report in reports if not report.failure), reports[0])
    reports = sorted(_with_missing(reports), key=lambda report: report.hosts[0].number)
    differences, diagnoses = _differences(reports)
    whole = msgspec.structs.replace(
        first,
        status=max((report.status for report in reports), key=_STATUSES.index),
        hosts=[part for report in reports for part in report.hosts],
        tallies=[_tally(reports, tally) for tally in first.tallies],
        parameters=[_parameters(reports, tally) for tally in first.parameters],
        differences=differences,
        diagnoses=diagnoses,
        maps=[_map(reports, part_map.part) for part_map in first.maps],
        failure=_failure(reports),
        digests=_digests([report.digests for report in reports if report.digests]),
        timings=_timings(reports),
        known_issue=_of_every_host([report.known_issue for report in reports]),
        mended_issue=_of_every_host([report.mended_issue for report in reports]),
        issue_owner=_of_every_host([report.issue_owner for report in reports]),
    )
    if whole.failure:
        return whole
    whole = _with_unchecked(whole)
    if whole.status in EQUAL:
        require_covered(whole.tallies, {tally.part for tally in whole.tallies})
    return whole


def _digests(used: Sequence[DigestsUsed]) -> DigestsUsed | None:
    """The digest file of all hosts, and what any of them had to read besides."""
    read = {name for each in used for name in each.read}
    return msgspec.structs.replace(used[0], read=sorted(read)) if used else None


def _of_every_host(words: Sequence[str]) -> str:
    """What all hosts say alike: a failure known on one of them may be another's surprise."""
    return words[0] if len(set(words)) == 1 else ""


def _with_missing(reports: Sequence[Report]) -> list[Report]:
    """The reports, and for each host without one a report that says so."""
    part = reports[0].hosts[0]
    missing = set(range(part.of)) - {report.hosts[0].number for report in reports}
    return [*reports, *(_missing(reports[0], part, number) for number in sorted(missing))]


def _missing(like: Report, part: HostPart, number: int) -> Report:
    return Report(
        checkpoint=like.checkpoint, reference=like.reference, family=like.family,
        status=Status.LOAD_FAILED, environment=like.environment,
        tallies=[Tally(part=t.part, layers=t.layers, experts=t.experts) for t in like.tallies],
        parameters=[ParameterTally(part=t.part) for t in like.parameters],
        maps=[map_of(m.part, m.layers, m.experts) for m in like.maps],
        experts_only=like.experts_only, absent=like.absent,
        failure=Failure(error=_NO_REPORT, message=f"host {number} left none", host=number),
        hosts=[
            HostPart(
                number=number, of=part.of, devices=(), status=Status.LOAD_FAILED, differences=0
            )
        ],
    )  # fmt: skip


def _with_unchecked(report: Report) -> Report:
    """``report`` of a slice, different if a device of its mesh was looked at by no host."""
    seen = {device for part in report.hosts for device in part.devices}
    unchecked = [device for device in report.environment.mesh if device not in seen]
    if not unchecked:
        return report
    found = [
        DeviceUnchecked(part=report.tallies[0].part, device_name=device) for device in unchecked
    ]
    offset = len(report.differences)
    diagnosis = Diagnosis(
        cause=Cause.UNCHECKED,
        summary=f"no host compared what {', '.join(unchecked)} holds",
        evidence=f"the mesh has {len(report.environment.mesh)} devices, the hosts address "
        f"{len(seen)} of them",
        next_step=Cause.UNCHECKED.next_step,
        first=offset,
        covers=len(found),
        members=runs_text(range(offset, offset + len(found))),
    )
    return msgspec.structs.replace(
        report,
        status=max(report.status, Status.DIFFERENT, key=_STATUSES.index),
        differences=[*report.differences, *found],
        diagnoses=[*report.diagnoses, diagnosis],
        known_issue="",
        mended_issue="",
        issue_owner="",
    )


def _require_one_verification(reports: Sequence[Report]) -> None:
    hosts = [[part.number for part in report.hosts] for report in reports]
    counts = {part.of for report in reports for part in report.hosts}
    if (
        len(counts) != 1
        or any(len(h) != 1 for h in hosts)
        or len({h[0] for h in hosts}) < len(hosts)
    ):
        raise BadInput(
            f"reports of hosts {', '.join(str(n) for h in hosts for n in h) or 'none'}",
            where="the reports to merge",
            expected="one report from each host of one slice",
            hint="the reports harness verify --hosts wrote, one on each host",
        )
    facts = {
        (
            r.checkpoint,
            r.reference,
            r.environment.stack,
            r.environment.target,
            r.experts_only,
            r.digests and r.digests.checksum,
        )
        for r in reports
    }
    if len(facts) != 1:
        raise BadInput(
            f"reports of {len(facts)} verifications",
            where="the reports to merge",
            expected="the same checkpoint, reference, stack, target and scope on every host",
            hint="; ".join(sorted(f"{fact[0]} on {fact[3]}" for fact in facts)),
        )


def _differences(reports: Sequence[Report]) -> tuple[list[Difference], list[Diagnosis]]:
    """All differences, those that several hosts tell once; and the causes, alike."""
    numbers: dict[Difference, int] = {}
    causes: dict[tuple[Cause, str], tuple[Diagnosis, set[int]]] = {}
    for report in reports:
        places = [numbers.setdefault(d, len(numbers)) for d in report.differences]
        for diagnosis in report.diagnoses:
            key = (diagnosis.cause, diagnosis.summary)
            _, members = causes.setdefault(key, (diagnosis, set()))
            members |= {places[n] for n in numbers_of(diagnosis.members)}
    return list(numbers), [_diagnosis(*cause) for cause in causes.values()]


def _diagnosis(diagnosis: Diagnosis, members: set[int]) -> Diagnosis:
    return msgspec.structs.replace(
        diagnosis, first=min(members, default=0), covers=len(members), members=runs_text(members)
    )


def _tally(reports: Sequence[Report], like: Tally) -> Tally:
    """Of one part: where experts are divided, one counts if every host compared its part."""
    tallies = [t for report in reports for t in report.tallies if t.part is like.part]
    divided = any(tally.divided for tally in tallies)
    counts = [t.experts_compared for t in tallies if t.experts_compared]  # 0: holds a copy only
    if divided and any(report.failure for report in reports):
        counts = []
    return msgspec.structs.replace(
        like,
        experts_compared=min(counts, default=0) if divided else sum(counts),
        bytes_compared=sum(tally.bytes_compared for tally in tallies),
        padding_bytes=sum(tally.padding_bytes for tally in tallies),
        divided=divided,
    )


def _parameters(reports: Sequence[Report], like: ParameterTally) -> ParameterTally:
    """Of one part: a parameter counts if every host compared its shards of it.

    A host without a tally, whose load failed, has compared none.
    """
    nothing = ParameterTally(part=like.part)
    tallies = [
        next((tally for tally in report.parameters if tally.part is like.part), nothing)
        for report in reports
    ]
    return msgspec.structs.replace(
        like,
        compared=min(tally.compared for tally in tallies),
        bytes_compared=min(tally.bytes_compared for tally in tallies),
        padding_bytes=sum(tally.padding_bytes for tally in tallies),
    )


def _map(reports: Sequence[Report], part: Part) -> PartMap:
    maps = [part_map for report in reports for part_map in report.maps if part_map.part is part]
    divided = any(t.divided for r in reports for t in r.tallies if t.part is part)
    failed = any(report.failure for report in reports)
    return merged_map(maps, every_host=divided and failed)


def _failure(reports: Sequence[Report]) -> Failure | None:
    """The failure of the host that failed first; the others' mostly follow from it.

    A host that left no report tells nothing: it stands for the whole where no other failed.
    """
    failed = [report for report in reports if report.failure]
    if not failed:
        return None
    return min(failed, key=_failed_at).failure


def _failed_at(report: Report) -> tuple[bool, float]:
    assert report.failure is not None
    return report.failure.error == _NO_REPORT, report.hosts[0].seconds


def _timings(reports: Sequence[Report]) -> Timings:
    """The slowest host's seconds, the largest host's memory, the bytes of all."""
    timings = [report.timings for report in reports]
    fields = ("setup", "load", "compare", "peak_rss", "stream")
    largest = {name: max(getattr(t, name) for t in timings) for name in fields}
    return Timings(**largest, stream_bytes=sum(t.stream_bytes for t in timings))


def merged_session(sessions: Sequence[Session]) -> Session:
    """The session of a slice: every scenario's report merged of those of its hosts.

    Raises:
        BadInput: a scenario's reports are not of one verification.
    """
    rows: dict[str, list[SessionRow]] = {}
    for session in sessions:
        for row in session.rows:
            rows.setdefault(row.scenario, []).append(row)
    return Session(
        complete=all(session.complete for session in sessions),
        unfinished=[name for session in sessions for name in session.unfinished],
        broken=[broken for session in sessions for broken in session.broken],
        began=min(session.began for session in sessions),
        rows=[_row(scenario, of_hosts) for scenario, of_hosts in rows.items()],
        skipped=list(dict.fromkeys(one for session in sessions for one in session.skipped)),
        options=sessions[0].options,
    )


def _row(scenario: str, rows: Sequence[SessionRow]) -> SessionRow:
    """One scenario: failed where it failed on a host, or where only the whole shows that.

    Hosts may fail as is known of them; a host that is missing, a device that none looked at, and
    a failure that another host does not share are known of none.
    """
    report = merged([row.report for row in rows])
    hosts = {row.report.status for row in rows}
    lonely = any(row.report.known_issue != report.known_issue for row in rows)
    surprising = lonely or report.status not in hosts or len(rows) < rows[0].report.hosts[0].of
    surprising = surprising or any(d.cause is Cause.UNCHECKED for d in report.diagnoses)
    return SessionRow(
        scenario=scenario,
        report=report,
        failed=surprising or any(row.failed for row in rows),
        why=next((row.why for row in rows if row.why), ""),
        purpose=rows[0].purpose,
    )
