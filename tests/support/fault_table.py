"""The fault table as a document: written by a run, read by the next one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.base.writing import write
from harness.report.report import Status
from tests.support.fault_catalogue import FAULTS
from tests.support.fault_classes import ELSEWHERE
from tests.support.faults import Fault

_BEGIN, _END = "<!-- table: written by tests/on_stack/test_faults.py -->", "<!-- end of table -->"
NOT_APPLICABLE = "n/a"
_MISSED = "**not detected**"
_WRONG = " (**wrong**)"


def is_right(fault: Fault, status: Status, causes: Sequence[str]) -> bool:
    """Whether the fault was detected and given its own diagnosis and no other."""
    if not fault.causes:
        return status is Status.EQUAL
    return status is not Status.EQUAL and bool(causes) and set(causes) <= set(fault.causes)


def cell(fault: Fault, status: Status, causes: Sequence[str]) -> str:
    """What the table says of one case."""
    if status is Status.EQUAL:
        return _MISSED if fault.causes else "equal, as it should be"
    how = "" if status is Status.DIFFERENT else "load fails: "
    return f"{how}{', '.join(causes)}" + ("" if is_right(fault, status, causes) else _WRONG)


def write_table(path: Path, seen: Mapping[tuple[str, str], str], families: Sequence[str]) -> None:
    """Put the table, and its figures, between the marks of the document at ``path``."""
    before, rest = path.read_text().split(_BEGIN)
    after = rest.split(_END)[1]
    lines = [_figures(list(seen.values())), "", _row("class", "fault", *families)]
    lines.append(_row(*["---"] * (2 + len(families))))
    for fault in FAULTS:
        cells = [seen.get((fault.name, family), NOT_APPLICABLE) for family in families]
        lines.append(_row(fault.catalogued, fault.name, *cells))
    lines += ["", _row("class", "not planted here, because"), _row("---", "---")]
    lines += [_row(name, why) for name, why in ELSEWHERE.items()]
    write(path, ("\n".join([before.rstrip(), "", _BEGIN, *lines, _END]) + after).encode())


def read_table(path: Path) -> dict[tuple[str, str], str]:
    """The cells of the table in the document, by fault and family."""
    table = path.read_text().split(_BEGIN)[1].split(_END)[0]
    rows = [_cells(line) for line in table.splitlines() if line.startswith("|")]
    _, _, *families = rows[0]
    names = {fault.name for fault in FAULTS}
    return {
        (row[1], family): text
        for row in rows
        if len(row) == len(rows[0]) and row[1] in names
        for family, text in zip(families, row[2:], strict=True)
    }


def _figures(cells: list[str]) -> str:
    harmful = [text for text in cells if not text.startswith("equal")]
    missed = sum(text == _MISSED for text in harmful)
    wrong = sum(text.endswith(_WRONG) for text in harmful)
    return (
        f"{len(harmful)} faults planted: {len(harmful) - missed} detected, "
        f"{len(harmful) - missed - wrong} diagnosed correctly, {wrong} otherwise; "
        f"{len(cells) - len(harmful)} changes without harm, all equal."
    )


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(line: str) -> list[str]:
    return [text.strip() for text in line.strip("|\n").split(" | ")]
