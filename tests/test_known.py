"""The table of known issues accepts what it describes, and nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness.causes import Cause, Diagnosis
from harness.known import KnownIssue, Verdict, judge, note, table
from harness.message import known_text
from harness.report import Environment, Failure, Frame, Report, Status
from scenarios.catalogue import SCENARIOS, rows
from scenarios.known_issues import KNOWN_ISSUES
from tests.known_issue import ISSUE
from tests.reports import a_report, an_environment


def report(
    stack: str = "0.21",
    cause: Cause = Cause.ARGUMENT_CONTRACT,
    error: str = "AssertionError",
    message: str = "Expecting expert_id",
    evidence: str = "vllm/qwen.py:7 called",
) -> Report:
    return a_report(
        status=Status.LOAD_FAILED,
        environment=an_environment(stack=stack),
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


def equal_report(overlay: str = "") -> Report:
    given = report()
    given.status, given.failure, given.diagnoses = Status.EQUAL, None, []
    given.environment = msgspec.structs.replace(given.environment, overlay=overlay)
    return given


def test_a_checkout_may_mend_it() -> None:
    mended = equal_report("vllm /pull (0123abc)")
    assert verdict(mended) is Verdict.MENDED
    note(mended, Verdict.MENDED, ISSUE)
    assert (mended.mended_issue, mended.issue_owner) == ("an-issue", "vllm")
    assert mended.known_issue == known_text(Verdict.MENDED, ISSUE) == ""
    failed = report()
    failed.environment = mended.environment
    assert verdict(failed) is Verdict.KNOWN


def test_a_checkpoint_of_the_users_own() -> None:
    """It is no row's scenario: the failure alone decides, and equal is never out of date."""
    assert judge(report(), None, [ISSUE]) == (Verdict.KNOWN, ISSUE)
    assert judge(equal_report(), None, [ISSUE]) == (Verdict.EQUAL, None)
    assert judge(report(message="no"), None, [ISSUE]) == (Verdict.UNEXPECTED, None)
    assert judge(report(stack="0.22"), None, [ISSUE]) == (Verdict.UNEXPECTED, None)


def test_the_last_frame_says_where() -> None:
    row = replace(ISSUE, message="^$", at="in check: assert a")
    frames = (Frame("vllm/a.py", 1, "check", "assert a"), Frame("vllm/b.py", 2, "f", "assert b"))
    given = report(message="")
    assert verdict(given, row) is Verdict.UNEXPECTED
    for shown, expected in ((frames, Verdict.UNEXPECTED), (frames[:1], Verdict.KNOWN)):
        given.failure = Failure(error="AssertionError", message="", frames=shown)
        assert verdict(given, row) is expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ("emulated", "gpu")}, "no target gpu"),
        ({"causes": ()}, "names no cause"),
        ({"message": "", "at": ""}, "any AssertionError would do"),
        ({"message": "^$", "at": ""}, "any AssertionError would do"),
    ],
)
def test_a_row_that_accepts_too_much_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(ISSUE, **changes)


def test_a_table_names_scenarios_that_exist_and_every_id_once() -> None:
    assert table([ISSUE], {"vl-fused"}) == (ISSUE,)
    with pytest.raises(ValueError, match="an-issue: no scenario vl-fused"):
        table([ISSUE], {"other"})
    with pytest.raises(ValueError, match="with one id: an-issue"):
        table([ISSUE, ISSUE], {"vl-fused"})
    with pytest.raises(ValueError, match="vl-new"):
        rows("qwen3-vl-moe", but=("vl-new",))


@pytest.mark.parametrize("text", [r.why for r in SCENARIOS] + [i.reason for i in KNOWN_ISSUES])
def test_every_why_stands_alone(text: str) -> None:
    assert not text.lower().startswith(("the same", "alike", "as above"))
    assert len(text.split()) > 4


def test_what_presumes_a_mesh_pins_it() -> None:
    for scenario in SCENARIOS:
        if scenario.shapes in ("tiny:experts", "tiny:intermediate"):
            assert (scenario.devices, scenario.parallelism is None) == (4, False), scenario.id


def test_an_axis_is_dropped_on_a_tpu_too() -> None:
    (row,) = [issue for issue in KNOWN_ISSUES if issue.id == "expert-axis-dropped"]
    for device in ("('cpu', 1)", "('tpu', 0)"):
        assert re.search(row.message, f"the worker's mesh is [{device}], not expert=4,2d")
    assert not re.search(row.message, "the worker's mesh is [('cpu', 1), ('cpu', 2)], not data=2")


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
    table = Path(__file__).parent.parent / "ci" / "stacks" / "stacks.json"
    stacks = set(json.loads(table.read_text()))
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


SHOWN = 5  # scenarios of a row; more are folded


def document() -> str:
    """The rows as ``docs/known-issues.md`` shows them."""
    names = ("issue", "of", "is", "stacks", "targets", "scenarios", "what happens", "threads")
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in KNOWN_ISSUES:
        lines.append(
            f'| <a id="{row.id}"></a>`{row.id}` | {row.owner} | {row.nature.words} '
            f"| {', '.join(row.stacks)} | {', '.join(row.targets)} | {folded(row.scenarios)} "
            f"| {row.reason} | {row.known_from} |"
        )
    return "\n".join(lines)


def folded(scenarios: tuple[str, ...]) -> str:
    names = ", ".join(f"`{name}`" for name in scenarios)
    if len(scenarios) <= SHOWN:
        return names
    html = ", ".join(f"<code>{name}</code>" for name in scenarios)
    return f"<details><summary>{len(scenarios)} scenarios</summary>{html}</details>"


def test_the_document_has_every_row(request: pytest.FixtureRequest) -> None:
    path = Path(__file__).parent.parent / "docs" / "known-issues.md"
    mark = "<!-- table -->"
    before, written, after = path.read_text().split(mark)
    if request.config.getoption("--write-docs"):
        path.write_text(f"{before}{mark}\n{document()}\n{mark}{after}")
    else:
        assert written.strip() == document(), "run with --write-docs"
