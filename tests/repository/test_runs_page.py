"""docs/runs.md and the README's tables are what runs left, and agree with the tables of data."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import pytest

from harness.families import overview
from harness.families.overview import Ending, Loads, Result
from harness.report.known_issue import expected_issues
from harness.report.report import Failure, Report, Session, SessionRow, Status
from scenarios.catalogue import SCENARIOS
from scenarios.known_issues import KNOWN_ISSUES
from tests.support.known_issue import pinned_versions
from tests.support.pipelines import script
from tests.support.reports import a_report, an_environment

runs_page = script("runs_page")
COLUMNS, NOT_RUN = runs_page.COLUMNS, runs_page.NOT_RUN
README, RUNS = (runs_page.ROOT / page for page in (runs_page.README, runs_page.RUNS))

Cells = Mapping[str, list[str]]
#: Fused kernels, and meshes of several axes or hosts: tpu-inference's own.
OFF_TORCH_XLA = {
    s.id for s in SCENARIOS if s.mesh or s.hosts or (s.parallelism or "") == "expert-kernel"
}


def table(page: Path, begin: str = runs_page.BEGIN, end: str = runs_page.END) -> list[list[str]]:
    """The rows between a page's marks, without the rule below the head."""
    text = page.read_text().split(begin)[1].split(end)[0]
    rows = [[c.strip() for c in row.strip("|").split(" | ")] for row in text.strip().splitlines()]
    return [rows[0], *rows[2:]]


def sums(page: Path) -> list[list[str]]:
    """The rows of the first table of docs/runs.md."""
    return table(page, runs_page.SUMS, runs_page.END_OF_SUMS)


def known(column: str, scenario: str) -> str:
    """The known issue that a scenario must have in a column."""
    _, stack, target = COLUMNS[column]
    (load,) = [s.load() for s in SCENARIOS if s.id == scenario]
    found = expected_issues(load, pinned_versions(stack), target, KNOWN_ISSUES)
    return ", ".join(issue.id for issue in found)


def disagreeing(column: str, cells: Cells) -> list[str]:
    """Scenarios whose cell names another known issue than the table of them does."""
    number = list(COLUMNS).index(column) + 2
    return [
        scenario for scenario, row in cells.items() if row[number] != NOT_RUN
        and ", ".join(re.findall(r"\[(.*?)\]", row[number])) != known(column, scenario)
    ]  # fmt: skip


def written() -> Cells:
    return {row[0].strip("`"): row for row in table(RUNS)[1:]}


def test_every_scenario_has_its_row() -> None:
    head, *rows = table(RUNS)
    assert head == ["scenario", "why", *COLUMNS]
    assert [(row[0], row[1]) for row in rows] == [(f"`{s.id}`", s.why) for s in SCENARIOS]


@pytest.mark.parametrize("column", COLUMNS)
def test_the_known_issues_are_those_of_the_table(column: str) -> None:
    assert disagreeing(column, written()) == []


@pytest.mark.parametrize("planted", ["=", "**3**", "3: [another-issue](known-issues.md)"])
def test_a_cell_without_its_known_issue_is_seen(planted: str) -> None:
    cells = {"vl-square": ["`vl-square`", "why", "=", "=", planted, "=", "="]}
    assert disagreeing("0.26", cells) == ["vl-square"]


def test_what_torch_xla_cannot_run_is_not_run() -> None:
    assert {name for name, row in written().items() if NOT_RUN in row} == OFF_TORCH_XLA


def test_the_sums_are_those_of_the_scenarios() -> None:
    columns = list(zip(*(row[2:] for row in table(RUNS)[1:]), strict=True))
    for row, cells in zip(sums(RUNS)[1:], columns, strict=True):
        ran = [text for text in cells if text != NOT_RUN]
        equal, known = ran.count("="), sum("[" in text for text in ran)
        assert row[2:6] == [str(len(ran)), str(equal), str(known), str(len(ran) - equal - known)]


def test_the_readme_has_what_the_record_says() -> None:
    text = README.read_text().split(f"{runs_page.BEGIN}\n")[1].split(f"\n{runs_page.END}")[0]
    assert text == runs_page.at_a_glance(overview.recorded())
    assert "|`0.26`|0.26.0|0.26.0|" in text


def report(column: str = "0.26", **given: object) -> Report:
    _, stack, target = COLUMNS[column]
    versions = {"vllm": f"{stack}.0", "tpu-inference": f"{stack}.0"}
    environment = an_environment(stack=stack, versions=versions, target=f"{target}, 4 devices")
    return a_report(**{"environment": environment} | given)


def session(column: str) -> Session:
    rows = [SessionRow(scenario=s.id, report=report(column)) for s in SCENARIOS
            if column != "torch-xla" or s.id not in OFF_TORCH_XLA]  # fmt: skip
    return Session(complete=True, rows=rows)


def leave(directory: Path, sessions: Mapping[str, Session]) -> None:
    for column, left in sessions.items():
        (directory / column).mkdir()
        left.write(directory / column / "session.json")


