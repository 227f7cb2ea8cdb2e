"""The HTML page of a session: one file, no network, every expert of every map to be looked at.

Its head answers two questions: is all well, and what is broken and whose is it. Below are the
scenarios, those that failed first. What the page shows of every matrix travels run-length encoded,
as in :mod:`harness.report.maps`; the script of the page decodes and draws it. Text from checkpoints
and from upstream is never markup: the template escapes it, and the script sets it as text.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import groupby
from typing import Any

import jinja2
import msgspec
from markupsafe import Markup
from rich.filesize import decimal

from harness.base.foreign import one_line, presentable
from harness.base.number_runs import numbers_of
from harness.compare.difference import Difference, Unequal
from harness.compare.words import device_words, reference_words, source_words
from harness.explain.causes import Diagnosis, Suspect
from harness.load.stack import HARNESS, under_test
from harness.report.figures import figures, notes
from harness.report.junit import first_line, summary_line, verdict_line
from harness.report.maps import PartMap, State, decoded, regions
from harness.report.message import failure_text
from harness.report.report import Report, Session, SessionRow, Status

#: What the page has of everything, at most; the maps and diagnoses of more scenarios than there is
#: room for are left out, and the page says so. A report of 94 layers of 128 experts takes 0.1 MB.
MOST_BYTES = 16_000_000
_SECTIONS_BYTES = 10_000_000
#: Scenarios in the list, lines that broke off or were skipped, causes in the head; and how many
#: characters each of those has.
_LISTED, _LINES, _CAUSES, _CHARACTERS = 1000, 100, 60, 400
#: Of a scenario: differences and diagnoses told one by one, and lines of regions. Maps cover all.
_TOLD, _DIAGNOSES, _REGIONS = 400, 40, 12
_STATES = (State.DIFFERS, State.MISSING, State.MISPLACED)
_STATE_WORDS = {State.DIFFERS: "different"}  # beside a count: 3 different

#: How a scenario ended, the order in which the list has them, and the signs for it.
_KINDS = {"failed": "✗", "known": "◇", "partial": "◐", "equal": "✓"}
_RESULTS = {
    Status.EQUAL: "equal",
    Status.EXPERTS_EQUAL: "experts only: equal",
    Status.DIFFERENT: "different",
    Status.LOAD_FAILED: "load failed",
}
_HEADLINES = {
    Status.EQUAL: "The device holds what the checkpoint says",
    Status.EXPERTS_EQUAL: "Experts only: equal; nothing else was compared",
    Status.DIFFERENT: "The device differs from the checkpoint",
    Status.LOAD_FAILED: "The load failed, and nothing was compared",
}
_SUSPECTS = {
    Suspect.UPSTREAM: "vllm or tpu-inference",
    Suspect.CHECKPOINT: "the checkpoint",
    Suspect.MACHINE: "storage or hardware",
    Suspect.HARNESS: "the harness",
    Suspect.UNKNOWN: "not known",
}


def page(session: Session, room: int = _SECTIONS_BYTES) -> bytes:
    """The session as one self-contained HTML file, UTF-8, of at most :data:`MOST_BYTES`.

    Args:
        session: to be shown.
        room: bytes for the maps, causes and texts of all scenarios.
    """
    session = presentable(session)
    rows = sorted(session.rows, key=lambda row: list(_KINDS).index(_kind(row)))
    listed = rows[:_LISTED]
    sections, data = _sections(listed, room)
    text = _template("report.html").render(
        session=session,
        rows=[_listed(number, row) for number, row in enumerate(listed)],
        unlisted=len(rows) - len(listed),
        sections=sections,
        headline=_headline(session),
        mood=_mood(session),
        counts=_counts(session),
        tiles=_tiles([row.report for row in rows]),
        causes=_broken_down(listed)[:_CAUSES],
        environments=_environments(session)[:_LINES],
        options=_short(" ".join(session.options)),
        broken=[
            {"test": _short(one.test), "phase": _short(one.phase), "message": _short(one.message)}
            for one in session.broken[:_LINES]
        ],
        unfinished=list(map(_short, session.unfinished[:_LINES])),
        notes=_short_lines(notes([row.report for row in session.rows], session.skipped)),
        states=[(state.value, _STATE_WORDS.get(state, state.words)) for state in State],
        data=_script_json(data),
    )
    return text.encode()


def _short(text: str) -> str:
    return one_line(text, _CHARACTERS)


def _short_lines(lines: Sequence[str]) -> list[str]:
    """As many as are shown, and how many are not."""
    more = len(lines) - _LINES
    return [*map(_short, lines[:_LINES]), *([f"{more} more in session.json"] if more > 0 else [])]


@cache
def _template(name: str) -> jinja2.Template:
    loader = jinja2.PackageLoader("harness.report")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(name)


def _script_json(data: Any) -> Markup:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


# --- The head: is all well, and what is broken


def _kind(row: SessionRow) -> str:
    """Which of :data:`_KINDS` a row is of."""
    if row.failed:
        return "failed"
    return {Status.EQUAL: "equal", Status.EXPERTS_EQUAL: "partial"}.get(row.report.status, "known")


def _mood(session: Session) -> str:
    """``good``, ``bad``, or ``some`` where all is well as far as anybody looked."""
    if session.broken or session.unfinished or not session.rows:
        return "bad"
    kinds = {_kind(row) for row in session.rows}
    return "bad" if "failed" in kinds else "some" if "partial" in kinds else "good"


def _headline(session: Session) -> str:
    """How the session ended, as its one scenario did where it has no more."""
    alone = len(session.rows) == 1 and not (session.broken or session.unfinished or session.skipped)
    if alone:
        (row,) = session.rows
        odd = row.failed and row.report.status is Status.EQUAL
        if not odd:
            return _HEADLINES[row.report.status] + (", as known" if _kind(row) == "known" else "")
    if not session.rows and not session.broken and not session.unfinished:
        return "No scenario ran"
    line = verdict_line(session)
    return line[:1].upper() + line[1:]


def _counts(session: Session) -> list[tuple[str, str, str]]:
    """For each way to end: its kind, its sign, and how many did."""
    words = {
        "failed": "failed", "known": "failed as known", "partial": "experts only", "equal": "equal",
    }  # fmt: skip
    found = Counter(_kind(row) for row in session.rows)
    return [(k, sign, f"{found[k]} {words[k]}") for k, sign in _KINDS.items() if found[k]]


def _tiles(reports: Sequence[Report]) -> list[tuple[str, str]]:
    """The figures of all scenarios together."""
    differences = sum(len(report.differences) for report in reports)
    experts = sum(report.experts_compared for report in reports)
    others = sum(report.parameters_compared for report in reports)
    return [
        (f"{experts:,}".replace(",", "\u202f"), "experts compared"),
        (f"{others:,}".replace(",", "\u202f"), "other parameters"),
        (decimal(sum(report.all_bytes_compared for report in reports)), "compared"),
        (f"{differences:,}".replace(",", "\u202f"), "differences"),
    ]


def _broken_down(rows: Sequence[SessionRow]) -> list[dict[str, Any]]:
    """What is broken in all scenarios: a line for each cause and whoever it belongs to."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for number, row in enumerate(rows):
        for owner, cause, summary, where, covers in _troubles(row):
            known = row.report.known_issue
            line = found.setdefault(
                (owner, cause, known),
                {"owner": _short(owner), "cause": cause, "known": _short(known),
                 "summary": _short(summary), "rows": [], "failed": row.failed, "differences": 0,
                 "first": f"s{number}{where}", "scenario": _short(row.scenario)},
            )  # fmt: skip
            line["differences"] += covers
            if number not in line["rows"][-1:]:
                line["rows"].append(number)
    return list(found.values())  # the rows that failed come first


