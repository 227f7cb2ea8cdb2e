"""A cause in one file: put into harness/explain/, it is all that a new one takes."""

from __future__ import annotations

from harness.base.scanning import equal
from harness.explain.causes import Cause, Finding
from harness.explain.evidence import Evidence, Turn, rule

TURN = Turn.REMADE

MIRRORED = Cause.declared("mirrored", "look for a loop that counts down")


@rule(MIRRORED)
def mirrored(e: Evidence) -> Finding | None:
    """Its rows are its own, the last one first."""
    if not equal(e.reference[::-1], e.device):
        return None
    return e.finding(MIRRORED, f"the rows of {e.words.it} are mirrored", f"{e.name}, upside down")
