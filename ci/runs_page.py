"""Writes what ``make verify FAMILIES=all`` found on every stack: docs/runs.md, docs/families.md,
the README's small tables, and ``harness/families/loads.json``, which ``harness families`` shows.

``.venv/bin/python -m ci.runs_page DIR`` reads ``DIR/<column>/session.json``, a folder for each of
:data:`COLUMNS`, as ``pytest --reports=DIR/<column>`` leaves it. Nothing is written unless every
column's session is whole and of the stack and target its folder says.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from harness.base.errors import BadInput, HarnessError
from harness.base.writing import indented, write
from harness.families import overview
from harness.families.known_families import recipes
from harness.families.overview import Ending, Loads, LoadsOn, Releases, Result, families_table
from harness.load.target import Parallelism
from harness.report.known_issue import Nature, judge, note
from harness.report.renderings import session_from
from harness.report.report import Report, Session, Status
from scenarios.catalogue import PLAIN, SCENARIOS
from scenarios.known_issues import KNOWN_ISSUES

ROOT = Path(__file__).resolve().parent.parent
#: What is written, in a checkout.
RUNS, README, FAMILIES = Path("docs/runs.md"), Path("README.md"), Path("docs/families.md")
LOADS = overview.LOADS.relative_to(ROOT)
BEGIN, END = "<!-- runs: written by ci/runs_page.py -->", "<!-- end of runs -->"
SUMS, END_OF_SUMS = "<!-- sums: written by ci/runs_page.py -->", "<!-- end of sums -->"

#: By folder and column: the options of ``make verify``, the stack and the target.
COLUMNS: dict[str, tuple[str, str, str]] = {
    "0.21": ("STACK=0.21 FAMILIES=all", "0.21", "emulated"),
    "0.22": ("STACK=0.22 FAMILIES=all", "0.22", "emulated"),
    "0.26": ("STACK=0.26 FAMILIES=all", "0.26", "emulated"),
    "0.32": ("STACK=0.32 FAMILIES=all", "0.32", "emulated"),
    "torch-xla": ("STACK=0.26 TARGET=torch-xla FAMILIES=all", "0.26", "torch-xla"),
}
NOT_RUN = "not run"


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Read the runs that ``arguments`` name, and write the pages of the checkout at ``root``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="holds a folder for each column")
    directory: Path = parser.parse_args(arguments).directory
    try:
        runs = {column: run_of(column, directory / column) for column in COLUMNS}
    except HarnessError as error:
        print(f"runs_page: {error}", file=sys.stderr)
        return error.exit_code
    loads = loads_of(runs)
    write(root / LOADS, indented(loads))
    put(root / RUNS, summary(runs), f"{SUMS}\n", f"\n{END_OF_SUMS}")
    put(root / RUNS, detail(runs))
    put(root / README, at_a_glance(loads))
    put(root / FAMILIES, families_table(loads), overview.BEGIN, overview.END)
    return 0


def run_of(column: str, folder: Path) -> dict[str, Report]:
    """The reports of a column, by scenario; which issue is known of each is judged anew.

    Raises:
        BadInput: the session is broken off, of another stack or target, or lacks a scenario.
    """
    session = session_from(folder / "session.json")
    reports = {row.scenario: row.report for row in session.rows}
    if fault := fault_of(column, session, reports):
        options = COLUMNS[column][0]
        raise BadInput(
            fault,
            where=str(folder / "session.json"),
            expected=f"a whole run of make verify {options}",
            hint=f"PYTEST_ADDOPTS=--reports={folder} make verify {options}",
        )
    for scenario in SCENARIOS:
        if report := reports.get(scenario.id):
            note(report, judge(report, scenario.load(), KNOWN_ISSUES))
    return reports


def fault_of(column: str, session: Session, reports: Mapping[str, Report]) -> str:
    """What keeps a session from being the column's; empty when nothing does."""
    _, stack, target = COLUMNS[column]
    found = {
        (r.environment.stack, r.environment.target.split(",")[0], bool(r.environment.overlay))
        for r in reports.values()
    }
    known = {scenario.id for scenario in SCENARIOS}
    if found != {(stack, target, False)}:
        return f"a session of {sorted(found)}, not of stack {stack} on {target}"
    if not session.complete or session.broken:
        return "a session that was broken off"
    if stray := sorted(set(reports) - known):
        return f"scenarios that are not in the catalogue: {', '.join(stray)}"
    if target == "emulated" and (lost := sorted(known - set(reports))):
        return f"scenarios that were not run: {', '.join(lost)}"
    return ""


def put(page: Path, table: str, begin: str = f"{BEGIN}\n", end: str = f"\n{END}") -> None:
    """Replace what stands between the marks of a page."""
    before, rest = page.read_text().split(begin)
    _, after = rest.split(end)
    write(page, f"{before}{begin}{table}{end}{after}".encode())


