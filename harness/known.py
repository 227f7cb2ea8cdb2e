"""Known upstream issues: what is expected to fail, how, and the verdict over a report.

A row says who owns the fault and what it raises. A failure that a row describes is known; one
that differs from its row is not, and a row whose failure does not happen is out of date.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from harness.causes import Cause
from harness.report import Report, Status


class Owner(StrEnum):
    """Who has to mend it."""

    VLLM = "vllm"
    TPU_INFERENCE = "tpu-inference"
    HARNESS = "harness"


@dataclass(frozen=True)
class KnownIssue:
    """One known failure.

    Attributes:
        id: stable name.
        owner: who has to mend it.
        reason: what is wrong, in a sentence.
        threads: public threads it is known from.
        stacks: the stacks it happens on.
        scenarios: the scenarios it makes fail.
        causes: the diagnoses it must get, all of them.
        error: the exception's type name, empty for differences.
        message: a regular expression found in the exception's message.
        at: the end of the call site's file name, as the evidence states it.
        targets: the targets it happens on.
    """

    id: str
    owner: Owner
    reason: str
    threads: tuple[str, ...]
    stacks: tuple[str, ...]
    scenarios: tuple[str, ...]
    causes: tuple[Cause, ...]
    error: str = ""
    message: str = ""
    at: str = ""
    targets: tuple[str, ...] = ("emulated", "tpu")

    @property
    def known_from(self) -> str:
        """The threads, for a reader."""
        return ", ".join(self.threads) or "no thread known"

    def concerns(self, report: Report, scenario: str) -> bool:
        """Whether ``report`` is of a stack, a target and a scenario of this row."""
        environment = report.environment
        return (
            environment.stack in self.stacks
            and environment.target.split(",")[0] in self.targets
            and scenario in self.scenarios
        )

    def describes(self, report: Report) -> bool:
        """Whether ``report`` failed in just this way."""
        causes = {diagnosis.cause for diagnosis in report.diagnoses}
        evidence = " ".join(diagnosis.evidence for diagnosis in report.diagnoses)
        if causes != set(self.causes) or self.at not in evidence:
            return False
        if report.failure is None:
            return not self.error
        return self.error == report.failure.error and bool(
            re.search(self.message, report.failure.message)
        )


class Verdict(StrEnum):
    """What a report means against the table of known issues."""

    EQUAL = "equal"
    KNOWN = "known"
    UNEXPECTED = "unexpected"
    OUT_OF_DATE = "out-of-date"


def judge(
    report: Report, scenario: str, issues: Sequence[KnownIssue]
) -> tuple[Verdict, KnownIssue | None]:
    """The verdict over ``report``, and the row that concerns it.

    Args:
        report: the outcome of the scenario.
        scenario: its id.
        issues: the table.
    """
    rows = [row for row in issues if row.concerns(report, scenario)]
    row = next((row for row in rows if row.describes(report)), rows[0] if rows else None)
    if report.status is Status.EQUAL:
        return (Verdict.OUT_OF_DATE if row else Verdict.EQUAL), row
    if row and row.describes(report):
        return Verdict.KNOWN, row
    return Verdict.UNEXPECTED, row