def _troubles(row: SessionRow) -> Iterator[tuple[str, str, str, str, int]]:
    """Whose, the cause, a sentence, its place on the page and how many differences, for each."""
    report = row.report
    for diagnosis in report.diagnoses:
        yield (
            _owner(report, diagnosis), str(diagnosis.cause), diagnosis.summary,
            _place(report, diagnosis), diagnosis.covers,
        )  # fmt: skip
    if row.failed and report.status is Status.EQUAL:
        yield "the harness", "out-of-date", first_line(row.why), "", 0
    elif not report.diagnoses and (row.failed or report.failure):
        yield _owner(report, None), str(report.status), summary_line(row), "", 0


def _owner(report: Report, diagnosis: Diagnosis | None) -> str:
    """Whose it is to mend: as the known issue has it, or as far as the cause tells."""
    if report.issue_owner:
        return report.issue_owner
    suspect = diagnosis.cause.suspect if diagnosis else Suspect.UPSTREAM
    return _SUSPECTS[suspect]


def _place(report: Report, diagnosis: Diagnosis) -> str:
    """The first expert of a diagnosis, as the page's links have it; empty where it is no expert."""
    if report.failure or diagnosis.first >= len(report.differences):
        return ""
    return _link(report.differences[diagnosis.first])


def _link(difference: Difference) -> str:
    key = difference.key
    return f"/{key[0]}/{key[1]}/{key[2]}/{key[3]}" if key else ""