def loads_of(runs: Mapping[str, Mapping[str, Report]]) -> Loads:
    """What the runs came to for each recipe, its experts spread in each way."""
    return Loads(
        {column: releases(column, reports) for column, reports in runs.items()},
        tuple(
            LoadsOn(
                row.recipe, str(row.parallelism or Parallelism.TENSOR), row.id,
                {c: result_of(reports[row.id]) for c, reports in runs.items() if row.id in reports},
            )
            for row in PLAIN
        ),
    )  # fmt: skip


def releases(column: str, reports: Mapping[str, Report]) -> Releases:
    """The releases that a run was made on."""
    versions = next(iter(reports.values())).environment.versions
    return Releases(versions["vllm"], versions["tpu-inference"], COLUMNS[column][2])


def result_of(report: Report) -> Result:
    """What a load came to, in a word, and the known issues that describe it."""
    if report.status is Status.EQUAL:
        return Result(Ending.EQUAL)
    if not report.known_issue:
        return Result(Ending.FAILED)
    names = tuple(report.known_issue.split(", "))
    natures = {issue.nature for issue in KNOWN_ISSUES if issue.id in names}
    return Result(Ending.KNOWN if Nature.BUG in natures else Ending.REFUSED, names)


def detail(runs: Mapping[str, Mapping[str, Report]]) -> str:
    """A row for each scenario, a column for each run."""
    lines = [line("scenario", "why", *runs), line(*["---"] * (2 + len(runs)))]
    for scenario in SCENARIOS:
        cells = [cell(reports.get(scenario.id)) for reports in runs.values()]
        lines.append(line(f"`{scenario.id}`", scenario.why, *cells))
    return "\n".join(lines)


def cell(report: Report | None) -> str:
    """``=``, or what happened and the known issue that says so; bold where none does."""
    if report is None:
        return NOT_RUN
    if report.status is Status.EQUAL:
        return "="
    failed = report.status is Status.LOAD_FAILED
    what = "load failed" if failed else str(len(report.differences))
    if not report.known_issue:
        return f"**{what}**"
    links = [f"[{name}](known-issues.md#{name})" for name in report.known_issue.split(", ")]
    return f"{what}: {', '.join(links)}"


def summary(runs: Mapping[str, Mapping[str, Report]]) -> str:
    """A row for each run: what ran, how it ended, how much was compared."""
    names = ("`make verify …`", "releases", "scenarios", "equal", "known failures",
             "other failures", "experts compared", "other parameters")  # fmt: skip
    lines = [line(*names), line(*["---"] * len(names))]
    for column, reports in runs.items():
        lines.append(line(f"`{COLUMNS[column][0]}`", *figures(list(reports.values()))))
    return "\n".join(lines)


def at_a_glance(loads: Loads) -> str:
    """Two small tables: how the plain loads ended on each stack, and where each family is equal."""
    stacks = [name for name, releases in loads.runs.items() if releases.target == "emulated"]
    lines = ["|stack|vLLM|tpu-inference|loads equal|", "|---|---|---|---|"]
    for stack in stacks:
        ends = [row.results[stack].outcome for row in loads.loads if stack in row.results]
        on = loads.runs[stack]
        equal = f"{ends.count(Ending.EQUAL)} of {len(ends)}"
        lines.append(f"|`{stack}`|{on.vllm}|{on.tpu_inference}|{equal}|")
    lines += ["", "|family|equal on|", "|---|---|"]
    for name, rows in loads_by_family(loads).items():
        equal = " ".join(s for s in stacks if any(is_equal(row, s) for row in rows))
        lines.append(f"|{name}|{equal or 'none yet'}|")
    return "\n".join(lines)


def loads_by_family(loads: Loads) -> dict[str, list[LoadsOn]]:
    """The recorded loads of each family that has any."""
    found: dict[str, list[LoadsOn]] = {}
    for row in loads.loads:
        found.setdefault(recipes()[row.recipe][0].name, []).append(row)
    return found


def is_equal(row: LoadsOn, stack: str) -> bool:
    """Whether a load was equal on ``stack``."""
    return stack in row.results and row.results[stack].outcome is Ending.EQUAL


def figures(reports: Sequence[Report]) -> list[str]:
    """The cells of one run's row, from its releases on."""
    versions = reports[0].environment.versions
    return [
        f"vLLM {versions['vllm']}, tpu-inference {versions['tpu-inference']}",
        str(len(reports)),
        count(reports, lambda r: r.status is Status.EQUAL),
        count(reports, lambda r: r.status is not Status.EQUAL and bool(r.known_issue)),
        count(reports, lambda r: r.status is not Status.EQUAL and not r.known_issue),
        str(sum(r.experts_compared for r in reports)),
        str(sum(r.parameters_compared for r in reports)),
    ]


def count(reports: Sequence[Report], fits: Callable[[Report], bool]) -> str:
    return str(sum(map(fits, reports)))


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