@pytest.fixture
def pages(tmp_path: Path) -> list[Path]:
    """Three pages with marks and nothing between them, and where the record of loads goes."""
    made = [tmp_path / page for page in (runs_page.RUNS, runs_page.README, runs_page.FAMILIES)]
    marks = [(f"{runs_page.BEGIN}\n", f"{runs_page.END}\n")] * 2 + [(overview.BEGIN, overview.END)]
    (tmp_path / runs_page.LOADS).parent.mkdir(parents=True)
    for page, (begin, end) in zip(made, marks, strict=True):
        page.parent.mkdir(exist_ok=True)
        page.write_text(f"above\n{begin}old\n{end}below\n")
    with made[0].open("a") as runs:
        runs.write(f"{runs_page.SUMS}\nold\n{runs_page.END_OF_SUMS}\n")
    return made


def test_sessions_become_pages(tmp_path: Path, pages: list[Path]) -> None:
    leave(tmp_path, {column: session(column) for column in COLUMNS})
    assert runs_page.main([str(tmp_path)], tmp_path) == 0
    for page in pages:
        text = page.read_text()
        assert text.startswith("above\n")
        assert "\nbelow\n" in text
        assert "\nold\n" not in text
    assert table(pages[0])[1][2:] == ["="] * 5
    every = str(len(SCENARIOS))
    releases = "vLLM 0.26.0, tpu-inference 0.26.0"
    experts = str(8 * len(SCENARIOS))
    row = ["`STACK=0.26 FAMILIES=all`", releases, every, every, "0", "0", experts, "0"]
    assert sums(pages[0])[3] == row
    assert "|qwen3-moe|0.21 0.22 0.26 0.32|" in pages[1].read_text()
    loads = msgspec.json.decode((tmp_path / runs_page.LOADS).read_bytes(), type=Loads)
    assert overview.families_table(loads) in pages[2].read_text()
    assert list(loads.runs) == list(COLUMNS)
    assert {r for load in loads.loads for r in load.results.values()} == {Result(Ending.EQUAL)}


@pytest.mark.parametrize(
    ("status", "issue", "result"),
    [
        (Status.EQUAL, "", Result(Ending.EQUAL)),
        (Status.DIFFERENT, "", Result(Ending.FAILED)),
        (Status.DIFFERENT, "orientation-guessed", Result(Ending.KNOWN, ("orientation-guessed",))),
        (Status.LOAD_FAILED, "width-not-divisible",
         Result(Ending.REFUSED, ("width-not-divisible",))),
        (Status.DIFFERENT, "width-not-divisible, tied-head-unread",
         Result(Ending.KNOWN, ("width-not-divisible", "tied-head-unread"))),
    ],
    ids=["equal", "failed", "a bug", "a refusal", "one of each"],
)  # fmt: skip
def test_what_a_load_came_to(status: Status, issue: str, result: Result) -> None:
    assert runs_page.result_of(report(status=status, known_issue=issue)) == result


def test_the_record_agrees_with_the_page_of_runs() -> None:
    """Both are of the same runs: nobody edits one of them."""
    for load in overview.recorded().loads:
        cells = dict(zip(COLUMNS, written()[load.scenario][2:], strict=True))
        for column, cell in cells.items():
            result = load.results.get(column)
            if result is None:
                assert cell == NOT_RUN
            else:
                assert (cell == "=") is (result.outcome is Ending.EQUAL), (load.scenario, column)
                assert tuple(re.findall(r"\[(.*?)\]", cell)) == result.issues


def _of_another_stack(given: Session) -> None:
    given.rows[0].report = report("0.22")


def _of_another_target(given: Session) -> None:
    given.rows[0].report = report("torch-xla")


def _broken_off(given: Session) -> None:
    given.complete = False


def _short(given: Session) -> None:
    del given.rows[3]


def _with_a_stray(given: Session) -> None:
    given.rows[0].scenario = "my-model"


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (_of_another_stack, "not of stack 0.26"),
        (_of_another_target, "not of stack 0.26"),
        (_broken_off, "broken off"),
        (_short, f"not run: {SCENARIOS[3].id}"),
        (_with_a_stray, "not in the catalogue: my-model"),
    ],
)
def test_a_session_that_will_not_do_is_refused(
    spoil: Callable[[Session], None], named: str, tmp_path: Path, pages: list[Path],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    sessions = {column: session(column) for column in COLUMNS}
    spoil(sessions["0.26"])
    leave(tmp_path, sessions)
    assert runs_page.main([str(tmp_path)], tmp_path) == 2
    assert named in capsys.readouterr().err
    assert "\nold\n" in pages[0].read_text()


def test_a_column_without_a_session_is_refused(tmp_path: Path, pages: list[Path]) -> None:
    leave(tmp_path, {column: session(column) for column in list(COLUMNS)[1:]})
    assert runs_page.main([str(tmp_path)], tmp_path) == 2
    assert "\nold\n" in pages[0].read_text()


def test_cells() -> None:
    link = "[vl](known-issues.md#vl)"
    broken = Failure(error="E", message="m")
    failed = report(status=Status.LOAD_FAILED, failure=broken)
    known = report(status=Status.LOAD_FAILED, failure=broken, known_issue="vl")
    assert runs_page.cell(None) == NOT_RUN
    assert runs_page.cell(report()) == "="
    assert runs_page.cell(report(status=Status.DIFFERENT)) == "**0**"
    assert runs_page.cell(report(status=Status.DIFFERENT, known_issue="vl")) == f"0: {link}"
    assert runs_page.cell(failed) == "**load failed**"
    assert runs_page.cell(known) == f"load failed: {link}"
