"""The closing table, for terminals and for CI logs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.base.foreign import one_line
from harness.report.figures import counted, figures, issue, notes, sums
from harness.report.report import Report, Skipped, Status

_WIDTH_OF_LOGS = 250  # columns: the longest scenario, target and known issue do not wrap

#: How each status is shown, and in which colour.
_STATUS = {
    Status.EQUAL: ("equal", "green"),
    Status.EXPERTS_EQUAL: ("experts only: equal", "yellow"),
    Status.DIFFERENT: ("DIFFERENT", "red"),
    Status.LOAD_FAILED: ("LOAD FAILED", "red"),
}


def closing_table(
    rows: Sequence[tuple[str, Report]],
    file: TextIO | None = None,
    skipped: Iterable[Skipped] = (),
) -> None:
    """Print one line a scenario, and the sums; then what there is to note of all of them.

    Args:
        rows: scenario ids and their reports.
        file: where to print, standard output by default. Colours only on a terminal, and none
            where NO_COLOR is set.
        skipped: the scenarios that did not run; one line for each reason.
    """
    console = Console(file=file, highlight=False)
    if not console.is_terminal:
        console = Console(file=file, highlight=False, width=_WIDTH_OF_LOGS)
    if rows:
        console.print(_table(rows))
    for line in notes([report for _, report in rows], skipped):
        console.print(escape(one_line(line)), soft_wrap=True)


def _table(rows: Sequence[tuple[str, Report]]) -> Table:
    reports = [report for _, report in rows]
    table = Table(
        title=escape(one_line("; ".join(sorted({_stack(report) for report in reports})))),
        title_justify="left",
        title_style="bold",
        show_footer=True,
    )
    table.add_column("scenario", counted(len(rows), "scenario"), no_wrap=True)
    table.add_column("target")
    for name, total in sums(reports).items():
        table.add_column(name, total, no_wrap=True, justify="right")
    table.add_column("result", no_wrap=True)
    with_issues = any(issue(report) for report in reports)
    if with_issues:
        table.add_column("known issue", no_wrap=True)
    for name, report in rows:
        cells = [name, report.environment.target, *figures(report).values()]
        cells = [*map(_cell, cells), _result(report)]
        table.add_row(*cells, *([_cell(issue(report))] if with_issues else []))
    return table


def _cell(text: str) -> str:
    return escape(one_line(text, _WIDTH_OF_LOGS))


def _result(report: Report) -> str:
    status, colour = _STATUS[report.status]
    return f"[{colour}]{status}"


def _stack(report: Report) -> str:
    versions = report.environment.versions
    stack = f"vLLM {versions.get('vllm', '?')} + tpu-inference {versions.get('tpu-inference', '?')}"
    overlay = report.environment.overlay
    return f"{stack} under {overlay}" if overlay else stack
