"""The search itself: between an old build and a new one, where the outcome changes.

A line of builds is ordered from old to new. Its first and its last are known to differ; what was
tried between is marked like one or the other, or skipped. No build is installed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple


class Mark(StrEnum):
    """How a build came out: as the good end, as the bad end, or in a way that says nothing."""

    GOOD = "good"
    BAD = "bad"
    SKIPPED = "skipped"


class Border(NamedTuple):
    """Between which builds the outcome changes; those between were skipped, or not tried yet."""

    before: str
    after: str
    between: tuple[str, ...]


def border(line: Sequence[str], marks: Mapping[str, Mark]) -> Border:
    """Where the outcome changes, as far as ``marks`` tell.

    Args:
        line: builds from old to new; the first and the last are marked, and not alike.
        marks: of those that were tried.
    """
    new = marks[line[-1]]
    high = next(number for number, build in enumerate(line) if marks.get(build) is new)
    kept = [n for n in range(high) if marks.get(line[n]) not in (None, new, Mark.SKIPPED)]
    return Border(line[kept[-1]], line[high], tuple(line[kept[-1] + 1 : high]))


def next_build(line: Sequence[str], marks: Mapping[str, Mark]) -> str | None:
    """The build to try next, the nearest to the middle; None where the search is over."""
    _, _, between = border(line, marks)
    middle = (len(between) - 1) / 2
    untried = [n for n, build in enumerate(between) if build not in marks]
    nearest = min(untried, key=lambda n: abs(n - middle), default=None)
    return None if nearest is None else between[nearest]
