"""The HTML page of a session: one file, no network, every map of experts to be looked at.

What the page shows of every matrix travels run-length encoded, as in :mod:`harness.report.maps`;
the script of the page decodes and draws it. Text from checkpoints and from upstream is never
markup: the template escapes it, and the script sets it as text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from typing import Any

import jinja2
import msgspec

from harness.base.foreign import presentable
from harness.base.number_runs import numbers_of
from harness.compare.difference import Difference, Unequal
from harness.compare.words import device_words, reference_words, source_words
from harness.load.stack import under_test
from harness.report.figures import figures, notes
from harness.report.junit import summary_line, verdict_line
from harness.report.maps import PartMap, State, decoded, regions
from harness.report.message import failure_text
from harness.report.report import Report, Session, SessionRow, Status

#: Differences of a scenario the page tells one by one; maps and diagnoses cover all of them.
_TOLD = 400
_STATES = (State.DIFFERS, State.MISSING, State.MISPLACED)


def page(session: Session) -> bytes:
    """The session as one self-contained HTML file, UTF-8."""
    session = presentable(session)
    rows = [_shown(row) for row in session.rows]
    text = _template().render(
        title="MoE load verification",
        session=session,
        rows=rows,
        verdict=verdict_line(session),
        environments=_environments(session),
        notes=notes([row.report for row in session.rows], session.skipped),
        data=_script_json([row["data"] for row in rows]),
    )
    return text.encode()


@cache
def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("harness.report")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("report.html")


def _script_json(data: Any) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _environments(session: Session) -> list[dict[str, str]]:
    """Every stack of the session, with its versions."""
    found = {}
    for row in session.rows:
        environment = row.report.environment
        versions = [f"{name} {number}" for name, number in under_test(environment.versions).items()]
        words = [f"Python {environment.python}", *versions, environment.overlay]
        found[environment.stack, environment.overlay] = {
            "stack": environment.stack, "versions": ", ".join(filter(None, words)),
            "entry": environment.entry,
        }  # fmt: skip
    return list(found.values())


def _shown(row: SessionRow) -> dict[str, Any]:
    """A row as the template has it; ``data`` is what the script draws from."""
    report = row.report
    result = "failed" if report.status is Status.LOAD_FAILED else str(report.status)
    return {
        "scenario": row.scenario,
        "report": report,
        "failed": row.failed,
        "result": result,
        "why": summary_line(row) if row.failed or report.status is not Status.EQUAL else "",
        "purpose": row.purpose,
        "figures": figures(report),
        "text": failure_text(report, row.purpose) or (row.why if row.failed else ""),
        "phases": _phases(report),
        "patterns": [(m.part, state.words, regions(m, state)) for m in report.maps
                     for state in _STATES if m.count(state)],
        "data": _data(report),
    }  # fmt: skip


def _phases(report: Report) -> list[tuple[str, float]]:
    """Seconds of each phase; streaming is a part of the load."""
    timings = report.timings
    stream = min(timings.stream, timings.load)
    return [
        ("set-up", timings.setup), ("stream", stream), ("process", timings.load - stream),
        ("compare", timings.compare),
    ]  # fmt: skip


def _data(report: Report) -> dict[str, Any]:
    return {
        "maps": [_map(report, part_map) for part_map in report.maps],
        "diagnoses": [
            {"cause": d.cause, "summary": d.summary, "evidence": d.evidence, "next": d.next_step,
             "covers": d.covers}
            for d in report.diagnoses
        ],
        "differences": list(_told(report)),
        "calls": [msgspec.to_builtins(calls) for calls in report.calls],
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
    for number, diagnosis in enumerate(report.diagnoses):
        for member in numbers_of(diagnosis.members):
            difference = report.differences[member]
            if difference.key is not None and difference.part is part_map.part:
                _, layer, expert, projection = difference.key
                # What the reference has not, an extra expert or layer, is on no map.
                if layer in place and expert in range(part_map.experts) and projection in cells:
                    cells[projection][place[layer]][expert] = number
    return {p: [_runs(row) for row in rows] for p, rows in cells.items()}


def _runs(row: list[int]) -> list[int]:
    return [n for number, run in groupby(row) for n in (len(list(run)), number)]
