"""What runs of pairs of releases came to: ``releases.json``, written by ``ci/releases_page.py``.

It answers since which release a known issue is seen, and until which; ``ci/setup.py`` looks there
for a neighbour of a pair that does not work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import msgspec
from packaging.version import Version

from harness.load.stack import chronological

SEEN = Path(__file__).parent / "releases.json"
WORKS = "works"


class SeenPair(msgspec.Struct, frozen=True, kw_only=True):
    """A pair of releases that ran, or could not.

    Attributes:
        vllm: its version.
        tpu_inference: its version.
        verdict: ``works``, ``unresolvable``, ``unimportable`` or ``no-worker``.
        why: of one that does not work, who demands what.
        families: by family, ``equal``, ``known``, ``new`` or ``fixed``; those that ran.
        issues: the known issues that were seen.
        absent: those that were not, though a scenario ran that would have shown them.
        new: the scenarios with a failure that no known issue describes.
    """

    vllm: str
    tpu_inference: str
    verdict: str
    why: str = ""
    families: dict[str, str] = {}
    issues: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    new: tuple[str, ...] = ()

    @property
    def order(self) -> tuple[Version, Version]:
        """Sorts pairs as they followed each other."""
        return chronological(self.tpu_inference), chronological(self.vllm)

    def __str__(self) -> str:
        return f"vLLM {self.vllm} + tpu-inference {self.tpu_inference}"


class SeenPairs(msgspec.Struct, frozen=True):
    """The content of the file."""

    pairs: list[SeenPair] = []


def seen_pairs(file: Path = SEEN) -> list[SeenPair]:
    """The pairs of the file in their order; none where it was not written yet."""
    if not file.exists():
        return []
    return sorted(msgspec.json.decode(file.read_bytes(), type=SeenPairs).pairs, key=_order)


def _order(pair: SeenPair) -> tuple[Version, Version]:
    return pair.order


@cache
def known_pairs() -> tuple[SeenPair, ...]:
    """Those of the file that this release brings."""
    return tuple(seen_pairs())


class SeenSpan(NamedTuple):
    """On which pairs a known issue was seen first and last, and on which it was gone after that."""

    first: SeenPair
    last: SeenPair
    gone: SeenPair | None


def span(issue: str, pairs: Sequence[SeenPair]) -> SeenSpan | None:
    """Since when a known issue is there, and until when; None where no pair shows it.

    Args:
        issue: its id.
        pairs: in their order.
    """
    found = [pair for pair in pairs if issue in pair.issues]
    if not found:
        return None
    after = [p for p in pairs if p.order > found[-1].order and issue in p.absent]
    return SeenSpan(found[0], found[-1], after[0] if after else None)


def last_seen(issue: str, versions: Mapping[str, str]) -> str:
    """In words: the last pair before these versions on which an issue was seen."""
    found = [pair for pair in known_pairs() if issue in pair.issues]
    now = SeenPair(
        vllm=versions.get("vllm", "0"),
        tpu_inference=versions.get("tpu-inference", "0"),
        verdict=WORKS,
    )
    before = [pair for pair in found if pair.order <= now.order]
    return f"last seen on {before[-1]}" if before else "seen on no other pair"
