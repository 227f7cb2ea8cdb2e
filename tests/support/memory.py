"""How much memory a piece of work takes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable


def peak(work: Callable[[], object]) -> int:
    """Bytes that ``work`` needs at most, beyond what is there; numpy's arrays count."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        work()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
