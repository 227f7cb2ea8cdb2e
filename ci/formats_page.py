"""Writes the table of docs/formats.md: what every format's rows came to, on each release.

``.venv/bin/python -m ci.formats_page DIR`` reads every ``session.json`` below ``DIR``, as
``pytest scenarios/test_formats.py --reports=DIR/<any>`` leaves it; later files of a release add to
earlier ones. A row that no session has is written as not run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from harness.base.errors import HarnessError
from harness.base.writing import write
from harness.families.formats.known_formats import formats
from harness.report.known_issue import judge, note
from harness.report.renderings import session_from
from harness.report.report import Report, Status
from scenarios.formats import FORMAT_ROWS, SPREADS, recipe_of
from scenarios.known_issues_formats import FORMAT_ISSUES

ROOT = Path(__file__).resolve().parent.parent
PAGE = Path("docs/formats.md")
BEGIN, END = "<!-- formats: written by ci/formats_page.py -->", "<!-- end of formats -->"
#: The releases the table has, by what their versions begin with.
RELEASES = ("0.26", "0.32")
NOT_RUN = "not run"
_WORDS = {Status.EQUAL: "equal", Status.DIFFERENT: "**different**"}

Runs = Mapping[tuple[str, str], Report]


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Read the sessions that ``arguments`` name, and write the table of ``root``'s page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="holds sessions, at any depth")
    directory: Path = parser.parse_args(arguments).directory
    try:
        runs = runs_of(sorted(directory.rglob("session.json")))
    except HarnessError as error:
        print(f"formats_page: {error}", file=sys.stderr)
        return error.exit_code
    text = (root / PAGE).read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    whole = f"{before}{BEGIN}\n{table(runs)}{END}{rest.split(END)[1]}"
    write(root / PAGE, whole.encode())
    return 0


def runs_of(files: Iterable[Path]) -> Runs:
    """The reports of all sessions, by release and row; which issue is known of each is judged."""
    loads = {row.id: row.load() for row in FORMAT_ROWS}
    found: dict[tuple[str, str], Report] = {}
    for file in files:
        for row in session_from(file).rows:
            release = row.report.environment.versions.get("vllm", "").rpartition(".")[0]
            if release in RELEASES and row.scenario in loads:
                note(row.report, judge(row.report, loads[row.scenario], FORMAT_ISSUES))
                found[release, row.scenario] = row.report
    return found


def table(runs: Runs) -> str:
    """A row for each format and way, a column for each release and spread."""
    ends = list(SPREADS)
    names = [SPREADS[end].column for end in ends]
    head = ["format", "family", *(f"{r}, {name}" for r in RELEASES for name in names)]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for name, each in formats().items():
        for option in ("", "-unchanged") if each.can_be_kept else ("",):
            cells = [_cell(runs.get((r, f"{name}{option}{end}"))) for r in RELEASES for end in ends]
            said = f"`{name}`" + (", kept" if option else "")
            lines.append(f"| {' | '.join([said, recipe_of(name), *cells])} |")
    return "\n".join(lines) + "\n"


def _cell(report: Report | None) -> str:
    if report is None:
        return NOT_RUN
    if report.known_issue:
        return f"`{report.known_issue}`"
    return _WORDS.get(report.status, f"**{report.status}**")


if __name__ == "__main__":
    sys.exit(main())
