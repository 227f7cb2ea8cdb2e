"""Collapses findings: many differences, few diagnoses."""

from __future__ import annotations

from collections.abc import Iterable

from harness.causes import NEXT_STEP, Diagnosis, Finding, experts_text
from harness.difference import Difference
from harness.runs import runs_text


def diagnoses_of(found: Iterable[tuple[Difference, Finding]], offset: int = 0) -> list[Diagnosis]:
    """One diagnosis for each group of findings, in the order of their first difference.

    Args:
        found: every difference with what explains it, in the report's order.
        offset: the place of the first of them in the report.
    """
    groups: dict[str, list[tuple[int, Difference, Finding]]] = {}
    for number, (difference, finding) in enumerate(found, start=offset):
        groups.setdefault(finding.group, []).append((number, difference, finding))
    return [_diagnosis(group) for group in groups.values()]


def _diagnosis(group: list[tuple[int, Difference, Finding]]) -> Diagnosis:
    first, _, finding = group[0]
    experts = {d.expert for _, d, _ in group if d.expert is not None}
    return Diagnosis(
        cause=finding.cause,
        summary=finding.summary.replace("{experts}", experts_text(experts)),
        evidence=finding.evidence,
        next_step=NEXT_STEP[finding.cause],
        first=first,
        covers=len(group),
        members=runs_text(number for number, _, _ in group),
    )
