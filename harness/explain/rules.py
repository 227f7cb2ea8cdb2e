"""The rules of a diagnosis: one list for every slice, an expert's or any other tensor's.

Each looks at one :class:`harness.explain.evidence.Evidence` and says what the slice holds, or
nothing. Those that what the slice has allows are tried in order; the first that explains every
unequal element wins. Elements are looked at a stretch at a time, and of a tensor that is wrong
throughout few rules see more than the first.

A file of this room whose name ends in ``_rules`` holds rules, and the causes they name. Rules are
tried in the order of the files' :class:`Turn`, and in a file as they stand there.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from harness.explain.causes import Cause, Finding, Suspect
from harness.explain.distance import farthest
from harness.explain.evidence import Evidence, Rule

_SEARCHED = "no other slice, row or run of bytes of the reference fits"
_NOT_SEARCHED = (
    "no other slice or row of the reference fits; after so many slices that nothing explained, "
    "its bytes were not looked for in the files"
)


UNEXPLAINED = Cause.declared(
    "unexplained",
    "the differences are listed raw; rerun to see whether they are stable",
    suspect=Suspect.UNKNOWN,
)


def unexplained(e: Evidence) -> Finding:
    """The raw facts, and how far off the values are."""
    far = farthest(e.reference, e.device, e.dtype)
    return e.finding(
        UNEXPLAINED,
        f"{e.words.they} {{differ}} for no known reason",
        f"{e.name}: {e.pattern.count / e.reference.size:.1%} of its elements differ, within "
        f"{e.pattern}; {_NOT_SEARCHED if e.around.unsearched else _SEARCHED}"
        + (f"; {far}" if far else ""),
    )


def explain(e: Evidence) -> Finding:
    """What the first rule says that applies and explains all of it; else the raw facts."""
    applicable = (each for each in RULES if each.needs <= e.has)
    return next((f for each in applicable if (f := each.look(e))), None) or unexplained(e)


def _rules() -> Iterator[Rule]:
    here = Path(__file__).parent
    names = sorted(m.name for m in pkgutil.iter_modules([str(here)]) if m.name.endswith("_rules"))
    files = [import_module(f"{__package__}.{name}") for name in names]
    for file in sorted(files, key=lambda file: int(file.TURN)):
        found = (each for each in vars(file).values() if isinstance(each, Rule))
        yield from (each for each in found if each.look.__module__ == file.__name__)


#: In the order they are tried.
RULES: tuple[Rule, ...] = tuple(_rules())
