"""The Markdown summary of a session, for ``GITHUB_STEP_SUMMARY`` and a Buildkite annotation.

Whatever comes from a checkpoint or from upstream's errors is text, never markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from harness.base.foreign import one_line, presentable
from harness.report.figures import counted, figures, notes, sums
from harness.report.junit import summary_line, verdict_line
from harness.report.message import WHOLE_REPORT, failure_text
from harness.report.report import Report, Session, SessionRow, Status

#: GitHub takes 1 MiB a step, Buildkite an annotation of 1 MiB; a failure's text is cut long before.
_FAILURE_CHARACTERS = 6000
_CELL_CHARACTERS = 1000
_SHOWN_FAILURES = 30

_RESULT = {
    Status.EQUAL: "✅ equal",
    Status.EXPERTS_EQUAL: "⚠️ experts only: equal",
    Status.DIFFERENT: "❌ different",
    Status.LOAD_FAILED: "❌ load failed",
}


def markdown(session: Session) -> str:
    """The session as Markdown: the verdict, a table, and what failed, folded."""
    session = presentable(session)
    parts = [*_head(session), *_table(session), "", *_below(session), *_failures(session)]
    return "\n".join(parts) + "\n"


def _head(session: Session) -> Iterator[str]:
    yield f"### MoE load verification: {verdict_line(session)}"
    yield ""
    for row in session.rows:
        if is_new(row):
            yield f"- ❌ **new** {cell(row.scenario)}: {cell(summary_line(row))}"
    for row in session.rows:
        if row.failed and _equal(row):
            yield f"- ❌ **fixed upstream** {cell(row.scenario)}: {cell(summary_line(row))}"
    for broken in session.broken:
        yield f"- ❌ {cell(broken.test)}, {cell(broken.phase)}: {cell(broken.message)}"
    for name in session.unfinished:
        yield f"- ⚠️ begun and not ended: {cell(name)}"
    reports = [row.report for row in session.rows]
    stacks = sorted({f"{r.environment.stack} on {r.environment.target}" for r in reports})
    options = f" with {' '.join(session.options)}" if session.options else ""
    yield f"Stack {cell('; '.join(stacks) + options)}"
    yield ""


def is_new(row: SessionRow) -> bool:
    """Whether a scenario failed in a way that no known issue describes."""
    return row.failed and not _equal(row) and not row.report.known_issue


def _table(session: Session) -> Iterator[str]:
    columns = list(sums([]))
    yield f"| scenario | {' | '.join(columns)} | result |"
    yield f"|:--|{'--:|' * len(columns)}:--|"
    for row in session.rows:
        report = row.report
        known = f", as known: {report.known_issue}" if report.known_issue else ""
        known += f", mended: {report.mended_issue}" if report.mended_issue else ""
        cells = [
            row.scenario,
            *figures(report).values(),
            _RESULT[report.status] + known + _out_of_date(row),
        ]
        yield f"| {' | '.join(map(cell, cells))} |"


def _below(session: Session) -> Iterator[str]:
    """The notes, one line each."""
    lines = notes([row.report for row in session.rows], session.skipped)
    yield from (f"- {cell(line)}" for line in lines)
    yield from [""] if lines else []


def _out_of_date(row: SessionRow) -> str:
    return (
        ", ❌ fixed upstream: its known issue did not happen" if row.failed and _equal(row) else ""
    )


def _equal(row: SessionRow) -> bool:
    return row.report.status is Status.EQUAL


def _failures(session: Session) -> Iterator[str]:
    failed = [row for row in session.rows if row.failed or not _equal(row)]
    failed.sort(key=lambda row: (not is_new(row), not row.failed))
    for row in failed[:_SHOWN_FAILURES]:
        yield from _failure(row, row.report)
    if len(failed) > _SHOWN_FAILURES:
        more = counted(len(failed) - _SHOWN_FAILURES, "more failure")
        yield f"{more}: {WHOLE_REPORT} has all."


def _failure(row: SessionRow, report: Report) -> Iterator[str]:
    text = failure_text(report, row.purpose) or row.why
    if len(text) > _FAILURE_CHARACTERS:
        text = text[:_FAILURE_CHARACTERS] + f"\n… {WHOLE_REPORT} has the rest"
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    yield f"<details><summary><b>{cell(row.scenario)}</b>: {cell(summary_line(row))}</summary>"
    yield from ("", f"{fence}text", text, fence, "", "</details>", "")


def cell(text: str) -> str:
    """Text for a table's cell or a summary: no markup, one line."""
    text = one_line(" ".join(text.split()), _CELL_CHARACTERS)
    return re.sub(r"[&<>|`*_\[\]\\@~$]", lambda found: f"&#{ord(found[0])};", text)
