"""Many differences become few diagnoses, each with all its members and their experts."""

from __future__ import annotations

import pytest

from harness.compare.difference import Difference, Kind
from harness.explain.causes import Cause, Finding, diagnoses_of
from tests.support.differences import a_difference


def found(expert: int | None, group: str, evidence: str = "e") -> tuple[Difference, Finding]:
    difference = a_difference(Kind.BITS, layer=1, expert=expert)
    return difference, Finding(Cause.ZEROS, group, "{experts} of layer 1 {hold} zeros", evidence)


def test_a_group_is_one_diagnosis_with_the_first_ones_evidence() -> None:
    differences = [found(3, "a", "first"), found(7, "b"), found(4, "a", "second"), found(5, "a")]
    one, other = diagnoses_of(differences)
    assert (one.first, one.covers, one.members, one.evidence) == (0, 3, "0,2-3", "first")
    assert (other.first, other.covers, other.members) == (1, 1, "1")
    assert one.next_step == Cause.ZEROS.next_step


@pytest.mark.parametrize(
    ("experts", "text"),
    [
        ([3], "expert 3 of layer 1 holds zeros"),
        ([5, 3, 4, 9], "experts 3-5, 9 of layer 1 hold zeros"),
        ([3, 3], "expert 3 of layer 1 holds zeros"),
    ],
)
def test_the_summary_names_all_experts(experts: list[int], text: str) -> None:
    (diagnosis,) = diagnoses_of(found(expert, "a") for expert in experts)
    assert diagnosis.summary == text


def test_nothing_found_is_no_diagnosis() -> None:
    assert diagnoses_of([]) == []
