"""Known upstream issues: what is expected to fail, how, and the verdict over a report.

A row says who owns the fault and what it raises. A failure that a row describes is known; one
that differs from its row is not, and a row whose failure does not happen is out of date, unless a
checkout stood in for a release: then it is mended there.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from harness.causes import Cause
from harness.report import Report, Status
from harness.target import TARGETS


class Owner(StrEnum):
    """Who has to mend it."""

    VLLM = "vllm"
    TPU_INFERENCE = "tpu-inference"
    HARNESS = "harness"


class Nature(StrEnum):
    """What kind of failure it is."""

    BUG = "bug"
    MISSING = "missing"
    BY_DESIGN = "by-design"

    @property
    def words(self) -> str:
        """As a reader calls it."""
        return _NATURE[self]


_NATURE = {
    Nature.BUG: "a bug",
    Nature.MISSING: "not implemented",
    Nature.BY_DESIGN: "refused by design",
}


@dataclass(frozen=True)
class KnownIssue:
    """One known failure.

    Attributes:
        id: stable name.
        owner: who has to mend it.
        nature: a bug, something not implemented, or a refusal by design.
        reason: what is wrong, in a sentence that stands alone.
        threads: public threads it is known from.
        stacks: the stacks it happens on.
        scenarios: the scenarios it makes fail.
        causes: the diagnoses it must get, all of them.
        error: the exception's type name, empty for differences.
        message: a regular expression found in the exception's message.
        at: what the evidence of a diagnosis, or the last frame of the failure, holds: a call
            site, a parameter, a line of code.
        targets: the targets it happens on.

    Raises:
        ValueError: a target is unknown, no cause is named, or the error could be any of its type.
    """

    id: str
    owner: Owner
    nature: Nature
    reason: str
    threads: tuple[str, ...]
    stacks: tuple[str, ...]
    scenarios: tuple[str, ...]
    causes: tuple[Cause, ...]
    error: str = ""
    message: str = ""
    at: str = ""
    targets: tuple[str, ...] = ("emulated", "tpu")

    def __post_init__(self) -> None:
        if unknown := set(self.targets) - set(TARGETS):
            raise ValueError(f"known issue {self.id}: no target {', '.join(sorted(unknown))}")
        if not self.causes:
            raise ValueError(f"known issue {self.id}: it names no cause")
        if self.error and not self.at and re.search(self.message, ""):
            raise ValueError(f"known issue {self.id}: any {self.error} would do; say where or how")

    @property
    def summary(self) -> str:
        """The row in a line: id, what kind of failure it is, whose, where from, and the reason."""
        what = f"{self.id}, {self.nature.words}, owner {self.owner}, {self.known_from}"
        return f"{what}: {self.reason}"

    @property
    def known_from(self) -> str:
        """The threads, for a reader."""
        return ", ".join(self.threads) or "no thread known"

    def concerns(self, report: Report, scenario: str | None) -> bool:
        """Whether ``report`` is of a stack, a target and a scenario of this row.

        None is a checkpoint of the user's own: any row of the stack and target may describe it.
        """
        environment = report.environment
        return (
            environment.stack in self.stacks
            and environment.target.split(",")[0] in self.targets
            and (scenario is None or scenario in self.scenarios)
        )

    def describes(self, report: Report) -> bool:
        """Whether ``report`` failed in just this way."""
        causes = {diagnosis.cause for diagnosis in report.diagnoses}
        if causes != set(self.causes) or not any(self.at in place for place in _places(report)):
            return False
        if report.failure is None:
            return not self.error
        return self.error == report.failure.error and bool(
            re.search(self.message, report.failure.message)
        )


def _places(report: Report) -> list[str]:
    """Where a report says that it failed: the evidence, and the failure's last frame."""
    places = [" ".join(diagnosis.evidence for diagnosis in report.diagnoses)]
    if report.failure and report.failure.frames:
        frame = report.failure.frames[-1]
        places.append(f"{frame.file}:{frame.line} in {frame.function}: {frame.text}")
    return places


def table(rows: Sequence[KnownIssue], scenarios: Collection[str]) -> tuple[KnownIssue, ...]:
    """``rows``, once it is sure that each names scenarios that exist.

    Raises:
        ValueError: a row names a scenario that is not in ``scenarios``, or two have one id.
    """
    for row in rows:
        if unknown := set(row.scenarios) - set(scenarios):
            raise ValueError(f"known issue {row.id}: no scenario {', '.join(sorted(unknown))}")
    ids = [row.id for row in rows]
    if twice := sorted({i for i in ids if ids.count(i) > 1}):
        raise ValueError(f"known issues with one id: {', '.join(twice)}")
    return tuple(rows)


class Verdict(StrEnum):
    """What a report means against the table of known issues."""

    EQUAL = "equal"
    KNOWN = "known"
    MENDED = "mended"
    UNEXPECTED = "unexpected"
    OUT_OF_DATE = "out-of-date"


def judge(
    report: Report, scenario: str | None, issues: Sequence[KnownIssue]
) -> tuple[Verdict, KnownIssue | None]:
    """The verdict over ``report``, and the row that concerns it.

    Args:
        report: the outcome of the scenario.
        scenario: its id in the catalogue; None for a checkpoint of the user's own, which is
            equal, or fails as some row describes, or fails in a way no row knows.
        issues: the table.
    """
    rows = [row for row in issues if row.concerns(report, scenario)]
    described = next((row for row in rows if row.describes(report)), None)
    if report.status is not Status.EQUAL and described:
        return Verdict.KNOWN, described
    row = rows[0] if rows and scenario is not None else None
    if report.status is not Status.EQUAL:
        return Verdict.UNEXPECTED, row
    if row is None:
        return Verdict.EQUAL, None
    return (Verdict.MENDED if report.environment.overlay else Verdict.OUT_OF_DATE), row


def note(report: Report, verdict: Verdict, issue: KnownIssue | None) -> None:
    """Have ``report`` name the row that describes it, or that the checkout mends."""
    known, mended = verdict is Verdict.KNOWN, verdict is Verdict.MENDED
    report.known_issue = issue.id if issue and known else ""
    report.mended_issue = issue.id if issue and mended else ""
    report.issue_owner = str(issue.owner) if issue and (known or mended) else ""
