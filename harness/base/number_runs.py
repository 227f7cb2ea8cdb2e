"""Numbers as text that stays short: ``0-5,7``."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby


def runs_text(numbers: Iterable[int], separator: str = ",") -> str:
    """``0-5,7`` for 0, 1, 2, 3, 4, 5, 7; empty for none."""
    pairs = enumerate(sorted(set(numbers)))
    runs = [[n for _, n in run] for _, run in groupby(pairs, lambda pair: pair[1] - pair[0])]
    return separator.join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def numbers_of(text: str) -> list[int]:
    """The numbers :func:`runs_text` wrote."""
    ends = [run.split("-") for run in text.split(",") if run]
    return [n for run in ends for n in range(int(run[0]), int(run[-1]) + 1)]
