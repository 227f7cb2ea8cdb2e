"""The closing table, for terminals and for CI logs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TextIO

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from harness.report import Report, Status

_WIDTH_OF_LOGS = 180  # columns: a row of the longest scenario on the longest target does not wrap

#: How each status is shown, and in which colour.
_STATUS = {
    Status.EQUAL: ("equal", "green"),
    Status.DIFFERENT: ("DIFFERENT", "red"),
    Status.LOAD_FAILED: ("LOAD FAILED", "red"),
}


def closing_table(rows: Sequence[tuple[str, Report]], file: TextIO | None = None) -> None:
    """Print one line a scenario, and the sums.

    Args:
        rows: scenario ids and their reports.
        file: where to print, standard output by default. Colours only on a terminal, and none
            where NO_COLOR is set.
    """
    console = Console(file=file, highlight=False)
    if not console.is_terminal:
        console = Console(file=file, highlight=False, width=_WIDTH_OF_LOGS)
    console.print(_table(rows))


def _table(rows: Sequence[tuple[str, Report]]) -> Table:
    stacks = sorted({_stack(report) for _, report in rows})
    table = Table(
        title="; ".join(stacks),
        title_justify="left",
        title_style="bold",
        show_footer=True,
    )
    compared = sum(report.experts_compared for _, report in rows)
    differences = sum(len(report.differences) for _, report in rows)
    table.add_column(
        "scenario", f"{len(rows)} scenario{'' if len(rows) == 1 else 's'}", no_wrap=True
    )
    table.add_column("target")
    table.add_column("experts compared", str(compared), no_wrap=True, justify="right")
    parameters = sum(report.parameters_compared for _, report in rows)
    table.add_column("parameters", str(parameters), no_wrap=True, justify="right")
    table.add_column("bytes compared", decimal(_bytes(rows)), no_wrap=True, justify="right")
    table.add_column("differences", str(differences), justify="right")
    table.add_column("load", _seconds(r.timings.load for _, r in rows), justify="right")
    table.add_column("compare", _seconds(r.timings.compare for _, r in rows), justify="right")
    table.add_column("result", no_wrap=True)
    for name, report in rows:
        status, colour = _STATUS[report.status]
        total = sum(tally.experts for tally in report.tallies)
        left = sum(tally.left_out for tally in report.tallies)
        table.add_row(
            name,
            report.environment.target,
            f"{report.experts_compared}/{total}" + (f", {left} left out" if left else ""),
            _parameters(report),
            decimal(report.all_bytes_compared),
            str(len(report.differences)),
            _seconds([report.timings.load]),
            _seconds([report.timings.compare]),
            f"[{colour}]{status}" + (", as known" if report.known_issue else ""),
        )
    return table


def _parameters(report: Report) -> str:
    """How many parameters besides experts were compared, of how many."""
    total = sum(tally.parameters for tally in report.parameters)
    left = sum(tally.left_out for tally in report.parameters)
    return f"{report.parameters_compared}/{total}" + (f", {left} left out" if left else "")


def _seconds(values: Iterable[float]) -> str:
    return f"{sum(values):.1f} s"


def _bytes(rows: Sequence[tuple[str, Report]]) -> int:
    return sum(report.all_bytes_compared for _, report in rows)


def _stack(report: Report) -> str:
    versions = report.environment.versions
    stack = f"vLLM {versions.get('vllm', '?')} + tpu-inference {versions.get('tpu-inference', '?')}"
    overlay = report.environment.overlay
    return f"{stack} under {overlay}" if overlay else stack
