"""Versions of one package in the order of time, and which of the other goes with each.

tpu-inference names the builds of the days after a release by that release, so
``0.26.0.dev20260820`` lies between 0.26.0 and 0.27.0
(:func:`harness.load.stack.chronological`). vLLM has no builds of a day in the package index.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from packaging.version import InvalidVersion, Version

from harness.base.errors import BadInput
from harness.load.stack import chronological

VLLM, TPU_INFERENCE = "vllm", "tpu-inference"
_DAY = re.compile(r"\.dev\d{8}$")
#: Of the other package: how many are tried with one build until two can be imported together.
_MOST_TRIED = 3


def ordered(versions: Sequence[str]) -> list[str]:
    """What is a version, from old to new."""
    known = []
    for text in versions:
        try:
            Version(text)
        except InvalidVersion:
            continue
        known.append(text)
    return sorted(known, key=chronological)


def is_release(version: str) -> bool:
    """Whether it is a release, no build of a day and no candidate."""
    return not Version(version).is_prerelease


def is_of_a_day(version: str) -> bool:
    """Whether it is the build of a day."""
    return bool(_DAY.search(version))


def chosen_version(package: str, wanted: str, versions: Sequence[str]) -> str:
    """The version that ``wanted`` means: itself, or the newest release that begins with it.

    Raises:
        BadInput: there is none.
    """
    if wanted in versions:
        return wanted
    fitting = [v for v in ordered(versions) if is_release(v) and v.startswith(f"{wanted}.")]
    if fitting:
        return fitting[-1]
    releases = [v for v in ordered(versions) if is_release(v)]
    raise BadInput(
        f"there is no {package} {wanted}",
        where="the package index",
        expected=f"one of its versions, such as {', '.join(releases[-5:])}",
        hint="0.26, 0.26.0 or 0.26.0.dev20260820",
    )


def releases_between(versions: Sequence[str], old: str, new: str) -> list[str]:
    """``old``, the releases between, ``new``."""
    inside = [v for v in _strictly_between(versions, old, new) if is_release(v)]
    return [old, *inside, new]


def days_between(versions: Sequence[str], old: str, new: str) -> list[str]:
    """``old``, the builds of the days between, ``new``."""
    inside = [v for v in _strictly_between(versions, old, new) if is_of_a_day(v)]
    return [old, *inside, new]


def _strictly_between(versions: Sequence[str], old: str, new: str) -> list[str]:
    low, high = chronological(old), chronological(new)
    return [v for v in ordered(versions) if low < chronological(v) < high]


def companions(version: str, others: Sequence[str]) -> list[str]:
    """The releases of the other package to try with ``version``, the likeliest first.

    Those of its own number, then of the next, then of the one before: the newest of each.
    """
    newest: dict[tuple[int, ...], str] = {}
    for other in ordered(others):
        if is_release(other):
            newest[Version(other).release[:2]] = other
    numbers = sorted(newest)
    own = Version(version).release[:2]
    later, earlier = [n for n in numbers if n > own], [n for n in numbers if n < own]
    tried = [n for n in (own,) if n in newest] + later[:1] + earlier[-1:]
    return [newest[number] for number in tried][:_MOST_TRIED]