def _environments(session: Session) -> list[dict[str, str]]:
    """Every stack of the session, with its versions."""
    found = {}
    for row in session.rows:
        environment = row.report.environment
        tested = under_test(environment.versions)
        versions = [f"{name} {number}" for name, number in tested.items() if name != HARNESS]
        words = [f"Python {environment.python}", *versions, environment.overlay]
        found[environment.stack, environment.overlay] = {
            "stack": _short(environment.stack),
            "versions": one_line(", ".join(filter(None, words))),
            "entry": _short(environment.entry), "target": _short(environment.target),
            "harness": _short(environment.versions.get(HARNESS, "")),
        }  # fmt: skip
    return list(found.values())


# --- The scenarios


def _listed(number: int, row: SessionRow) -> dict[str, Any]:
    """A line of the list."""
    result = _RESULTS[row.report.status]
    if row.failed and row.report.status is Status.EQUAL:
        result = "equal, but a known failure was due"
    elif row.report.known_issue and not row.failed:
        result += ", as known"
    kind = _kind(row)
    return {
        "number": number, "scenario": _short(row.scenario), "kind": kind, "sign": _KINDS[kind],
        "result": result,
        "causes": sorted({cause for _, cause, *_ in _troubles(row)}),
    }  # fmt: skip


def _sections(rows: Sequence[SessionRow], room: int) -> tuple[list[Markup], list[Any]]:
    """The HTML of each scenario and what the script draws of it, as far as there is room."""
    sections: list[Markup] = []
    data: list[Any] = []
    for number, row in enumerate(rows):
        section = _section(number, row)
        drawn: dict[str, Any] | None = _data(row.report)
        size = len(section.encode()) + len(_script_json(drawn).encode())
        if size > room:
            section, drawn = _section(number, row, whole=False), None
        else:
            room -= size
        sections.append(section)
        data.append(drawn)
    return sections, data


def _section(number: int, row: SessionRow, *, whole: bool = True) -> Markup:
    """A scenario; of one there is no room for, its name and how it ended."""
    report, shown = row.report, _listed(number, row) | {"whole": whole}
    if whole:
        told = report.diagnoses[:_DIAGNOSES]
        shown |= {
            "report": report,
            "why": summary_line(row) if row.failed or report.status is not Status.EQUAL else "",
            "purpose": row.purpose,
            "figures": figures(report),
            "text": failure_text(report, row.purpose) or (row.why if row.failed else ""),
            "phases": _phases(report),
            "regions": list(_regions(number, report)),
            "diagnoses": [_told_diagnosis(number, report, d) for d in told],
            "more": len(report.diagnoses) - len(told),
        }
    return Markup(_template("scenario.html").render(row=shown))


def _told_diagnosis(number: int, report: Report, diagnosis: Diagnosis) -> dict[str, Any]:
    place = _place(report, diagnosis)
    first = None if report.failure else report.differences[diagnosis.first]
    where = "{} layer {} expert {} {}".format(*place[1:].split("/")) if place else ""
    told = {
        "cause": str(diagnosis.cause), "owner": _owner(report, diagnosis),
        "summary": diagnosis.summary, "evidence": diagnosis.evidence, "next": diagnosis.next_step,
        "covers": diagnosis.covers, "link": f"#s{number}{place}" if place else "",
        "place": where, "first": None,
    }  # fmt: skip
    if first is not None:
        told["first"] = {
            "parameter": first.parameter, "on": first.device_name,
            "reference": reference_words(first), "source": source_words(first),
            "device": device_words(first),
        }  # fmt: skip
    return told


