"""What the steps of a verification found. Each returns its own; one place puts them together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from harness.base.number_runs import numbers_of, runs_text
from harness.compare.difference import Difference, ParameterTally, Tally
from harness.explain.causes import Diagnosis
from harness.load.call_rows import Calls
from harness.report.maps import PartMap
from harness.report.report import Delivery

Found = TypeVar("Found", bound=Difference)


@dataclass(frozen=True)
class Findings:
    """Differences, and their diagnoses, which number them from 0."""

    differences: tuple[Difference, ...] = ()
    diagnoses: tuple[Diagnosis, ...] = ()

    @classmethod
    def of(
        cls,
        differences: Iterable[Found],
        diagnose: Callable[[list[Found]], Iterable[Diagnosis]],
    ) -> Findings:
        """``differences`` with what ``diagnose`` makes of them."""
        found = list(differences)
        return cls(tuple(found), tuple(diagnose(found)))

    def __add__(self, other: Findings) -> Findings:
        """These, then the other's, whose diagnoses number them as they stand now."""
        shifted = (_shifted(each, len(self.differences)) for each in other.diagnoses)
        return Findings((*self.differences, *other.differences), (*self.diagnoses, *shifted))


def _shifted(diagnosis: Diagnosis, by: int) -> Diagnosis:
    members = runs_text(number + by for number in numbers_of(diagnosis.members))
    return msgspec.structs.replace(diagnosis, first=diagnosis.first + by, members=members)


@dataclass(frozen=True)
class PartFindings:
    """What comparing one part of the model came to.

    Attributes:
        found: differences of its experts, of their further copies, of its other parameters.
        tally: how many experts were compared.
        parameters: how many other parameters; None where none was looked at.
        delivery: what its loaders were called for.
        calls: these calls, where they were for experts.
        map: the state of every expert's matrices.
        sources: the tensors that its arrays are made of, and whether they were to be compared.
    """

    found: Findings
    tally: Tally
    parameters: ParameterTally | None
    delivery: Delivery
    calls: list[Calls]
    map: PartMap
    sources: Mapping[str, bool]
