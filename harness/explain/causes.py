"""What a cause is, and how findings become diagnoses; causes are declared beside their rules."""

from __future__ import annotations

from collections.abc import Iterable
from enum import EnumType, StrEnum
from typing import TYPE_CHECKING

import msgspec

from harness.base.number_runs import runs_text
from harness.compare.difference import Difference
from harness.families.known_families import families

if TYPE_CHECKING:

    class _Open(EnumType):
        def __getattr__(cls, name: str) -> Cause: ...  # whatever was declared
else:
    _Open = EnumType


class Suspect(StrEnum):
    """Whose fault a cause is, as far as the cause alone tells."""

    UPSTREAM = "upstream"
    CHECKPOINT = "checkpoint"
    MACHINE = "machine"
    HARNESS = "harness"
    UNKNOWN = "unknown"


class Cause(StrEnum, metaclass=_Open):
    """The classes of fault that can be told apart."""

    # Each is declared beside the rule that names it, in a file of this room, and is a member from
    # then on: bit-flip is Cause.BIT_FLIP. Whoever imports anything of the room has all of them.
    next_step: str
    suspect: Suspect

    @classmethod
    def declared(cls, value: str, next_step: str, suspect: Suspect = Suspect.UPSTREAM) -> Cause:
        """A new member.

        Args:
            value: what reports call it.
            next_step: what to do about it.
            suspect: whose fault it is; the stack under test is what most rules are about.

        Raises:
            ValueError: there is one of that name.
        """
        name = value.upper().replace("-", "_")
        if name in cls.__members__:
            raise ValueError(f"two causes are called {value}")
        cause = str.__new__(cls, value)
        cause._name_, cause._value_ = name, value
        cause.next_step, cause.suspect = next_step, suspect
        # What a class statement would do. Python has no other way to add a member before 3.13.
        setattr(cls, name, cause)
        cls._member_names_.append(name)
        cls._member_map_[name] = cls._value2member_map_[value] = cause
        return cause


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """One cause, the sentence that states it, its evidence, the next step, and how much it covers.

    ``first`` indexes the report's differences; ``covers`` counts those with this cause. Both are
    0 where a load failed and nothing was compared. ``members`` are the numbers of all of them, as
    ``0-5,7``.
    """

    cause: Cause
    summary: str
    evidence: str
    next_step: str
    first: int = 0
    covers: int = 0
    members: str = ""


class Finding(msgspec.Struct, frozen=True):
    """What one difference was explained by. Findings with the same ``group`` become one diagnosis.

    ``{experts}`` in the summary stands for the experts of all of them, ``{names}`` for their
    ``name``, and a verb in braces, ``{hold}``, for its form that agrees with them.
    """

    cause: Cause
    group: str
    summary: str
    evidence: str
    name: str = ""


#: What several do, and what one does.
_VERBS = {"hold": "holds", "stand": "stands", "differ": "differs", "are": "is", "were": "was"}


def experts_text(experts: Iterable[int]) -> str:
    """``expert 3``, or ``experts 0-5, 7``."""
    text = runs_text(experts, separator=", ")
    return f"expert{'' if text.isdecimal() else 's'} {text}"


def fix_of(site: str) -> str:
    """What fixed the positional call at ``site`` (``file:line``), as the end of a sentence."""
    file = site.rsplit("/", 1)[-1].split(":")[0]
    fix = next((family.fixes[file] for family in families() if file in family.fixes), "")
    return f"; fixed by {fix}, released with vLLM 0.22.0" if fix else ""


def diagnoses_of(found: Iterable[tuple[Difference, Finding]]) -> list[Diagnosis]:
    """One diagnosis for each group of findings, in the order of their first difference.

    Args:
        found: every difference with what explains it; diagnoses number them from 0.
    """
    groups: dict[str, list[tuple[int, Difference, Finding]]] = {}
    for number, (difference, finding) in enumerate(found):
        groups.setdefault(finding.group, []).append((number, difference, finding))
    return [_diagnosis(group) for group in groups.values()]


def _diagnosis(group: list[tuple[int, Difference, Finding]]) -> Diagnosis:
    first, _, finding = group[0]
    experts = {d.expert for _, d, _ in group if d.expert is not None}
    names = list(dict.fromkeys(each.name for *_, each in group))
    summary = finding.summary.replace("{experts}", experts_text(experts))
    summary = summary.replace("{names}", _names_text(names))
    several = len(names if "{names}" in finding.summary else experts) != 1
    for plural, singular in _VERBS.items():
        summary = summary.replace(f"{{{plural}}}", plural if several else singular)
    return Diagnosis(
        cause=finding.cause,
        summary=summary,
        evidence=finding.evidence,
        next_step=finding.cause.next_step,
        first=first,
        covers=len(group),
        members=runs_text(number for number, _, _ in group),
    )


def _names_text(names: list[str]) -> str:
    """The first name, and how many there are besides."""
    more = len(names) - 1
    return names[0] + (f" and {more} more" if more else "")
