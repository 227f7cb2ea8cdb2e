"""The table of known issues accepts what it describes, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from harness.causes import Cause, Diagnosis
from harness.known import KnownIssue, Owner, Verdict, judge
from harness.message import known_text
from harness.report import Environment, Failure, Report, Status
from scenarios.catalogue import SCENARIOS
from scenarios.known_issues import KNOWN_ISSUES

ISSUE = KnownIssue(
    id="an-issue",
    owner=Owner.VLLM,
    reason="it crashes",
    threads=("vllm#1",),
    stacks=("0.21",),
    scenarios=("vl-fused",),
    causes=(Cause.ARGUMENT_CONTRACT,),
    error="AssertionError",
    message="Expecting .*id",
    at="qwen.py:7",
)


def report(
    stack: str = "0.21",
    cause: Cause = Cause.ARGUMENT_CONTRACT,
    error: str = "AssertionError",
    message: str = "Expecting expert_id",
    evidence: str = "vllm/qwen.py:7 called",
) -> Report:
    return Report(
        checkpoint="/c",
        reference="/c",
        family="f",
        status=Status.LOAD_FAILED,
        environment=Environment(
            stack=stack, python="3.11", versions={}, target="emulated, 4 devices"
        ),
        failure=Failure(error=error, message=message),
        diagnoses=[Diagnosis(cause=cause, summary="", evidence=evidence, next_step="")],
    )


def verdict(given: Report, issue: KnownIssue = ISSUE, scenario: str = "vl-fused") -> Verdict:
    found, row = judge(given, scenario, [issue])
    assert (row is None) == (issue.stacks != (given.environment.stack,) or scenario != "vl-fused")
    return found


def test_a_row_is_of_its_targets_only() -> None:
    elsewhere = report()
    elsewhere.environment = replace_target(elsewhere, "torch-xla, 4 devices")
    assert judge(elsewhere, "vl-fused", [ISSUE]) == (Verdict.UNEXPECTED, None)


def replace_target(given: Report, target: str) -> Environment:
    return msgspec.structs.replace(given.environment, target=target)


def test_what_the_row_describes_is_known() -> None:
    assert verdict(report()) is Verdict.KNOWN


@pytest.mark.parametrize(
    "otherwise",
    [
        report(cause=Cause.UNEXPLAINED),
        report(error="ValueError"),
        report(message="Expecting weights"),
        report(evidence="vllm/qwen.py:8 called"),
    ],
    ids=["cause", "error", "message", "call site"],
)
def test_another_failure_is_not_known(otherwise: Report) -> None:
    assert verdict(otherwise) is Verdict.UNEXPECTED
    assert "not as known issue an-issue says" in known_text(Verdict.UNEXPECTED, ISSUE)


def test_a_second_cause_is_not_known() -> None:
    given = report()
    given.diagnoses = given.diagnoses + report(cause=Cause.BIT_FLIP).diagnoses
    assert verdict(given) is Verdict.UNEXPECTED


def test_a_failure_that_does_not_happen_is_out_of_date() -> None:
    equal = report()
    equal.status, equal.failure, equal.diagnoses = Status.EQUAL, None, []
    assert verdict(equal) is Verdict.OUT_OF_DATE
    assert "did not happen" in known_text(Verdict.OUT_OF_DATE, ISSUE)


def test_other_stacks_and_scenarios_are_not_covered() -> None:
    assert verdict(report(stack="0.22")) is Verdict.UNEXPECTED
    assert verdict(report(), scenario="decoder-fused") is Verdict.UNEXPECTED


def test_known_differences() -> None:
    given = report(cause=Cause.BIT_FLIP)
    given.status, given.failure = Status.DIFFERENT, None
    row = replace(ISSUE, causes=(Cause.BIT_FLIP,), error="", message="")
    assert verdict(given, row) is Verdict.KNOWN
    assert verdict(given) is Verdict.UNEXPECTED


def test_the_table_names_what_exists() -> None:
    stacks = {
        path.stem for path in (Path(__file__).parent.parent / "ci" / "stacks").glob("*.in")
    } - {"tools"}
    scenarios = {scenario.id for scenario in SCENARIOS}
    for issue in KNOWN_ISSUES:
        assert set(issue.stacks) <= stacks
        assert set(issue.scenarios) <= scenarios
    ids = [issue.id for issue in KNOWN_ISSUES]
    assert len(ids) == len(set(ids))


def test_a_scenario_has_one_row_a_stack() -> None:
    covered = [
        (target, stack, scenario)
        for row in KNOWN_ISSUES
        for target in row.targets
        for stack in row.stacks
        for scenario in row.scenarios
    ]
    assert len(covered) == len(set(covered))


def table() -> str:
    """The rows as ``docs/known-issues.md`` shows them."""
    names = ("issue", "of", "stacks", "targets", "scenarios", "what happens", "threads")
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in KNOWN_ISSUES:
        lines.append(
            f'| <a id="{row.id}"></a>`{row.id}` | {row.owner} | {", ".join(row.stacks)} '
            f"| {', '.join(row.targets)} "
            f"| {', '.join(f'`{name}`' for name in row.scenarios)} | {row.reason} "
            f"| {row.known_from} |"
        )
    return "\n".join(lines)


def test_the_document_has_every_row(request: pytest.FixtureRequest) -> None:
    path = Path(__file__).parent.parent / "docs" / "known-issues.md"
    mark = "<!-- table -->"
    before, written, after = path.read_text().split(mark)
    if request.config.getoption("--write-docs"):
        path.write_text(f"{before}{mark}\n{table()}\n{mark}{after}")
    else:
        assert written.strip() == table(), "run with --write-docs"
