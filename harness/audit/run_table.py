"""A run-time audit as a table, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from harness.audit.run import BROKEN, Outcome, RunRow
from harness.base.foreign import presentable
from harness.base.writing import indented

_WIDTH_OF_LOGS = 160
_COLUMNS = ("calls", "expert calls", "by keyword", "positional", "layers complete")


def run_text(rows: Sequence[RunRow]) -> str:
    """One line a model: architecture, calls, verdict; then where or why, where there is a why."""
    rows = [presentable(row) for row in rows]
    console = Console(width=_WIDTH_OF_LOGS, highlight=False, force_terminal=False)
    with console.capture() as capture:
        console.print(_table(rows))
    whys = [f"{row.model}: {row.outcome}: {row.why}" for row in rows if row.why]
    return "\n".join([capture.get(), *whys, _sum(rows), ""])


def run_json(rows: Sequence[RunRow]) -> bytes:
    """The rows as indented JSON."""
    return indented([presentable(row) for row in rows])


def run_exit_code(rows: Sequence[RunRow]) -> int:
    """1 where a call hid an id, else 0."""
    return int(any(row.outcome in BROKEN for row in rows))


def _table(rows: Sequence[RunRow]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("model", no_wrap=True)
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    table.add_column("verdict", no_wrap=True)
    for row in rows:
        counts = (row.recording.calls, row.expert_calls, row.by_keyword, row.positional)
        complete = f"{row.recording.complete}/{row.recording.layers}"
        table.add_row(row.model, *map(str, counts), complete, row.outcome)
    return table


def _sum(rows: Sequence[RunRow]) -> str:
    counts = {o: sum(row.outcome is o for row in rows) for o in Outcome}
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