def _regions(number: int, report: Report) -> Iterator[dict[str, str]]:
    """Where the maps have something, in words, each with a link to the first cell it means."""
    for part_map in report.maps:
        for state in _STATES:
            found = regions(part_map, state) if part_map.count(state) else []
            for region in found[:_REGIONS]:
                where = f"{part_map.part}/{region.layer}/{region.expert}/{region.projection}"
                yield {"link": f"#s{number}/{where}", "text": str(region),
                       "head": f"{part_map.part} {state.words}"}  # fmt: skip
            if len(found) > _REGIONS:
                more = f"{len(found) - _REGIONS} more rows"
                yield {"link": "", "text": more, "head": f"{part_map.part} {state.words}"}


def _phases(report: Report) -> list[tuple[str, float]]:
    """Seconds of each phase; streaming is a part of the load."""
    timings = report.timings
    stream = min(timings.stream, timings.load)
    return [
        ("set-up", timings.setup), ("stream", stream), ("process", timings.load - stream),
        ("compare", timings.compare),
    ]  # fmt: skip


# --- What the script draws from


def _data(report: Report) -> dict[str, Any]:
    told = report.diagnoses[:_TOLD]
    return {
        "maps": [_map(report, part_map) for part_map in report.maps],
        "diagnoses": [
            {"cause": d.cause, "summary": d.summary, "evidence": d.evidence, "next": d.next_step,
             "owner": _owner(report, d)}
            for d in told
        ],
        "differences": list(_told(report)),
        "calls": [msgspec.to_builtins(calls) for calls in report.calls[:_TOLD]],
        "failed": report.failure is not None,
    }  # fmt: skip


def _told(report: Report) -> Iterator[dict[str, Any]]:
    """The first differences of experts, one by one."""
    keyed = (d for d in report.differences if d.key is not None)
    for difference, _ in zip(keyed, range(_TOLD), strict=False):
        yield {
            "part": difference.part, "layer": difference.layer, "expert": difference.expert,
            "projection": difference.projection, "kind": difference.kind,
            "reference": reference_words(difference), "device": device_words(difference),
            "source": source_words(difference), "on": difference.device_name,
            **_unequal(difference),
        }  # fmt: skip


def _unequal(difference: Difference) -> dict[str, Any]:
    if not isinstance(difference, Unequal):
        return {}
    return {"index": difference.index, "count": difference.count, "total": difference.total}


def _map(report: Report, part_map: PartMap) -> dict[str, Any]:
    return {
        "part": part_map.part, "layers": part_map.layers, "experts": part_map.experts,
        "states": part_map.states, "causes": _causes(report, part_map),
    }  # fmt: skip


def _causes(report: Report, part_map: PartMap) -> dict[str, list[list[int]]]:
    """By projection, for each layer, the diagnosis of each expert: runs of length and number.

    -1 where there is none, or where a whole array is meant and not one expert. What never arrived
    in a load that failed has the first one, which says so.
    """
    if report.failure and report.diagnoses:
        return {
            p: [_runs([0 if s is State.MISSING else -1 for s in decoded(row)]) for row in rows]
            for p, rows in part_map.states.items()
        }
    place = {layer: row for row, layer in enumerate(part_map.layers)}
    cells = {p: [[-1] * part_map.experts for _ in place] for p in part_map.states}
    for number, diagnosis in enumerate(report.diagnoses[:_TOLD]):
        for member in numbers_of(diagnosis.members):
            difference = report.differences[member]
            if difference.key is not None and difference.part is part_map.part:
                _, layer, expert, projection = difference.key
                # What the reference has not, an extra expert or layer, is on no map.
                if layer in place and expert in range(part_map.experts) and projection in cells:
                    cells[projection][place[layer]][expert] = number
    return {p: [_runs(row) for row in rows] for p, rows in cells.items()}


def _runs(row: Iterable[int]) -> list[int]:
    return [n for number, run in groupby(row) for n in (len(list(run)), number)]
